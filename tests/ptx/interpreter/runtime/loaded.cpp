#include "runtime/loaded.h"

#include <cstring>
#include <stdexcept>

#include "core/module.h"

namespace ptx {

std::vector<std::unique_ptr<Module>>& loaded_modules() {
  static std::vector<std::unique_ptr<Module>> modules;
  return modules;
}

std::vector<Launched>& launches() {
  static std::vector<Launched> made;
  return made;
}

Module& load(const std::string& name, std::string_view text) {
  return *loaded_modules().emplace_back(parse_module(name, text));
}

Module* module_with(const std::string& entry) {
  for (const auto& module : loaded_modules())
    if (module->entries.count(entry)) return module.get();
  return nullptr;
}

bool run(Module& module, const std::string& entry, Size grid, Size block, uint32_t shared, void** arguments) {
  Kernel* kernel = kernel_named(module, entry);
  if (!kernel) throw std::runtime_error("no kernel " + entry + " in " + module.name);
  std::vector<uint8_t> parameters(size_t(kernel->parameter_bytes));
  for (size_t i = 0; i < kernel->parameters.size(); ++i) {
    const Parameter& parameter = kernel->parameters[i];
    if (arguments[i]) std::memcpy(parameters.data() + parameter.offset, arguments[i], size_t(parameter.bytes));
  }
  launches().push_back({entry, grid, block, shared});
  return launch(*kernel, grid, block, shared, parameters.data());
}

}  // namespace ptx
