// The threads of one CUDA block, run as fibers on the calling CPU thread, and the points where they meet.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace motionrnn_ext::emulator {

using Where = std::source_location;

constexpr unsigned kWarpSize = 32;

// A fault of a kernel or its launch; the message names the block, the thread and the line.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The running thread's coordinates. Blocks are one-dimensional: thread.x is the thread's number.
struct Here {
  dim3 grid_size, block_size;
  uint3 block, thread;
  unsigned char* shared;  // the block's dynamic shared memory
};
extern Here here;

// Runs `thread` once per thread of every block, block after block.
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

// Appends the place of a kernel in its library, in bytes, to the file that MOTIONRNN_EXT_LAUNCHES names: a line for
// each kernel that the process launches.
void note_launch(const void* kernel);

// Ends the launch with an Error about the running thread.
[[noreturn]] void fail(const std::string& problem, Where where);

// Waits for every thread of the block. A thread that has returned never comes.
void synchronize_block(const char* operation, Where where);

// Waits for the lanes of `mask` in the running thread's warp, and orders their memory accesses.
void synchronize_warp(uint32_t mask, const char* operation, Where where);

// The value that a lane shows to the other lanes in an exchange.
struct alignas(16) Slot {
  unsigned char bytes[64];
};

// Waits for the lanes of `mask` and returns what each of them brought, by lane. It stays valid until this lane's next
// exchange. As on the device, an exchange orders no memory accesses.
const Slot* exchange(uint32_t mask, const void* value, size_t bytes, const char* operation, Where where);

template <class Value>
class Exchanged {
 public:
  Exchanged(uint32_t mask, const Value& value, const char* operation, Where where)
      : slots_(exchange(mask, &value, sizeof(Value), operation, where)) {
    static_assert(std::is_trivially_copyable_v<Value> && sizeof(Value) % 4 == 0 && sizeof(Value) <= sizeof(Slot));
  }
  const Value& operator[](unsigned lane) const { return *reinterpret_cast<const Value*>(slots_[lane].bytes); }

 private:
  const Slot* slots_;
};

inline unsigned lane() { return here.thread.x % kWarpSize; }

}  // namespace motionrnn_ext::emulator
