// The table of opcodes: one row for each way that the ISA writes an instruction.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/program.h"

namespace ptx {

// An instruction's modifiers as a row of the table understands them. A row lists all that it implements, in the ISA's
// order; an instruction with any other is unsupported, so that none is ever ignored.
struct Form {
  std::vector<std::string_view> parts;  // by the words of the row's pattern; "" where an optional one is absent
  Type type = Type::none;               // of the instruction: the last modifier that names a type
  Type first_type = Type::none;         // and the first one, that of the result where there are two

  bool has(std::string_view modifier) const;
};

// Chooses what executes an instruction whose operands are known; null where the form is not implemented.
using Select = Execute (*)(const Form&, Instruction&);

struct Opcode {
  std::string_view name;
  // Words that match a modifier each: `a|b` either, `a?` perhaps, `a*` a number after a, `<int>` a group of table.cpp.
  std::string_view modifiers;
  // Words that match an operand each, perhaps (`?`). `d` is a destination and `s` a source, followed by their size:
  // that of the type (t), twice that (w), 2, 4 or 8 bytes, a predicate (p), any (x), parts of the type's (v); `{}` is
  // any number of registers. `m` is an address, `l` a label, `i` a literal.
  std::string_view operands;
  Class counted;
  Select select;
};

// The chapters of PTX ISA, 9.7.
std::span<const Opcode> integer_arithmetic();
std::span<const Opcode> floating_point();
std::span<const Opcode> half_precision();
std::span<const Opcode> comparison();
std::span<const Opcode> logic_and_shift();
std::span<const Opcode> data_movement();
std::span<const Opcode> memory_access();
std::span<const Opcode> async_copy();
std::span<const Opcode> conversion();
std::span<const Opcode> control();
std::span<const Opcode> synchronisation();
std::span<const Opcode> warp_communication();
std::span<const Opcode> atomics();
std::span<const Opcode> matrix_movement();
std::span<const Opcode> matrix_multiply();
std::span<const Opcode> warpgroup_multiply();

// A row with its patterns split.
struct Row {
  const Opcode* opcode;
  struct Word {
    std::vector<std::string_view> choices;
    bool is_optional;
  };
  std::vector<Word> modifiers;
  std::vector<std::string_view> operands;
};

// Rows of an opcode's name; empty where it is not known.
std::span<const Row> rows_of(std::string_view name);
// Whether the modifiers are those of the row; fills `form`.
bool matches(const Row& row, std::span<const std::string_view> modifiers, Form& form);
// Names of all opcodes.
std::vector<std::string_view> opcode_names();

}  // namespace ptx
