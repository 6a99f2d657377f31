#include "core/decoder.h"

#include <algorithm>
#include <charconv>
#include <stdexcept>

#include "core/module.h"
#include "core/names.h"
#include "core/registers.h"
#include "core/report.h"
#include "core/statements.h"
#include "core/text.h"
#include "isa/opcode.h"

namespace ptx {

namespace {

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error(message); }

uint64_t rounded_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

// The header of an entry: its parameters, and .maxntid or .reqntid.
void parse_header(Kernel& kernel, std::string_view header) {
  const size_t open = header.find('('), close = header.find(')');
  if (open != std::string_view::npos && close != std::string_view::npos) {
    uint64_t offset = 0;
    for (std::string_view declaration : split(header.substr(open + 1, close - open - 1), ',')) {
      const Variable parameter = parse_variable(declaration);
      offset = rounded_up(offset, uint64_t(parameter.alignment));
      kernel.parameters.push_back({parameter.name, int(offset), int(parameter.bytes)});
      offset += parameter.bytes;
    }
    kernel.parameter_bytes = int(offset);
  }
  for (const char* directive : {".maxntid", ".reqntid"}) {
    const size_t at = header.find(directive);
    if (at == std::string_view::npos) continue;
    kernel.exact_threads = std::string_view(directive) == ".reqntid";
    kernel.max_threads = 1;
    std::string_view rest = header.substr(at + 8);
    for (std::string_view size : split(rest.substr(0, rest.find('.')), ','))
      kernel.max_threads *= uint32_t(integer_literal(words(size).at(0)));
  }
}

// Shared memory: variables of the module that have a size, those of the entry, then dynamic shared memory, at which all
// variables without a size begin.
void place_shared_variables(const Module& module, const std::vector<Statement>& statements, Kernel& kernel,
                            Names& names) {
  std::vector<Variable> variables;
  for (const Variable& variable : module.variables)
    if (variable.space == Space::shared) variables.push_back(variable);
  for (const Statement& statement : statements)
    if (statement.kind == Statement::Kind::directive && begins_with_word(statement.text, ".shared"))
      variables.push_back(parse_variable(statement.text));
  uint64_t end = 0, dynamic_alignment = 16;
  for (const Variable& variable : variables) {
    if (variable.bytes == 0) {
      dynamic_alignment = std::max<uint64_t>(dynamic_alignment, variable.alignment);
      continue;
    }
    end = rounded_up(end, uint64_t(variable.alignment));
    names.set_symbol(variable.name, end);
    end += variable.bytes;
  }
  kernel.static_shared = uint32_t(rounded_up(end, dynamic_alignment));
  for (const Variable& variable : variables)
    if (variable.bytes == 0) names.set_symbol(variable.name, kernel.static_shared);
}

class Decoder {
 public:
  Decoder(const Module& module, Kernel& kernel) : module_(module), kernel_(kernel) {}

  void decode(std::string_view text) {
    const size_t open = text.find('{');
    parse_header(kernel_, text.substr(0, open));
    const auto statements = parse_statements(text.substr(open + 1, closing_brace(text, open) - open - 1));
    for (const Parameter& parameter : kernel_.parameters) names_.set_symbol(parameter.name, uint64_t(parameter.offset));
    for (const auto& [name, memory] : module_.memory)
      names_.set_symbol(name, rounded_up(reinterpret_cast<uint64_t>(memory.get()), 256));
    place_shared_variables(module_, statements, kernel_, names_);
    for (const Statement& statement : statements) decode_statement(statement);
    end_code();
    resolve_labels();
    place_registers(kernel_, names_);
  }

 private:
  void decode_statement(const Statement& statement) {
    switch (statement.kind) {
      case Statement::Kind::open: names_.open_scope(); break;
      case Statement::Kind::close: names_.close_scope(); break;
      case Statement::Kind::label: labels_[statement.text] = int(kernel_.code.size()); break;
      case Statement::Kind::directive: decode_directive(statement.text); break;
      case Statement::Kind::instruction: decode_instruction(statement); break;
    }
  }

  void decode_directive(std::string_view text) {
    if (begins_with_word(text, ".reg"))
      names_.declare_registers(text.substr(4));
    else if (!begins_with_word(text, ".shared") && !begins_with_word(text, ".pragma"))
      fail("the directive `" + std::string(text) + "` is not supported");
  }

  void decode_instruction(const Statement& statement) {
    Instruction made;
    std::string reason;
    try {
      made = instruction(statement.text);
    } catch (const std::exception& error) {
      reason = std::string("   [") + error.what() + "]";
    }
    if (!made.execute) {
      made = {};
      made.execute = [](Warp& warp, const Instruction& self) { report(warp, self, "unsupported", self.text); };
      kernel_.unsupported.push_back(statement.text + reason);
    }
    made.text = statement.text + reason;
    made.file = statement.file;
    made.line = statement.line;
    made.index = int(kernel_.code.size());
    kernel_.code.push_back(std::move(made));
  }

  Instruction instruction(std::string_view text) {
    Instruction made;
    if (text.starts_with('@')) {
      const size_t end = text.find(' ');
      made.guarded = true;
      made.guard = names_.operand(text.substr(1, end - 1), 0);
      if (made.guard.bytes != 0) fail("the guard is no predicate");
      text = trimmed(text.substr(end));
    }
    const size_t end = text.find(' ');
    const auto opcode = split(text.substr(0, end), '.');
    const auto arguments =
        end == std::string_view::npos ? std::vector<std::string_view>{} : split(text.substr(end), ',');
    const auto rows = rows_of(opcode[0]);
    if (rows.empty()) fail("unknown opcode");
    const std::span modifiers = std::span(opcode).subspan(1);
    Form form;
    for (const Row& row : rows) {
      if (!matches(row, modifiers, form)) continue;
      made.type = form.type;
      made.from = form.type;
      made.counted = row.opcode->counted;
      if (made.counted == Class::integer && bytes_of(form.type) == 8) made.counted = Class::int64;
      decode_operands(row, form, arguments, made);
      made.execute = row.opcode->select(form, made);
      if (!made.execute) fail("not implemented");
      return made;
    }
    fail("modifiers are not implemented");
  }

  void decode_operands(const Row& row, const Form& form, const std::vector<std::string_view>& arguments,
                       Instruction& made) {
    size_t next = 0;
    int addresses = 0;
    for (std::string_view pattern : row.operands) {
      const bool is_optional = pattern.ends_with('?');
      if (next == arguments.size() && is_optional) break;
      if (next == arguments.size()) fail("too few operands");
      const std::string_view argument = arguments[next++];
      switch (pattern[0]) {
        case 'd': decode_registers(pattern[1], form.type, argument, made.d); break;
        case 's': decode_registers(pattern[1], form.type, argument, made.s); break;
        case 'm': made.s.push_back(decode_address(argument, made.offset[addresses++])); break;
        case 'i': made.literals.push_back(integer_literal(argument)); break;
        case 'l': jumps_.push_back({int(kernel_.code.size()), std::string(argument)}); break;
        default: fail("the table's pattern " + std::string(pattern));
      }
    }
    if (next != arguments.size()) fail("too many operands");
  }

  // A register, literal or symbol; `p|q`; or several in braces.
  void decode_registers(char size, Type type, std::string_view argument, std::vector<Operand>& operands) {
    std::vector<std::string_view> parts{argument};
    if (argument.starts_with('{'))
      parts = split(argument.substr(1, argument.size() - 2), ',');
    else if (argument.find('|') != std::string_view::npos)
      parts = split(argument, '|');
    const int whole = bytes_of(type);
    int expected = whole;
    if (size == 'w') expected = 2 * whole;
    if (size == '2' || size == '4' || size == '8') expected = size - '0';
    if (size == 'p') expected = 0;
    if (size == 'v') expected = whole / int(parts.size());
    const bool is_pair = !argument.starts_with('{') && parts.size() == 2;
    for (size_t i = 0; i < parts.size(); ++i) {
      const bool is_predicate = size == 'p' || (is_pair && i == 1);
      const Operand operand = names_.operand(parts[i], is_predicate ? 0 : expected);
      if (!operand.sink && is_predicate != (operand.bytes == 0)) fail("the kind of operand " + std::string(parts[i]));
      if (!operand.sink && !is_predicate && size != 'x' && operand.bytes != expected)
        fail("the size of operand " + std::string(parts[i]));
      operands.push_back(operand);
    }
  }

  // [register], [register+4], [symbol+4], [4]
  Operand decode_address(std::string_view text, int64_t& offset) {
    if (!text.starts_with('[') || !text.ends_with(']')) fail("the address " + std::string(text));
    text = trimmed(text.substr(1, text.size() - 2));
    size_t sign = text.find('+', 1);
    if (sign == std::string_view::npos) sign = text.find('-', 1);
    if (sign != std::string_view::npos) {
      const bool is_plus = text[sign] == '+';
      offset = integer_literal(text.substr(sign + is_plus));
    }
    const Operand base = names_.operand(trimmed(text.substr(0, sign)), 8);
    if (base.bytes != 4 && base.bytes != 8) fail("the address " + std::string(text));
    return base;
  }

  // What runs past the end returns.
  void end_code() {
    Instruction end;
    end.flow = Flow::exit;
    end.counted = Class::branch;
    end.execute = [](Warp&, const Instruction&) {};
    end.text = "(end)";
    end.index = int(kernel_.code.size());
    if (kernel_.code.empty() || kernel_.code.back().flow != Flow::exit || kernel_.code.back().guarded)
      kernel_.code.push_back(end);
  }

  void resolve_labels() {
    const int size = int(kernel_.code.size());
    for (const auto& [index, label] : jumps_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) fail("no label " + label);
      kernel_.code[index].target = std::min(found->second, size - 1);
    }
  }

  const Module& module_;
  Kernel& kernel_;
  Names names_;
  std::map<std::string, int, std::less<>> labels_;
  std::vector<std::pair<int, std::string>> jumps_;  // index of the branch, label
};

}  // namespace

std::unique_ptr<Kernel> decode(const Module& module, const std::string& name, std::string_view text) {
  auto kernel = std::make_unique<Kernel>();
  kernel->name = name;
  kernel->module = module.name;
  kernel->target = module.target;
  Decoder(module, *kernel).decode(text);
  return kernel;
}

}  // namespace ptx
