// PTX ISA, 9.7.9: moving data between registers, and addresses between state spaces.
#include "isa/lanes.h"

namespace ptx {

namespace {

template <class T>
void mov(Warp& warp, const Instruction& in) {
  write_lanes(warp, in.d[0], warp.lanes<T>(in.s[0]));
}

// Several registers into one, the first into its lowest bits.
void pack(Warp& warp, const Instruction& in) {
  alignas(64) uint64_t packed[kLanes] = {};
  int shift = 0;
  for (const Operand& part : in.s) {
    for (int lane = 0; lane < kLanes; ++lane) packed[lane] |= warp.get(part, lane) << shift;
    shift += 8 * part.bytes;
  }
  for (int lane = 0; lane < kLanes; ++lane)
    if (warp.has(lane)) warp.set(in.d[0], lane, packed[lane]);
}

void unpack(Warp& warp, const Instruction& in) {
  const int bits = 8 * in.s[0].bytes / int(in.d.size());
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.has(lane)) continue;
    const uint64_t value = warp.get(in.s[0], lane);
    for (size_t part = 0; part < in.d.size(); ++part) warp.set(in.d[part], lane, value >> (bits * int(part)));
  }
}

constexpr auto pair = [](auto low, auto high) {
  if constexpr (sizeof(low) == 2)
    return uint32_t(high) << 16 | low;
  else
    return uint64_t(high) << 32 | low;
};

Execute move(const Form& form, Instruction& in) {
  const int bytes = bytes_of(form.type);
  if (in.s.size() == 2 && bytes == 4) return each_lane<pair, uint32_t, uint16_t, uint16_t>;
  if (in.s.size() == 2 && bytes == 8) return each_lane<pair, uint64_t, uint32_t, uint32_t>;
  if (in.s.size() > 1) return in.d.size() == 1 ? pack : nullptr;
  if (in.d.size() > 1) return unpack;
  switch (bytes) {
    case 1: return mov<uint8_t>;
    case 2: return mov<uint16_t>;
    case 4: return mov<uint32_t>;
    case 8: return mov<uint64_t>;
    default: return nullptr;
  }
}

void mov_predicate(Warp& warp, const Instruction& in) { warp.set_predicate(in.d[0], warp.predicate(in.s[0])); }

// Bytes of b:a chosen by the nibbles of c, with the byte's sign in their place where a nibble's highest bit is set.
constexpr auto permute = [](uint32_t a, uint32_t b, uint32_t c) {
  const uint64_t both = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t selector = c >> (4 * i) & 0xf;
    uint32_t byte = uint32_t(both >> (8 * (selector & 7))) & 0xff;
    if (selector & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
};

// Global memory has the same addresses in its own space and in the generic one.
uint64_t window(Space space) {
  return space == Space::shared ? kSharedWindow : space == Space::param ? kParamWindow : 0;
}
template <bool to_space>
void convert_address(Warp& warp, const Instruction& in) {
  const uint64_t base = window(in.space);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.has(lane)) continue;
    const uint64_t address = warp.get(in.s[0], lane);
    warp.set(in.d[0], lane, to_space ? address - base : address + base);
  }
}
Execute convert(const Form& form, Instruction& in) {
  in.space = form.has("global") ? Space::global : form.has("param") ? Space::param : Space::shared;
  if (in.space == Space::global) return move(form, in);
  return form.has("to") ? convert_address<true> : convert_address<false>;
}

constexpr Opcode kOpcodes[] = {
    {"mov", "b16|u16|s16|f16|bf16|b32|u32|s32|f32|b64|u64|s64|f64", "dv sv", Class::mov, move},
    {"mov", "pred", "dp sp", Class::mov, [](const Form&, Instruction&) -> Execute { return mov_predicate; }},
    {"prmt", "b32", "d4 s4 s4 s4", Class::integer,
     [](const Form&, Instruction&) { return same_type<permute, uint32_t>(); }},
    {"cvta", "to? global|shared|shared::cta|param u32|u64", "dt st", Class::mov, convert},
};

}  // namespace

std::span<const Opcode> data_movement() { return kOpcodes; }

}  // namespace ptx
