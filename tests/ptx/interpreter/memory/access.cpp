#include "memory/access.h"

#include <bit>
#include <string>

#include "core/options.h"
#include "core/report.h"

namespace ptx {

Addresses addresses_of(Warp& warp, const Operand& base, int64_t offset) {
  Addresses addresses;
  if (base.bytes == 8) {
    const auto* values = warp.lanes<uint64_t>(base);
    for (int lane = 0; lane < kLanes; ++lane) addresses[lane] = values[lane] + uint64_t(offset);
  } else {
    const auto* values = warp.lanes<uint32_t>(base);
    for (int lane = 0; lane < kLanes; ++lane) addresses[lane] = uint32_t(values[lane] + uint32_t(offset));
  }
  return addresses;
}

namespace {

std::string place(const char* space, uint64_t address, int bytes, int lane) {
  return std::string(space) + " address " + hexadecimal(address) + " for " + std::to_string(bytes) + " bytes, lane " +
         std::to_string(lane);
}

bool is_shared(uint64_t generic) { return generic >= kSharedWindow && generic < kParamWindow; }

// The space that the lanes' generic addresses point to. Addresses of shared memory become those within it.
Space resolve_generic(Warp& warp, const Instruction& in, Addresses& addresses, Mask lanes) {
  const bool first_is_shared = is_shared(addresses[std::countr_zero(lanes)]);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    if (is_shared(addresses[lane]) != first_is_shared)
      report(warp, in, "unsupported", "an access of lanes to different state spaces");
    if (first_is_shared) addresses[lane] -= kSharedWindow;
  }
  return first_is_shared ? Space::shared : Space::global;
}

uint8_t* shared_pointer(Warp& warp, const Instruction& in, uint64_t address, int lane, int bytes, int kind) {
  Block& block = *warp.block;
  if (address % uint64_t(bytes)) {
    report(warp, in, "misaligned", place("shared", address, bytes, lane));
    return nullptr;
  }
  if (address + uint64_t(bytes) > block.shared.size()) {
    report(warp, in, "out of range",
           place("shared", address, bytes, lane) + "; the block has " + std::to_string(block.shared.size()));
    return nullptr;
  }
  if (options.check_races) check_shared_races(warp, in, address, lane, bytes, kind);
  return block.shared.data() + address;
}

uint8_t* global_pointer(Warp& warp, const Instruction& in, uint64_t address, int lane, int bytes, int kind) {
  if (address % uint64_t(bytes)) {
    report(warp, in, "misaligned", place("global", address, bytes, lane));
    return nullptr;
  }
  if (address < in.extent_begin || address + uint64_t(bytes) > in.extent_end) {
    const int found = extent_of(address, uint64_t(bytes));
    if (found < 0) {
      report(warp, in, "out of range", place("global", address, bytes, lane) + "; " + nearest_extent(address));
      return nullptr;
    }
    in.extent = found;
    in.extent_begin = extents()[found].begin;
    in.extent_end = extents()[found].end;
  }
  if (options.check_global) check_global_races(warp, in, extents()[in.extent], address, lane, bytes, kind);
  return reinterpret_cast<uint8_t*>(address);
}

}  // namespace

Pointers access(Warp& warp, const Instruction& in, Space space, Addresses addresses, Mask lanes, int bytes, int kind) {
  Pointers pointers{};
  if (!lanes) return pointers;
  if (space == Space::generic) space = resolve_generic(warp, in, addresses, lanes);
  const auto pointer = space == Space::shared ? shared_pointer : global_pointer;
  for (int lane = 0; lane < kLanes; ++lane)
    if (lanes >> lane & 1) pointers[lane] = pointer(warp, in, addresses[lane], lane, bytes, kind);
  if (!options.stats || (kind & kUncounted)) return pointers;
  Count& count = warp.block->kernel->counts[in.index];
  ++count.requests;
  (space == Space::shared ? count_shared : count_global)(count, addresses, lanes, bytes);
  return pointers;
}

}  // namespace ptx
