#include "core/names.h"

#include <charconv>
#include <stdexcept>

#include "core/text.h"

namespace ptx {

void Names::declare_registers(std::string_view declaration) {
  declaration = trimmed(declaration);
  const size_t end = declaration.find(' ');
  const Type type = declaration.starts_with('.') ? type_named(declaration.substr(1, end - 1)) : Type::none;
  if (type == Type::none || end == std::string_view::npos)
    throw std::runtime_error("the declaration `.reg " + std::string(declaration) + "` is not understood");
  for (std::string_view name : split(declaration.substr(end), ',')) {
    const size_t bracket = name.find('<');
    const uint32_t first = uint32_t(registers_.size());
    uint32_t count = 0;
    if (bracket != std::string_view::npos)
      count = uint32_t(integer_literal(name.substr(bracket + 1, name.find('>') - bracket - 1)));
    for (uint32_t i = 0; i < std::max(count, 1u); ++i) add(bytes_of(type));
    scopes_.back()[std::string(trimmed(name.substr(0, bracket)))] = {first, count};
  }
}

Operand Names::operand(std::string_view text, int bytes) {
  Operand operand;
  text = trimmed(text);
  if (text == "_") {
    operand.sink = true;
    operand.at = sink_ ? *sink_ : *(sink_ = add(16));
    return operand;
  }
  if (text.starts_with('!')) {
    operand.negated = true;
    text = trimmed(text.substr(1));
  }
  if (const auto declared = find(text)) {
    operand.at = *declared;
  } else if (const auto special = special_register_named(text)) {
    const auto [known, is_new] = specials_.try_emplace(*special, 0);
    if (is_new) {
      known->second = add(bytes_of(*special));
      registers_.back().special = *special;
    }
    operand.at = known->second;
  } else if (is_literal(text)) {
    operand.at = constant(literal(text, bytes), bytes);
  } else if (text == "WARP_SZ") {
    operand.at = constant(kLanes, bytes);
  } else if (const auto symbol = symbols_.find(text); symbol != symbols_.end()) {
    operand.at = constant(symbol->second, bytes);
  } else {
    throw std::runtime_error("unknown operand " + std::string(text));
  }
  operand.bytes = uint8_t(registers_[operand.at].bytes);
  return operand;
}

uint32_t Names::add(int bytes) {
  registers_.push_back({bytes, std::nullopt, std::nullopt});
  return uint32_t(registers_.size() - 1);
}

uint32_t Names::constant(uint64_t value, int bytes) {
  const auto [known, is_new] = constants_.try_emplace({value, bytes}, 0);
  if (is_new) {
    known->second = add(bytes);
    registers_.back().constant = value;
  }
  return known->second;
}

std::optional<uint32_t> Names::find(std::string_view name) const {
  const size_t digits = name.find_last_not_of("0123456789") + 1;
  const std::string_view stem = name.substr(0, digits), number = name.substr(digits);
  uint32_t index = 0;
  std::from_chars(number.data(), number.data() + number.size(), index);
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    if (const auto whole = scope->find(name); whole != scope->end() && whole->second.count == 0)
      return whole->second.first;
    if (number.empty()) continue;
    if (const auto range = scope->find(stem); range != scope->end() && index < range->second.count)
      return range->second.first + index;
  }
  return std::nullopt;
}

}  // namespace ptx
