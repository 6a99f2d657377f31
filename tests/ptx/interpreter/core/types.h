// The types and state spaces of PTX (PTX ISA, 5.1 and 5.2), and what one lane of a warp is.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace ptx {

constexpr int kLanes = 32;  // of a warp
using Mask = uint32_t;      // a bit for each lane
constexpr Mask kAllLanes = 0xffffffffu;

enum class Type : uint8_t {
  none,
  pred,
  b8,
  u8,
  s8,
  b16,
  u16,
  s16,
  b32,
  u32,
  s32,
  b64,
  u64,
  s64,
  b128,
  f16,
  bf16,
  f16x2,
  bf16x2,
  tf32,
  f32,
  f32x2,
  f64
};

// `name` is written without its dot; none for what is no type.
Type type_named(std::string_view name);
// Return the size of a register of this type; 0 for predicates, which have a bit per lane.
int bytes_of(Type type);
constexpr bool is_signed(Type t) { return t == Type::s8 || t == Type::s16 || t == Type::s32 || t == Type::s64; }
constexpr bool is_float(Type t) { return t >= Type::f16; }

enum class Space : uint8_t { generic, global, shared, param, constant, local };

// Shared memory and parameters lie in windows of the generic address space (PTX ISA, 5.1.8); every other generic
// address is that of the host.
constexpr uint64_t kSharedWindow = 0x0100000000000000ull;
constexpr uint64_t kParamWindow = 0x0200000000000000ull;

}  // namespace ptx
