// Where the paths of a branch meet again.
#pragma once
#include "core/program.h"

namespace ptx {

// Fills `kernel.join`: lanes that part at a branch run together again from its immediate post-dominator on, the first
// instruction that every path from the branch to the exit passes.
void find_joins(Kernel& kernel);

// Places of the instructions that may follow the one at `index`; code.size() stands for the exit.
std::vector<int> successors(const Kernel& kernel, int index);

}  // namespace ptx
