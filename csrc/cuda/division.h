// Division of an index by a divisor that the host knows: four instructions for 32 bits. The device's own division takes
// 20, or 100 for 64 bits.
#pragma once

#include "cuda/launch.h"

namespace motionrnn_ext::cuda {

__device__ __forceinline__ uint32_t high_product(uint32_t a, uint32_t b) { return __umulhi(a, b); }
__device__ __forceinline__ uint64_t high_product(uint64_t a, uint64_t b) { return __umul64hi(a, b); }

// Return i / divisor for any i. The high product is the quotient or one less, which the comparison corrects.
template <class Index>
struct DivisionOf {
  Index divisor, reciprocal;

  explicit DivisionOf(Index divisor_) : divisor(divisor_), reciprocal(Index(~Index(0)) / divisor_) {}
  __device__ __forceinline__ Index operator()(Index i) const {
    const Index quotient = high_product(i, reciprocal);
    return quotient + (i - quotient * divisor >= divisor ? 1 : 0);
  }
};

using Division = DivisionOf<uint64_t>;

}  // namespace motionrnn_ext::cuda
