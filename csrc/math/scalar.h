// Scalar functions and their derivatives, for CPU and CUDA alike. No torch, no CUDA include.
// A derivative is a function of the function's output: d_sigmoid(sigmoid(x)), d_tanh(tanh(x)).
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MOTIONRNN_EXT_MATH __host__ __device__ __forceinline__
#else
// Always inlined: the CPU kernels are compiled once per instruction set, and a shared out-of-line copy could come from
// the wrong one.
#define MOTIONRNN_EXT_MATH inline __attribute__((always_inline))
#endif

namespace motionrnn_ext::math {

#if !defined(__CUDA_ARCH__)
// exp(y) = 2^n (1 + q) with n = round(y / ln 2), relative error below 1e-7. It has no branch, so that a loop over it
// vectorises. A loop over std::exp vectorises only with fast-math. nan stays nan, because no comparison with it is
// true.
struct Exponential {
  float scale;  // 2^n
  float q;      // exp(y - n ln 2) - 1, accurate near 0
};

MOTIONRNN_EXT_MATH Exponential exponential(float y) {
  y = y > 88.8f ? 88.8f : y;
  y = y < -87.3f ? -87.3f : y;
  const float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  const float shifted = y * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 0.00139262134663f;
  p = p * r + 0.00836320297158f;
  p = p * r + 0.0416665544377f;
  p = p * r + 0.16666576846f;
  p = p * r + 0.5f;
  const uint32_t bits = (__builtin_bit_cast(uint32_t, shifted) + 127) << 23;  // any bits for nan
  return {__builtin_bit_cast(float, bits), r + r * r * p};
}
#endif

MOTIONRNN_EXT_MATH float sigmoid(float x) {
#if defined(__CUDA_ARCH__)
  // Within 2 ulp, as the divisor is at least 1. Plain division is a call that makes the kernels spill registers.
  return __fdividef(1.0f, 1.0f + expf(-x));
#else
  const Exponential e = exponential(-x);
  return 1.0f / (1.0f + e.scale * (1.0f + e.q));
#endif
}
MOTIONRNN_EXT_MATH double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
template <class T>
MOTIONRNN_EXT_MATH T d_sigmoid(T y) {
  return y * (T(1) - y);
}

MOTIONRNN_EXT_MATH float tanh(float x) {
#if defined(__CUDA_ARCH__)
  return tanhf(x);
#else
  // tanh |x| = -t / (2 + t) with t = exp(-2|x|) - 1, which keeps its relative accuracy near 0
  const Exponential e = exponential(-2.0f * __builtin_fabsf(x));
  const float t = e.scale * e.q + (e.scale - 1.0f);
  return __builtin_copysignf(-t / (2.0f + t), x);
#endif
}
MOTIONRNN_EXT_MATH double tanh(double x) { return ::tanh(x); }
template <class T>
MOTIONRNN_EXT_MATH T d_tanh(T y) {
  return T(1) - y * y;
}

}  // namespace motionrnn_ext::math
