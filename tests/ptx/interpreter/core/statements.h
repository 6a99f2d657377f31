// The body of an entry as statements.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace ptx {

struct Statement {
  enum class Kind { open, close, label, directive, instruction };
  Kind kind;
  std::string text;  // of single spaces, without the colon or semicolon that ends it
  int file, line;    // of the last .loc
};

// `body` is what stands between an entry's braces, without comments.
std::vector<Statement> parse_statements(std::string_view body);

}  // namespace ptx
