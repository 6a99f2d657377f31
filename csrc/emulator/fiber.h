// Functions that run in turns on stacks of their own.
#pragma once

#include "emulator/sanitizer.h"

namespace motionrnn_ext::emulator {

struct Fiber {
  void* stack_pointer = nullptr;  // while another fiber runs
  sanitizer::Stack stack;
};

// Lets `fiber` begin with `entry` when it is switched to. `entry` begins with `arrive` and never returns.
void start(Fiber& fiber, void (*entry)());

// The CPU thread's own stack as a fiber.
void start_host(Fiber& host);

// Runs `to` until it or another fiber switches back to `from`, never if `from` ends.
void switch_fiber(Fiber& from, Fiber& to, bool from_ends);
void arrive(Fiber& self);

}  // namespace motionrnn_ext::emulator
