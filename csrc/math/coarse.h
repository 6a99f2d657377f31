// Arithmetic for maps whose results are all stored in half precision: float, with a sigmoid and a tanh that take a
// third of the instructions. In bfloat16, s(o) tanh(c) takes 20 instructions per element with these and 37 with the
// precise ones; 37 is about what an H200 issues in the time that the element's 6 bytes take (docs/kernels.md).
#pragma once

#include "scalar.h"

namespace motionrnn_ext::math {

// The relative error of sigmoid is below 1.3e-6 (|x| < 20). That of tanh is below 4e-5, and its absolute error is below
// 4e-7. float16, the finest half type, itself rounds with relative errors up to 2e-4. Below x = -87 a sigmoid is 0.
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

// 1 / (1 + 2^y) by two instructions of the GPU, each within 2 ulp, without the code that handles results below 1e-38.
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

// 1 - 2 s(-2x) has an absolute error of 1e-7, which is too large near 0. There the result is x, whose error is x^3 / 3.
MOTIONRNN_EXT_MATH Coarse tanh(Coarse x) {
  const float far = 1.0f - 2.0f * logistic2(2.88539008f * x.value);
  return std::fabs(x.value) < 0.0078125f ? x.value : far;
}

}  // namespace motionrnn_ext::math
