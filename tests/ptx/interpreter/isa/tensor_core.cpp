#include "isa/tensor_core.h"

#include <algorithm>
#include <cmath>

#include "core/options.h"

namespace ptx {

namespace {

constexpr int kNoExponent = -10000;

int exponent_of(double value) { return value == 0 ? kNoExponent : std::ilogb(value); }

// Towards 0, to a multiple of 2^exponent.
double cut(double value, int exponent) { return std::ldexp(std::trunc(std::ldexp(value, -exponent)), exponent); }

double cut_sum(const double* a, const double* b, int stride, int count, double before) {
  int largest = exponent_of(before);
  double plain = before;
  for (int i = 0; i < count; ++i) {
    const double product = a[i] * b[i * stride];
    plain += product;
    if (product != 0 && std::isfinite(product))
      largest = std::max(largest, exponent_of(a[i]) + exponent_of(b[i * stride]));
  }
  if (!std::isfinite(plain) || largest == kNoExponent) return plain;
  const int unit = largest - 23 - options.mma_extra_bits;
  double sum = cut(before, unit);
  for (int i = 0; i < count; ++i) sum += cut(a[i] * b[i * stride], unit);
  return sum == 0 ? 0 : cut(sum, std::max(exponent_of(sum) - 23, -149));
}

}  // namespace

float cut_product_sum(const double* a, const double* b, int stride, int k, float c, int group) {
  double sum = double(c);
  for (int first = 0; first < k; first += group)
    sum = cut_sum(a + first, b + first * stride, stride, std::min(group, k - first), sum);
  return float(sum);
}

}  // namespace ptx
