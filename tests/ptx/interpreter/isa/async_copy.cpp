// PTX ISA, 9.7.9.25: cp.async. The bytes are read when the copy is issued, and arrive when a thread waits for them.
#include <algorithm>

#include "core/report.h"
#include "isa/lanes.h"
#include "memory/access.h"

namespace ptx {

namespace {

// Instruction::variant: what a further operand says
enum Further { kNothing, kSourceBytes, kIgnoreSource };

// How many bytes a lane reads; the rest of the destination becomes 0.
uint32_t bytes_to_read(Warp& warp, const Instruction& in, int lane) {
  if (in.variant == kSourceBytes) return std::min<uint32_t>(uint32_t(warp.get(in.s[2], lane)), in.element_bytes);
  if (in.variant == kIgnoreSource && (warp.predicate(in.s[2]) >> lane & 1)) return 0;
  return in.element_bytes;
}

// Sources: destination, source, what is further.
void copy(Warp& warp, const Instruction& in) {
  const Addresses to = addresses_of(warp, in.s[0], in.offset[0]), from = addresses_of(warp, in.s[1], in.offset[1]);
  Mask reading = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    if (warp.has(lane) && bytes_to_read(warp, in, lane) > 0) reading |= 1u << lane;
  const Pointers pointers = access(warp, in, Space::global, from, reading, in.element_bytes, kRead);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.has(lane)) continue;
    const uint64_t address = to[lane] >= kSharedWindow ? to[lane] - kSharedWindow : to[lane];
    AsyncCopy copy{uint32_t(address), uint8_t(lane), in.element_bytes, {}};
    if (pointers[lane]) std::memcpy(copy.data.data(), pointers[lane], bytes_to_read(warp, in, lane));
    warp.copies.push_back(copy);
  }
}

void commit(Warp& warp, const Instruction&) {
  warp.committed.push_back(std::move(warp.copies));
  warp.copies.clear();
}

void arrive(Warp& warp, const Instruction& in, const std::vector<AsyncCopy>& copies) {
  for (const AsyncCopy& copy : copies) {
    Addresses addresses{};
    addresses[copy.lane] = copy.destination;
    const Pointers pointers =
        access(warp, in, Space::shared, addresses, 1u << copy.lane, copy.bytes, kWrite | kUncounted);
    if (uint8_t* at = pointers[copy.lane]) std::memcpy(at, copy.data.data(), copy.bytes);
  }
}

void wait(Warp& warp, const Instruction& in, size_t left_open) {
  while (warp.committed.size() > left_open) {
    arrive(warp, in, warp.committed.front());
    warp.committed.erase(warp.committed.begin());
  }
}

void wait_for_group(Warp& warp, const Instruction& in) { wait(warp, in, size_t(in.literals[0])); }

void wait_for_all(Warp& warp, const Instruction& in) {
  commit(warp, in);
  wait(warp, in, 0);
}

template <Execute execute>
Execute always(const Form&, Instruction&) {
  return execute;
}

Execute copy_of(const Form& form, Instruction& in) {
  const int64_t bytes = in.literals[0];
  in.element_bytes = uint8_t(bytes);
  in.variant = in.s.size() == 2 ? kNothing : in.s[2].bytes ? kSourceBytes : kIgnoreSource;
  const bool is_known = bytes == 16 || (form.has("ca") && (bytes == 4 || bytes == 8));
  return is_known ? copy : nullptr;
}

constexpr Opcode kOpcodes[] = {
    {"cp", "async ca|cg shared|shared::cta global <prefetch>?", "m m i s4?", Class::cpasync, copy_of},
    {"cp", "async ca|cg shared|shared::cta global <prefetch>?", "m m i sp", Class::cpasync, copy_of},
    {"cp", "async commit_group", "", Class::cpasync, always<commit>},
    {"cp", "async wait_group", "i", Class::cpasync, always<wait_for_group>},
    {"cp", "async wait_all", "", Class::cpasync, always<wait_for_all>},
};

}  // namespace

std::span<const Opcode> async_copy() { return kOpcodes; }

}  // namespace ptx
