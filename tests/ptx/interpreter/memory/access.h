// An access of a warp to memory, with all that is checked of it.
#pragma once
#include <array>
#include <cstdint>

#include "core/warp.h"
#include "memory/regions.h"

namespace ptx {

enum Access : uint8_t {
  kRead = 1,
  kWrite = 2,
  kReadOnly = 4,  // ld.global.nc: through a cache that no write updates
  kAtomic = 8,
  kUncounted = 16,   // bank conflicts of what the hardware does by itself are unknown
  kAsyncProxy = 32,  // wgmma reads shared memory past the generic proxy
};

using Addresses = std::array<uint64_t, kLanes>;
using Pointers = std::array<uint8_t*, kLanes>;

// The addresses in a register, plus an offset.
Addresses addresses_of(Warp& warp, const Operand& base, int64_t offset);

// Checks the lanes of `lanes`: bounds, alignment, races, and that what is read of shared memory was written. Returns
// where each lane's bytes lie; null for idle lanes and where there is nothing (which is reported).
Pointers access(Warp& warp, const Instruction& in, Space space, Addresses addresses, Mask lanes, int bytes, int kind);

// Parts of it, each in a file of its own.
void check_shared_races(Warp& warp, const Instruction& in, uint64_t address, int lane, int bytes, int kind);
void check_global_races(Warp& warp, const Instruction& in, Extent& extent, uint64_t address, int lane, int bytes,
                        int kind);
void count_global(Count& count, const Addresses& addresses, Mask lanes, int bytes);
void count_shared(Count& count, const Addresses& addresses, Mask lanes, int bytes);

}  // namespace ptx
