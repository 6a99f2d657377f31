// The text of an entry as a kernel: names become places in the register file, and instructions what executes them.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "core/program.h"

namespace ptx {

// Throws std::runtime_error where the text is no kernel. An instruction that is not implemented is noted in
// `unsupported` and reported when it is executed.
std::unique_ptr<Kernel> decode(const Module& module, const std::string& name, std::string_view text);

}  // namespace ptx
