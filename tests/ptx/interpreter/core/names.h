// The names of a kernel: registers in their scopes, special registers, variables and parameters.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/program.h"

namespace ptx {

// Operands are handed out with their register's number for a place; place_registers gives them their places at the end.
class Names {
 public:
  struct Register {
    int bytes;  // 0: a predicate
    std::optional<uint64_t> constant;
    std::optional<SpecialRegister> special;
  };

  void open_scope() { scopes_.emplace_back(); }
  void close_scope() {
    if (scopes_.size() > 1) scopes_.pop_back();
  }
  // What follows .reg, such as `.b32 %r<100>, %x`
  void declare_registers(std::string_view declaration);
  // The address of a variable, in its state space, or the offset of a parameter.
  void set_symbol(const std::string& name, uint64_t value) { symbols_[name] = value; }

  // A register, `_`, a literal or a symbol, perhaps negated (!%p). `bytes` is the size of literals and symbols.
  Operand operand(std::string_view text, int bytes);

  const std::vector<Register>& registers() const { return registers_; }

 private:
  struct Range {
    uint32_t first, count;
  };
  using Scope = std::map<std::string, Range, std::less<>>;  // %r of %r<100>, or a whole name with count 0

  uint32_t add(int bytes);
  uint32_t constant(uint64_t value, int bytes);
  std::optional<uint32_t> find(std::string_view name) const;

  std::vector<Register> registers_;
  std::optional<uint32_t> sink_;  // what is written to `_` goes here
  std::vector<Scope> scopes_{1};
  std::map<std::pair<uint64_t, int>, uint32_t> constants_;
  std::map<SpecialRegister, uint32_t> specials_;
  std::map<std::string, uint64_t, std::less<>> symbols_;
};

}  // namespace ptx
