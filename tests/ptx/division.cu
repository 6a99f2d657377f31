// Divides by every kind of divisor on the device, for mistakes.py.
#include "cuda/division.h"

namespace {

using motionrnn_ext::cuda::Division;
using motionrnn_ext::cuda::DivisionOf;

constexpr uint32_t kLargest = 0xffffffffu;

__global__ void divide(DivisionOf<uint32_t> quotient_of, Division wide, float* wrong) {
  const uint32_t divisor = quotient_of.divisor;
  const uint32_t dividends[] = {
      0, 1, divisor - 1, divisor, 2 * divisor - 1, 1000003, kLargest - kLargest % divisor, kLargest};
  for (uint32_t i : dividends)
    if (quotient_of(i) != i / divisor || wide(i) != i / divisor) *wrong += 1;
  if (wide(~uint64_t(0)) != ~uint64_t(0) / divisor) *wrong += 1;
}

}  // namespace

// Adds to *wrong how many quotients are wrong.
extern "C" __attribute__((visibility("default"))) void divide_by_all(float* wrong) {
  for (uint32_t divisor : {1u, 2u, 3u, 7u, 4096u, 65537u, 0x7fffffffu, 0x80000001u, kLargest})
    motionrnn_ext::cuda::launch(divide, dim3(1), 1, 0, nullptr, DivisionOf<uint32_t>(divisor), Division(divisor),
                                wrong);
}
