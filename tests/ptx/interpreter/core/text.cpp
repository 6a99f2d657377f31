#include "core/text.h"

#include <cctype>
#include <cstring>
#include <stdexcept>

namespace ptx {

namespace {
bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
}  // namespace

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> pieces;
  size_t begin = 0;
  int depth = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '{' || c == '[' || c == '(') ++depth;
    if (c == '}' || c == ']' || c == ')') --depth;
    if (c == separator && !depth) {
      pieces.push_back(trimmed(text.substr(begin, i - begin)));
      begin = i + 1;
    }
  }
  const std::string_view last = trimmed(text.substr(begin));
  if (!last.empty() || !pieces.empty()) pieces.push_back(last);
  return pieces;
}

std::vector<std::string_view> words(std::string_view text) {
  std::vector<std::string_view> found;
  for (size_t i = 0; i < text.size();) {
    while (i < text.size() && is_space(text[i])) ++i;
    const size_t begin = i;
    while (i < text.size() && !is_space(text[i])) ++i;
    if (i > begin) found.push_back(text.substr(begin, i - begin));
  }
  return found;
}

bool begins_with_word(std::string_view text, std::string_view word) {
  return text.starts_with(word) && (text.size() == word.size() || is_space(text[word.size()]));
}

std::string without_comments(std::string_view text) {
  std::string result(text);
  const auto blank = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end && i < result.size(); ++i)
      if (result[i] != '\n') result[i] = ' ';
  };
  for (size_t i = 0; i + 1 < result.size(); ++i) {
    if (result[i] == '"') {
      i = result.find('"', i + 1);
    } else if (result[i] == '/' && (result[i + 1] == '/' || result[i + 1] == '*')) {
      const bool whole_line = result[i + 1] == '/';
      const size_t end = whole_line ? result.find('\n', i) : result.find("*/", i + 2);
      blank(i, end == std::string::npos ? result.size() : whole_line ? end : end + 2);
      i = end;
    }
    if (i == std::string::npos) break;
  }
  return result;
}

size_t closing_brace(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == '"') {
      i = text.find('"', i + 1);
      if (i == std::string_view::npos) break;
    } else if (text[i] == '{') {
      ++depth;
    } else if (text[i] == '}' && --depth == 0) {
      return i;
    }
  }
  throw std::runtime_error("a brace that is never closed");
}

bool is_literal(std::string_view text) {
  if (text.empty()) return false;
  const bool has_sign = text[0] == '-' || text[0] == '+';
  return text.size() > size_t(has_sign) && std::isdigit(static_cast<unsigned char>(text[has_sign]));
}

int64_t integer_literal(std::string_view text) {
  text = trimmed(text);
  const bool is_negative = text.starts_with('-');
  if (is_negative || text.starts_with('+')) text = trimmed(text.substr(1));
  if (text.ends_with('U')) text.remove_suffix(1);
  const bool is_binary = text.starts_with("0b") || text.starts_with("0B");
  const std::string digits(is_binary ? text.substr(2) : text);
  size_t used = 0;
  const uint64_t value = std::stoull(digits, &used, is_binary ? 2 : 0);
  if (used != digits.size()) throw std::runtime_error("no integer: " + std::string(text));
  return int64_t(is_negative ? 0 - value : value);
}

uint64_t literal(std::string_view text, int bytes) {
  const std::string digits(text.size() > 2 ? text.substr(2) : "");
  uint64_t bits = 0;
  if (text.starts_with("0f") || text.starts_with("0F")) {
    bits = std::stoul(digits, nullptr, 16);
  } else if (text.starts_with("0d") || text.starts_with("0D")) {
    bits = std::stoull(digits, nullptr, 16);
  } else if (text.find('.') != std::string_view::npos) {
    const double value = std::stod(std::string(text));
    const float rounded = float(value);
    if (bytes == 8) std::memcpy(&bits, &value, 8);
    if (bytes == 4) std::memcpy(&bits, &rounded, 4);
    if (bytes != 8 && bytes != 4)
      throw std::runtime_error("a floating-point literal of " + std::to_string(bytes) + " bytes");
  } else {
    bits = uint64_t(integer_literal(text));
  }
  if (bytes == 0) return bits ? ~0ull : 0;
  return bytes < 8 ? bits & ((1ull << (8 * bytes)) - 1) : bits;
}

}  // namespace ptx
