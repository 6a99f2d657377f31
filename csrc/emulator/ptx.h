// The functions of cuda/ptx.h for the emulator.
#pragma once

#include "emulator/cuda.h"

namespace motionrnn_ext::emulator {

// A lane's part of the factors a and b of m16n8k*: registers in the order of cuda/ptx.h, the values of each unpacked.
template <int values>
struct Factors {
  float a[4][values], b[2][values];
};

void multiply_add(float (&d)[4], const Factors<2>& mine, const char* operation, Where where);  // m16n8k16
void multiply_add(float (&d)[4], const Factors<1>& mine, const char* operation, Where where);  // m16n8k8
uint32_t transpose(uint32_t pair, Where where);

template <class Half>
Factors<2> unpack(const uint32_t (&a)[4], uint2 b) {
  const auto value = [](uint32_t pair, int i) {
    return static_cast<float>(__builtin_bit_cast(Half, static_cast<uint16_t>(pair >> 16 * i)));
  };
  Factors<2> factors;
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) factors.a[j][i] = value(a[j], i);
    factors.b[0][i] = value(b.x, i);
    factors.b[1][i] = value(b.y, i);
  }
  return factors;
}

}  // namespace motionrnn_ext::emulator

namespace motionrnn_ext::cuda {

inline void mma(float (&d)[4], const uint32_t (&a)[4], uint2 b, __nv_bfloat16,
                emulator::Where where = emulator::Where::current()) {
  emulator::multiply_add(d, emulator::unpack<__nv_bfloat16>(a, b), "mma", where);
}
inline void mma(float (&d)[4], const uint32_t (&a)[4], uint2 b, __half,
                emulator::Where where = emulator::Where::current()) {
  emulator::multiply_add(d, emulator::unpack<__half>(a, b), "mma", where);
}

inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint2 b,
                     emulator::Where where = emulator::Where::current()) {
  const auto upper_19_bits = [](uint32_t bits) { return __uint_as_float(bits & 0xffffe000u); };
  emulator::Factors<1> factors;
  for (int i = 0; i < 4; ++i) factors.a[i][0] = upper_19_bits(a[i]);
  factors.b[0][0] = upper_19_bits(b.x);
  factors.b[1][0] = upper_19_bits(b.y);
  emulator::multiply_add(d, factors, "mma_tf32", where);
}

inline uint32_t transpose(uint32_t pair, emulator::Where where = emulator::Where::current()) {
  return emulator::transpose(pair, where);
}

inline void store_vector(uint4* to, uint4 value, emulator::Where where = emulator::Where::current()) {
  emulator::check_aligned(to, 16, "store_vector", where);
  *to = value;
}

inline void red_add(float* to, float4 value, emulator::Where where = emulator::Where::current()) {
  emulator::check_aligned(to, 16, "red_add", where);
  const float values[] = {value.x, value.y, value.z, value.w};
  for (int i = 0; i < 4; ++i) atomicAdd(to + i, values[i], where);
}
inline void red_add(unsigned long long* to, unsigned long long value,
                    emulator::Where where = emulator::Where::current()) {
  atomicAdd(to, value, where);
}

}  // namespace motionrnn_ext::cuda
