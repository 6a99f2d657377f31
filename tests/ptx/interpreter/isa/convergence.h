// What .sync and .aligned ask of the lanes.
#pragma once
#include <bit>

#include "core/warp.h"

namespace ptx {

// Reports lanes of `members` that do not execute the instruction together with the others.
void check_converged(const Warp& warp, const Instruction& in, Mask members);

// The member mask in an operand, which all active lanes have to give alike.
Mask members_of(Warp& warp, const Instruction& in, const Operand& operand);

}  // namespace ptx
