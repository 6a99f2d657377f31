// Sums of products as tensor cores make them.
#pragma once
#include <cstdint>

#include "core/types.h"
#include "isa/numbers.h"

namespace ptx {

// An element as the bits of its register, or of half of it. The last 13 bits of a tf32 register are ignored.
inline double matrix_element(Type type, uint32_t bits) {
  if (type == Type::tf32) return float_of(bits & 0xffffe000u);
  return type == Type::f16 ? Half::to_float(uint16_t(bits)) : BFloat16::to_float(uint16_t(bits));
}

// Adds the products of a row of a (`k` values) and a column of b (`stride` apart) to c, `group` of them at once:
// aligned to the largest and cut to options.mma_extra_bits more than float32 has; each sum is cut to float32 (Fasi,
// Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores").
float cut_product_sum(const double* a, const double* b, int stride, int k, float c, int group);

}  // namespace ptx
