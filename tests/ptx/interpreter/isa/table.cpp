#include <algorithm>
#include <map>
#include <unordered_map>

#include "core/text.h"
#include "isa/opcode.h"

namespace ptx {

namespace {

constexpr std::pair<std::string_view, std::string_view> kGroups[] = {
    {"<int>", "u16|s16|u32|s32|u64|s64"},
    {"<half>", "f16|bf16|f16x2|bf16x2"},
    {"<bits>", "b16|b32|b64"},
    // Operand types of mov, ld and st: what a register may hold.
    {"<any>", "b8|u8|s8|b16|u16|s16|f16|bf16|b32|u32|s32|f32|b64|u64|s64|f64"},
    // Comparisons of integers (PTX ISA, 9.3.1.1) and of floating-point numbers (9.3.1.2)
    {"<compare>", "eq|ne|lt|le|gt|ge|lo|ls|hi|hs"},
    {"<fcompare>", "eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan"},
    {"<bool>", "and|or|xor"},
    {"<space>", "global|shared|shared::cta"},
    {"<scope>", "cta|cluster|gpu|sys"},
    {"<semantics>", "relaxed|acquire|release|acq_rel"},
    // Hints of the caches change no value.
    {"<cache>", "ca|cg|cs|lu|cv|wb|wt"},
    {"<evict>", "L1::evict_normal|L1::evict_unchanged|L1::evict_first|L1::evict_last|L1::no_allocate"},
    {"<prefetch>", "L2::64B|L2::128B|L2::256B"},
};

std::string_view expanded(std::string_view choice) {
  for (const auto& [group, choices] : kGroups)
    if (group == choice) return choices;
  return choice;
}

Row split_row(const Opcode& opcode) {
  Row row{&opcode, {}, words(opcode.operands)};
  for (std::string_view word : words(opcode.modifiers)) {
    const bool is_optional = word.ends_with('?');
    if (is_optional) word.remove_suffix(1);
    row.modifiers.push_back({{}, is_optional});
    for (std::string_view choice : split(word, '|'))
      for (std::string_view one : split(expanded(choice), '|')) row.modifiers.back().choices.push_back(one);
  }
  return row;
}

using Table = std::map<std::string_view, std::vector<Row>>;

const Table& table() {
  static const Table rows = [] {
    Table made;
    for (const auto& chapter :
         {integer_arithmetic(), floating_point(), half_precision(), comparison(), logic_and_shift(), data_movement(),
          memory_access(), async_copy(), conversion(), control(), synchronisation(), warp_communication(), atomics(),
          matrix_movement(), matrix_multiply(), warpgroup_multiply()})
      for (const Opcode& opcode : chapter) made[opcode.name].push_back(split_row(opcode));
    return made;
  }();
  return rows;
}

}  // namespace

bool Form::has(std::string_view modifier) const {
  return std::find(parts.begin(), parts.end(), modifier) != parts.end();
}

std::span<const Row> rows_of(std::string_view name) {
  const auto found = table().find(name);
  if (found == table().end()) return {};
  return found->second;
}

// A star in a choice stands for a number.
static bool is_choice(std::string_view choice, std::string_view modifier) {
  const size_t star = choice.find('*');
  if (star == std::string_view::npos) return choice == modifier;
  const std::string_view before = choice.substr(0, star), after = choice.substr(star + 1);
  if (modifier.size() <= before.size() + after.size() || !modifier.starts_with(before) || !modifier.ends_with(after))
    return false;
  const std::string_view number = modifier.substr(star, modifier.size() - before.size() - after.size());
  return number.find_first_not_of("0123456789") == std::string_view::npos;
}

bool matches(const Row& row, std::span<const std::string_view> modifiers, Form& form) {
  form = {};
  size_t next = 0;
  for (const auto& word : row.modifiers) {
    const bool is_there =
        next < modifiers.size() && std::any_of(
                                       word.choices.begin(), word.choices.end(),
                                       [&](std::string_view choice) { return is_choice(choice, modifiers[next]); });
    if (!is_there && !word.is_optional) return false;
    form.parts.push_back(is_there ? modifiers[next++] : std::string_view());
    const Type type = type_named(form.parts.back());
    if (type == Type::none) continue;
    if (form.first_type == Type::none) form.first_type = type;
    form.type = type;
  }
  return next == modifiers.size();
}

std::vector<std::string_view> opcode_names() {
  std::vector<std::string_view> names;
  for (const auto& [name, rows] : table()) names.push_back(name);
  return names;
}

}  // namespace ptx
