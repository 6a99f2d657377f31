// Places in the register file.
#pragma once
#include "core/names.h"
#include "core/program.h"

namespace ptx {

// Gives the operands of `kernel.code` their places and fills in the kernel's constants and special registers.
void place_registers(Kernel& kernel, const Names& names);

}  // namespace ptx
