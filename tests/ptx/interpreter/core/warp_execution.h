// Running a warp: its lanes execute in lockstep, those that part at a branch one path after the other.
#pragma once
#include "core/warp.h"

namespace ptx {

enum class Stop { at_barrier, done };

// Runs until a barrier or the end.
Stop run_warp(Warp& warp);

}  // namespace ptx
