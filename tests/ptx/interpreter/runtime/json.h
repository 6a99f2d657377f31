// JSON, written from left to right.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

namespace ptx {

class Json {
 public:
  Json& open(char bracket) {
    separate();
    text_ += bracket;
    is_first_ = true;
    return *this;
  }
  Json& close(char bracket) {
    text_ += bracket;
    is_first_ = false;
    return *this;
  }
  Json& name(std::string_view name) {
    value(name);
    text_ += ':';
    is_first_ = true;
    return *this;
  }
  template <class T>
  Json& key(std::string_view name_of, const T& what) {
    return name(name_of).value(what);
  }
  Json& value(std::string_view what) {
    separate();
    text_ += '"';
    for (char c : what) {
      if (c == '"' || c == '\\') text_ += '\\';
      text_ += static_cast<unsigned char>(c) < 32 ? ' ' : c;
    }
    text_ += '"';
    return *this;
  }
  Json& value(const char* what) { return value(std::string_view(what)); }
  Json& value(const std::string& what) { return value(std::string_view(what)); }
  Json& value(bool what) { return raw(what ? "true" : "false"); }
  template <class T>
    requires std::is_integral_v<T>
  Json& value(T what) {
    return raw(std::to_string(what));
  }
  Json& value(const std::array<uint32_t, 3>& what) {
    return open('[').value(what[0]).value(what[1]).value(what[2]).close(']');
  }
  const std::string& text() const { return text_; }

 private:
  void separate() {
    if (!is_first_) text_ += ',';
    is_first_ = false;
  }
  Json& raw(const std::string& what) {
    separate();
    text_ += what;
    return *this;
  }

  std::string text_;
  bool is_first_ = true;
};

}  // namespace ptx
