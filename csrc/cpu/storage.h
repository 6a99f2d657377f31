// Storage dtypes of the CPU kernels and their conversion to arithmetic. Branch-free, so that loops over them vectorise.
#pragma once

#include <cstdint>

namespace motionrnn_ext::cpu {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

#define MOTIONRNN_EXT_INLINE inline __attribute__((always_inline))

// The next loop's iterations do not depend on each other, so that it vectorises without a comparison of its pointers.
#if defined(__clang__)
#define MOTIONRNN_EXT_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define MOTIONRNN_EXT_INDEPENDENT _Pragma("GCC ivdep")
#endif

MOTIONRNN_EXT_INLINE float load(float value) { return value; }
MOTIONRNN_EXT_INLINE double load(double value) { return value; }

MOTIONRNN_EXT_INLINE float load(bfloat16 value) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(value.bits) << 16);
}

MOTIONRNN_EXT_INLINE float load(float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t shifted = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  // The exponent, read as float's, is 112 too small. A denormal's is 0: with 113 in its place the leading one is there,
  // and is taken away. No operand is a denormal of float, which torch.set_flush_denormal would make 0.
  const float denormal = __builtin_bit_cast(float, shifted | 113u << 23) - 0x1p-14f;
  const uint32_t finite = shifted < (0x400u << 13) ? __builtin_bit_cast(uint32_t, denormal) : shifted + (112u << 23);
  const uint32_t magnitude = shifted >= (0x7c00u << 13) ? shifted | 0x7f800000u : finite;
  return __builtin_bit_cast(float, sign | magnitude);
}

MOTIONRNN_EXT_INLINE void store(float* to, float value) { *to = value; }
MOTIONRNN_EXT_INLINE void store(double* to, double value) { *to = value; }

// Both conversions round to nearest, ties to even.
MOTIONRNN_EXT_INLINE void store(bfloat16* to, float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

MOTIONRNN_EXT_INLINE void store(float16* to, float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // The sum with 0.5 rounds to multiples of 2^-24, float16's smallest step.
  const float denormal_sum = __builtin_bit_cast(float, magnitude) + 0.5f;
  const uint32_t denormal = __builtin_bit_cast(uint32_t, denormal_sum) - 0x3f000000u;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  uint32_t result = magnitude < 0x38800000u ? denormal : normal;  // below 2^-14
  result = magnitude >= 0x47800000u ? special : result;           // 2^16 and more, inf, nan
  to->bits = static_cast<uint16_t>((bits >> 16 & 0x8000u) | result);
}

// The arithmetic type of a storage type.
template <class Storage>
struct arithmetic {
  using type = float;
};
template <>
struct arithmetic<double> {
  using type = double;
};

}  // namespace motionrnn_ext::cpu
