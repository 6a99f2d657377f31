// Operations of a warp on the tensor cores and across its lanes, at the accuracy of the storage dtype. Lane = 4 g + t.
#pragma once

#include "cuda/ptx.h"
#include "cuda/storage.h"

namespace motionrnn_ext::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

// d += a b for two pixels' words of a, in the accuracy of float. For float each factor is split into a tf32 and a
// rest, of whose products all but the smallest are summed: as exact as float multiplication, in a third of the
// instructions of FFMA at 32 channels. Masking instead of cvt.rna: that expands to compares and selects on sm_90.
// The rest of inf is nan, so where a float sum would be infinite this one is nan.
template <class T>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t* pixel0, const uint32_t* pixel8, uint2 b) {
  const uint32_t a[4] = {pixel0[0], pixel8[0], pixel0[1], pixel8[1]};
  if constexpr (sizeof(T) == 2) {
    mma(d, a, b, T{});
  } else {
    const auto large = [](uint32_t word) { return word & 0xffffe000u; };
    const auto rest = [&](uint32_t word) {
      return __float_as_uint(__uint_as_float(word) - __uint_as_float(large(word)));
    };
    const uint32_t a_large[4] = {large(a[0]), large(a[1]), large(a[2]), large(a[3])};
    const uint32_t a_rest[4] = {rest(a[0]), rest(a[1]), rest(a[2]), rest(a[3])};
    const uint2 b_large = make_uint2(large(b.x), large(b.y));
    mma_tf32(d, a_rest, b_large);
    mma_tf32(d, a_large, make_uint2(rest(b.x), rest(b.y)));
    mma_tf32(d, a_large, b_large);
  }
}

// Add to `sum` what `products` adds to its argument. Tensor cores truncate each sum, so that a long chain drifts toward
// zero; for float, each chain ends here and its sum is added with rounding: 4 FADD for 6 and more HMMA.
template <class T, class Products>
__device__ __forceinline__ void add_products(float (&sum)[4], Products&& products) {
  if constexpr (sizeof(T) == 2) {
    products(sum);
  } else {
    float chain[4] = {};
    products(chain);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += chain[i];
  }
}

// Two slots of a lane at pixels g and g + 8, transposed: lane 4 g + t then has slot block's column g at pixels 2t and
// 2t + 1 of either half, which is what mma wants for a product over pixels. For float, 16 bits at a time.
template <class T>
struct Transposed {
  static constexpr int kMmas = sizeof(T) == 4 ? 2 : 1;
  uint32_t word[kMmas][2];

  __device__ __forceinline__ Transposed(const uint32_t* pixel0, const uint32_t* pixel8) {
    if constexpr (sizeof(T) == 2) {
      word[0][0] = transpose(pixel0[0]), word[0][1] = transpose(pixel8[0]);
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t* slots = h == 0 ? pixel0 : pixel8;
        const uint32_t low = transpose((slots[0] & 0xffffu) | slots[1] << 16);
        const uint32_t high = transpose(slots[0] >> 16 | (slots[1] & 0xffff0000u));
        word[h][0] = (low & 0xffffu) | high << 16;
        word[h][1] = low >> 16 | (high & 0xffff0000u);
      }
    }
  }
};

// Sum four values over the lanes that share a tap, and deal out the sums: the lane keeps those from first() on.
template <int lanes>
struct DealtSums {
  static_assert(lanes == 2 || lanes == 4);
  static constexpr int kKept = 4 / lanes;
  float kept[kKept];

  __device__ __forceinline__ explicit DealtSums(const float (&value)[4]) {
    const int t = threadIdx.x % 4;
    constexpr int kFirst = lanes / 2;  // the partner's distance when two of four values are given away
    const bool upper = t & kFirst;
    float half[2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      half[i] = (upper ? value[2 + i] : value[i]) + __shfl_xor_sync(kAll, upper ? value[i] : value[2 + i], kFirst);
    if constexpr (lanes == 2) {
      kept[0] = half[0], kept[1] = half[1];
    } else {
      const bool odd = t & 1;
      kept[0] = (odd ? half[1] : half[0]) + __shfl_xor_sync(kAll, odd ? half[0] : half[1], 1);
    }
  }
  static __device__ __forceinline__ int first() { return threadIdx.x % lanes * kKept; }
};

}  // namespace
}  // namespace motionrnn_ext::cuda
