// The modules that were loaded, and launches of their kernels.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/launch.h"
#include "core/program.h"

namespace ptx {

struct Launched {
  std::string kernel;
  Size grid, block;
  uint32_t shared;
};

std::vector<std::unique_ptr<Module>>& loaded_modules();
std::vector<Launched>& launches();  // since they were last asked for

// Throws std::runtime_error where the text is no PTX.
Module& load(const std::string& name, std::string_view text);
// The loaded module that has the entry, or null.
Module* module_with(const std::string& entry);

// Runs an entry on the values that `arguments` point to, one pointer for each parameter (null: it is never read).
// Returns false where the launch itself is wrong, which is reported; throws std::runtime_error where there is no such
// entry.
bool run(Module& module, const std::string& entry, Size grid, Size block, uint32_t shared, void** arguments);

}  // namespace ptx
