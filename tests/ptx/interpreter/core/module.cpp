#include "core/module.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "core/control_flow.h"
#include "core/decoder.h"
#include "core/text.h"
#include "memory/regions.h"

namespace ptx {

namespace {

int leading_integer(std::string_view text) {
  int value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

Space space_named(std::string_view directive) {
  if (directive == ".shared") return Space::shared;
  if (directive == ".global") return Space::global;
  if (directive == ".const") return Space::constant;
  if (directive == ".local") return Space::local;
  if (directive == ".param") return Space::param;
  return Space::generic;
}

// The values of `{1, 2}` or `1`, `unit` bytes each.
std::vector<uint8_t> initial_values(std::string_view list, int unit) {
  list = trimmed(list);
  if (list.starts_with('{')) list = list.substr(1, closing_brace(list, 0) - 1);
  std::vector<uint8_t> bytes;
  for (std::string_view value : split(list, ',')) {
    const uint64_t bits = literal(value, unit);
    const auto* first = reinterpret_cast<const uint8_t*>(&bits);
    bytes.insert(bytes.end(), first, first + unit);
  }
  return bytes;
}

// A directive that ends with its line. Returns whether it is one.
bool parse_line_directive(Module& module, std::string_view line) {
  if (begins_with_word(line, ".target")) {
    const size_t at = line.find("sm_");
    if (at != std::string_view::npos) module.target = leading_integer(line.substr(at + 3));
    return true;
  }
  if (begins_with_word(line, ".file")) {
    const size_t open = line.find('"'), close = line.find('"', open + 1);
    if (close != std::string_view::npos)
      module.files[leading_integer(trimmed(line.substr(5)))] = line.substr(open + 1, close - open - 1);
    return true;
  }
  return begins_with_word(line, ".version") || begins_with_word(line, ".address_size") ||
         begins_with_word(line, ".loc") || line.starts_with("@@DWARF");
}

void add_entry(Module& module, std::string_view text) {
  const size_t begin = text.find(".entry");
  const std::string_view rest = trimmed(text.substr(begin + 6));
  const std::string_view name = rest.substr(0, rest.find_first_of("( \t\r\n{"));
  module.entries[std::string(name)] = text.substr(begin);
}

void add_variable(Module& module, std::string_view declaration) {
  Variable variable = parse_variable(declaration);
  if (variable.space == Space::global || variable.space == Space::constant) {
    // An alignment of 256 bytes is what cudaMalloc guarantees; new does not.
    const uint64_t room = variable.bytes + 256;
    auto& memory = module.memory[variable.name] = std::make_unique<uint8_t[]>(room);
    const uint64_t at = (reinterpret_cast<uint64_t>(memory.get()) + 255) / 256 * 256;
    std::memcpy(reinterpret_cast<void*>(at), variable.initial.data(), variable.initial.size());
    register_region(at, variable.bytes, variable.name);
  }
  module.variables.push_back(std::move(variable));
}

}  // namespace

Variable parse_variable(std::string_view declaration) {
  Variable variable;
  const size_t equals = declaration.find('=');
  std::string_view head = trimmed(declaration.substr(0, equals)), name;
  uint64_t count = 1;
  const size_t bracket = head.find('[');
  if (bracket != std::string_view::npos) {
    for (size_t at = bracket; at != std::string_view::npos; at = head.find('[', at + 1))
      count *= uint64_t(leading_integer(trimmed(head.substr(at + 1))));
    head = head.substr(0, bracket);
  }
  int unit = 0, vector = 1;
  bool is_pointee = false;  // what .ptr says is of the memory that a parameter points to
  const auto parts = words(head);
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string_view word = parts[i];
    if (word == ".extern") {
      variable.is_extern = true;
    } else if (word == ".ptr") {
      is_pointee = true;
    } else if (word == ".align") {
      if (!is_pointee) variable.alignment = leading_integer(parts.at(i + 1));
      ++i;
    } else if (word == ".v2" || word == ".v4") {
      vector = word[2] - '0';
    } else if (word[0] != '.') {
      name = word;
    } else if (space_named(word) != Space::generic && !is_pointee) {
      variable.space = space_named(word);
    } else if (type_named(word.substr(1)) != Type::none) {
      unit = bytes_of(type_named(word.substr(1)));
    }
  }
  if (!unit || name.empty() || name.find(',') != std::string_view::npos)
    throw std::runtime_error("the declaration `" + std::string(declaration) + "` is not understood");
  variable.name = name;
  variable.alignment = std::max(variable.alignment, unit * vector);
  variable.bytes = count * uint64_t(unit * vector);
  if (equals != std::string_view::npos) variable.initial = initial_values(declaration.substr(equals + 1), unit);
  if (variable.initial.size() > variable.bytes)
    throw std::runtime_error("more initial values than " + variable.name + " holds");
  return variable;
}

std::unique_ptr<Module> parse_module(const std::string& name, std::string_view original) {
  auto module = std::make_unique<Module>();
  module->name = name;
  const std::string kept = without_comments(original);
  const std::string_view text = kept;
  for (size_t at = 0; at < text.size();) {
    at = text.find_first_not_of(" \t\r\n", at);
    if (at == std::string_view::npos) break;
    const std::string_view rest = text.substr(at), line = trimmed(rest.substr(0, rest.find('\n')));
    if (parse_line_directive(*module, line)) {
      at += std::min(rest.find('\n'), rest.size());
      continue;
    }
    size_t end = rest.find_first_of(";{");
    if (end == std::string_view::npos) break;
    const std::string_view head = rest.substr(0, end);
    const bool has_body = head.find(".entry") != std::string_view::npos ||
                          head.find(".func") != std::string_view::npos || begins_with_word(head, ".section");
    if (rest[end] == '{') end = has_body ? closing_brace(rest, end) : rest.find(';', end);
    if (end == std::string_view::npos) break;
    if (head.find(".entry") != std::string_view::npos) {
      add_entry(*module, rest.substr(0, end + 1));
    } else if (!has_body) {
      const auto parts = words(head);
      const bool is_variable =
          std::any_of(parts.begin(), parts.end(), [](auto word) { return space_named(word) != Space::generic; });
      if (is_variable) add_variable(*module, rest.substr(0, end));
    }
    at += end + 1;
  }
  return module;
}

Kernel* kernel_named(Module& module, const std::string& entry) {
  const auto known = module.kernels.find(entry);
  if (known != module.kernels.end()) return known->second.get();
  const auto text = module.entries.find(entry);
  if (text == module.entries.end()) return nullptr;
  auto kernel = decode(module, entry, text->second);
  find_joins(*kernel);
  kernel->counts.assign(kernel->code.size(), {});
  return (module.kernels[entry] = std::move(kernel)).get();
}

}  // namespace ptx
