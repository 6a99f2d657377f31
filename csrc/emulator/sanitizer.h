// Calls that tell AddressSanitizer and ThreadSanitizer about fibers. They are empty where neither is used.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(MOTIONRNN_EXT_TSAN)  // not __SANITIZE_THREAD__: the file that includes this is compiled without it
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreWritesBegin(const char* file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char* file, int line);
#endif

namespace motionrnn_ext::emulator::sanitizer {

struct Stack {
  const void* bottom = nullptr;
  size_t bytes = 0;
  void* fake = nullptr;    // AddressSanitizer's
  void* thread = nullptr;  // ThreadSanitizer's
};

// A stack that starts anew. What the last run left in its uppermost frame, which never returns, is forgotten.
inline void start([[maybe_unused]] Stack& stack) {
#if defined(__SANITIZE_ADDRESS__)
  constexpr size_t kUppermost = 4096;
  stack.fake = nullptr;
  __asan_unpoison_memory_region(static_cast<const char*>(stack.bottom) + stack.bytes - kUppermost, kUppermost);
#endif
#if defined(MOTIONRNN_EXT_TSAN)
  if (stack.thread == nullptr) stack.thread = __tsan_create_fiber(0);
#endif
}

// The stack of the CPU thread that runs the fibers.
inline void start_host([[maybe_unused]] Stack& stack) {
#if defined(MOTIONRNN_EXT_TSAN)
  stack.thread = __tsan_get_current_fiber();
#endif
}

// On the stack that is left, for the last time if it `ends`.
inline void before_switch([[maybe_unused]] Stack& from, [[maybe_unused]] const Stack& to, [[maybe_unused]] bool ends) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake, to.bottom, to.bytes);
#endif
#if defined(MOTIONRNN_EXT_TSAN)
  __tsan_switch_to_fiber(to.thread, __tsan_switch_to_fiber_no_sync);
#endif
}

// On the stack that was switched to. Tells the host's bounds, which only the sanitizer knows.
inline void after_switch([[maybe_unused]] Stack& self, [[maybe_unused]] Stack& previous) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self.fake, &previous.bottom, &previous.bytes);
#endif
}

// A thread's accesses before its release of an address come before another's accesses after its acquire.
inline void release([[maybe_unused]] void* address) {
#if defined(MOTIONRNN_EXT_TSAN)
  __tsan_release(address);
#endif
}
inline void acquire([[maybe_unused]] void* address) {
#if defined(MOTIONRNN_EXT_TSAN)
  __tsan_acquire(address);
#endif
}

// While an object of this type lives, allocating or freeing memory counts as no access to it.
struct Unseen {
#if defined(MOTIONRNN_EXT_TSAN)
  Unseen() { AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Unseen() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__); }
#else
  Unseen() {}  // user-provided: an unused variable of this type is no warning
#endif
  Unseen(const Unseen&) = delete;
};

}  // namespace motionrnn_ext::emulator::sanitizer
