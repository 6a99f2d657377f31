#include "emulator/fiber.h"

#include <sys/mman.h>

#include <new>

// Keeps the registers that a call preserves and the stack pointer, and goes on where the other fiber kept its own.
extern "C" void motionrnn_ext_emulator_switch(void** keep, void* stack_pointer);
asm(R"(
.text
.globl motionrnn_ext_emulator_switch
.hidden motionrnn_ext_emulator_switch
.type motionrnn_ext_emulator_switch,@function
motionrnn_ext_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size motionrnn_ext_emulator_switch,.-motionrnn_ext_emulator_switch
)");

namespace motionrnn_ext::emulator {
namespace {

constexpr size_t kStackBytes = 256 * 1024;  // what is not touched takes no memory
constexpr size_t kGuardBytes = 4096;

Fiber* left = nullptr;  // the fiber that was switched from

sanitizer::Stack new_stack() {
  const size_t bytes = kGuardBytes + kStackBytes;
  void* const memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  char* const bottom = static_cast<char*>(memory) + kGuardBytes;
  if (mprotect(bottom, kStackBytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  return {.bottom = bottom, .bytes = kStackBytes};
}

}  // namespace

void start(Fiber& fiber, void (*entry)()) {
  if (fiber.stack.bottom == nullptr) fiber.stack = new_stack();
  sanitizer::start(fiber.stack);
  const char* const end = static_cast<const char*>(fiber.stack.bottom) + fiber.stack.bytes;
  void** top = reinterpret_cast<void**>(const_cast<char*>(end));
  *--top = nullptr;  // entry returns nowhere
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // registers
  fiber.stack_pointer = top;
}

void start_host(Fiber& host) { sanitizer::start_host(host.stack); }

void switch_fiber(Fiber& from, Fiber& to, bool from_ends) {
  left = &from;
  sanitizer::before_switch(from.stack, to.stack, from_ends);
  motionrnn_ext_emulator_switch(&from.stack_pointer, to.stack_pointer);
  arrive(from);
}

void arrive(Fiber& self) { sanitizer::after_switch(self.stack, left->stack); }

}  // namespace motionrnn_ext::emulator
