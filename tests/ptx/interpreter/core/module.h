// A module's text as its entries, variables and source files.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "core/program.h"

namespace ptx {

// Throws std::runtime_error naming what is not understood.
std::unique_ptr<Module> parse_module(const std::string& name, std::string_view text);

// A declaration such as `.extern .shared .align 16 .b8 name[1024]`, `.param .u64 .ptr .global .align 1 name` or
// `.global .align 4 .b32 name[2] = {1, 2}`, without its semicolon.
Variable parse_variable(std::string_view declaration);

// Decodes an entry the first time it is asked for; null where the module has none of this name.
Kernel* kernel_named(Module& module, const std::string& entry);

}  // namespace ptx
