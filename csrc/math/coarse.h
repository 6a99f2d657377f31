// Arithmetic of a map whose every result is stored in half precision: float, but with a sigmoid and a tanh of a third
// of the instructions. With the precise ones s(o) tanh(c) takes 37 per element in bfloat16, about as many as an H200
// issues in the time that the element's 6 bytes take (docs/kernels.md), with these 20.
#pragma once

#include "scalar.h"

namespace motionrnn_ext::math {

// sigmoid is within 1.3e-6 of its value (|x| < 20), tanh within 4e-5, and within 4e-7 in all; half precision rounds to
// 2e-4 of a value at the finest. Below x = -87 a sigmoid is 0.
struct Coarse {
  float value;

  Coarse() = default;
  MOTIONRNN_EXT_MATH Coarse(float v) : value(v) {}
  MOTIONRNN_EXT_MATH explicit operator float() const { return value; }
  MOTIONRNN_EXT_MATH Coarse& operator*=(Coarse b) { return value *= b.value, *this; }
};

MOTIONRNN_EXT_MATH Coarse operator+(Coarse a, Coarse b) { return a.value + b.value; }
MOTIONRNN_EXT_MATH Coarse operator-(Coarse a, Coarse b) { return a.value - b.value; }
MOTIONRNN_EXT_MATH Coarse operator*(Coarse a, Coarse b) { return a.value * b.value; }

// 1 / (1 + 2^y): two instructions of the GPU's, each within 2 ulp, without what they need below 1e-38.
MOTIONRNN_EXT_MATH float logistic2(float y) {
#if defined(__CUDA_ARCH__)
  float power, result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(y));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.0f + power));
  return result;
#else
  return 1.0f / (1.0f + std::exp2(y));
#endif
}

MOTIONRNN_EXT_MATH Coarse sigmoid(Coarse x) { return logistic2(-1.44269504f * x.value); }

// 1 - 2 s(-2x) is off by 1e-7 in all, which near 0 is too much of it; there x is within x^3 / 3.
MOTIONRNN_EXT_MATH Coarse tanh(Coarse x) {
  const float far = 1.0f - 2.0f * logistic2(2.88539008f * x.value);
  return std::fabs(x.value) < 0.0078125f ? x.value : far;
}

}  // namespace motionrnn_ext::math
