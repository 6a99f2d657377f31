// Floating-point formats and their rounding.
#pragma once
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>

namespace ptx {

inline uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }
inline const float kNaN = float_of(0x7fffffff);  // the canonical one (PTX ISA, 9.7.3)

inline float flush_subnormal(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }

// Formats of 16 bits. Conversions to them round to nearest even; NaN becomes the canonical NaN.
struct Half {
  static float to_float(uint16_t bits) { return float(std::bit_cast<_Float16>(bits)); }
  static uint16_t of(double value) { return value != value ? 0x7fff : std::bit_cast<uint16_t>(_Float16(value)); }
  static uint16_t of(float value) { return value != value ? 0x7fff : std::bit_cast<uint16_t>(_Float16(value)); }
};
struct BFloat16 {
  static float to_float(uint16_t bits) { return float_of(uint32_t(bits) << 16); }
  static uint16_t of(float value) {
    const uint32_t bits = bits_of(value);
    return value != value ? 0x7fff : uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
  }
};

enum class Rounding : uint8_t { nearest_even, nearest_away, zero, down, up };

double round_to_integer(double value, Rounding rounding);

// A binary format: bits of the significand with the leading one, exponents of the smallest normal and the largest
// number.
struct Format {
  int precision, lowest, highest;
};
constexpr Format kHalfFormat{11, -14, 15}, kBFloat16Format{8, -126, 127}, kTF32Format{11, -126, 127},
    kFloatFormat{24, -126, 127};

// Rounds to a format, overflow included (IEEE 754: to infinity, or to the largest number when rounding towards 0).
double round_to_format(double value, Format format, Rounding rounding);

// Results that are rounded again to fewer bits: where the exact result is no double, the last bit of the double next to
// 0 is set ("round to odd"), so that the second rounding is right.
double exact_or_odd_sum(double a, double b);
double exact_or_odd(int64_t value);
double exact_or_odd(uint64_t value);

// Minimum and maximum (PTX ISA, 9.7.3): a NaN loses against a number, and -0 is less than +0.
inline float minimum(float a, float b) {
  if (a != a) return b != b ? kNaN : b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
inline float maximum(float a, float b) {
  if (a != a) return b != b ? kNaN : b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
inline float minimum_nan(float a, float b) { return a != a || b != b ? kNaN : minimum(a, b); }
inline float maximum_nan(float a, float b) { return a != a || b != b ? kNaN : maximum(a, b); }

inline float saturated(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }  // NaN becomes 0

}  // namespace ptx
