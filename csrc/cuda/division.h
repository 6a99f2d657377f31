// Division of 64-bit indices by what the host knows, without the device's 100 instructions for it.
#pragma once

#include "cuda/launch.h"

namespace motionrnn_ext::cuda {

// i / divisor for any i: the product is right or one too small.
struct Division {
  uint64_t divisor, reciprocal;

  explicit Division(uint64_t divisor_) : divisor(divisor_), reciprocal(~uint64_t(0) / divisor_) {}
  __device__ __forceinline__ uint64_t operator()(uint64_t i) const {
    const uint64_t quotient = __umul64hi(i, reciprocal);
    return quotient + (i - quotient * divisor >= divisor ? 1 : 0);
  }
};

}  // namespace motionrnn_ext::cuda
