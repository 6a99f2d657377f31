// Running a kernel.
#pragma once
#include <array>
#include <cstdint>

#include "core/program.h"

namespace ptx {

using Size = std::array<uint32_t, 3>;  // of a grid in blocks, or of a block in threads

// Runs all blocks. `parameters` are laid out as the kernel's. Reports a launch that the target would refuse, and
// returns false where it cannot be run.
bool launch(Kernel& kernel, Size grid, Size block, uint32_t dynamic_shared, const uint8_t* parameters);

// Shared memory of a block, in bytes: what any kernel may have, and what one may ask for (cudaFuncSetAttribute).
constexpr uint32_t kSharedWithoutAsking = 48 * 1024;
uint32_t largest_shared(int target);

}  // namespace ptx
