#include "isa/numbers.h"

namespace ptx {

double round_to_integer(double value, Rounding rounding) {
  switch (rounding) {
    case Rounding::nearest_even: return std::nearbyint(value);
    case Rounding::nearest_away: return std::round(value);
    case Rounding::zero: return std::trunc(value);
    case Rounding::down: return std::floor(value);
    case Rounding::up: return std::ceil(value);
  }
  return value;
}

double round_to_format(double value, Format format, Rounding rounding) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), format.lowest);
  const int unit = exponent - (format.precision - 1);
  const double rounded = std::ldexp(round_to_integer(std::ldexp(value, -unit), rounding), unit);
  const double largest = std::ldexp(2 - std::ldexp(1.0, 1 - format.precision), format.highest);
  if (std::fabs(rounded) <= largest) return std::copysign(rounded, value);
  const bool stays_finite = rounding == Rounding::zero || (rounding == Rounding::down && value > 0) ||
                            (rounding == Rounding::up && value < 0);
  return std::copysign(stays_finite ? largest : INFINITY, value);
}

namespace {

// Sets the last bit of the neighbour towards 0 of what lies between `nearest` and its neighbour in the error's
// direction.
double odd(double nearest, double error) {
  if (error == 0 || !std::isfinite(nearest)) return nearest;
  auto bits = std::bit_cast<uint64_t>(nearest);
  const bool is_below = (error < 0) == (nearest > 0);  // the exact value is nearer to 0
  if (bits & 1) return nearest;
  return std::bit_cast<double>(is_below ? bits - 1 : bits + 1);
}

}  // namespace

double exact_or_odd_sum(double a, double b) {
  const double sum = a + b, part = sum - a;
  return odd(sum, (a - (sum - part)) + (b - part));
}

double exact_or_odd(uint64_t value) {
  const int shift = 64 - 53;
  if (value >> 53 == 0) return double(value);
  const uint64_t lost = value & ((1ull << shift) - 1);
  return double((value & ~((1ull << shift) - 1)) | (lost ? 1ull << shift : 0));
}

double exact_or_odd(int64_t value) {
  return value < 0 ? -exact_or_odd(0 - uint64_t(value)) : exact_or_odd(uint64_t(value));
}

}  // namespace ptx
