#include "core/statements.h"

#include <cstdio>
#include <stdexcept>

#include "core/text.h"

namespace ptx {

namespace {

using Kind = Statement::Kind;

std::string with_single_spaces(std::string_view text) {
  std::string result;
  for (std::string_view word : words(text)) {
    if (!result.empty()) result += ' ';
    result += word;
  }
  return result;
}

// Return the length of the label that the text begins with, its colon included, or 0.
size_t label_length(std::string_view text) {
  const size_t end = text.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$%");
  if (end == 0 || end == std::string_view::npos || text[end] != ':') return 0;
  return text.substr(end).starts_with("::") ? 0 : end + 1;
}

// Return where the statement ends: at the semicolon outside of a vector's braces.
size_t end_of_statement(std::string_view text) {
  const size_t end = text.find(';');
  if (end == std::string_view::npos) throw std::runtime_error("a statement without a semicolon: " + std::string(text));
  return end;
}

}  // namespace

std::vector<Statement> parse_statements(std::string_view body) {
  std::vector<Statement> statements;
  int file = 0, line = 0;
  for (std::string_view rest = trimmed(body); !rest.empty(); rest = trimmed(rest)) {
    const auto add = [&](Kind kind, size_t length, size_t used) {
      statements.push_back({kind, with_single_spaces(rest.substr(0, length)), file, line});
      rest.remove_prefix(used);
    };
    if (begins_with_word(rest, ".loc") || begins_with_word(rest, ".file")) {
      const std::string text(rest.substr(0, rest.find('\n')));
      if (text.starts_with(".loc")) std::sscanf(text.c_str(), ".loc %d %d", &file, &line);
      rest.remove_prefix(text.size());
    } else if (rest.starts_with('{')) {
      add(Kind::open, 1, 1);
    } else if (rest.starts_with('}')) {
      add(Kind::close, 1, 1);
    } else if (const size_t length = label_length(rest)) {
      add(Kind::label, length - 1, length);
    } else {
      const size_t end = end_of_statement(rest);
      add(rest.starts_with('.') ? Kind::directive : Kind::instruction, end, end + 1);
    }
  }
  return statements;
}

}  // namespace ptx
