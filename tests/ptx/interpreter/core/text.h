// Pieces of PTX text.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ptx {

std::string_view trimmed(std::string_view text);
// Split at `separator`, outside of brackets; each piece is trimmed.
std::vector<std::string_view> split(std::string_view text, char separator);
// Split at white space.
std::vector<std::string_view> words(std::string_view text);
// Whether `text` begins with this word: what follows is white space, or nothing.
bool begins_with_word(std::string_view text, std::string_view word);
// Replace comments by spaces; lines stay.
std::string without_comments(std::string_view text);
// Return the place of the brace that closes the one at `open`.
size_t closing_brace(std::string_view text, size_t open);

// A literal (PTX ISA, 4.5) as the bits of a register of `bytes`; `bytes` 0 is a predicate, true as all ones.
uint64_t literal(std::string_view text, int bytes);
bool is_literal(std::string_view text);
int64_t integer_literal(std::string_view text);

}  // namespace ptx
