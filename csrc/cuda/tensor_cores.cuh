// Operations of a warp on the tensor cores and across its lanes, at the accuracy of the storage dtype. Lane = 4 g + t.
#pragma once

#include "cuda/ptx.h"
#include "cuda/storage.h"

namespace motionrnn_ext::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

// d += a b, where a lane has two words of a for each of its pixels g and g + 8. For float each factor is split into a
// tf32 part and a rest, and all of their products but the smallest are summed. This is as exact as float
// multiplication, and takes a third of the instructions of FFMA at 32 channels. A mask makes the tf32 part, because
// cvt.rna expands to compares and selects on sm_90. The rest is masked too, because PTX leaves the bits below tf32
// undefined for mma. ptxas 13.0 drops this mask: the machine code is the same without it. The rest of inf is nan, so
// this sum is nan where a float sum would be infinite.
template <class T>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t* pixel0, const uint32_t* pixel8, uint2 b) {
  const uint32_t a[4] = {pixel0[0], pixel8[0], pixel0[1], pixel8[1]};
  if constexpr (sizeof(T) == 2) {
    mma(d, a, b, T{});
  } else {
    const auto large = [](uint32_t word) { return word & 0xffffe000u; };
    const auto rest = [&](uint32_t word) {
      return large(__float_as_uint(__uint_as_float(word) - __uint_as_float(large(word))));
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
// zero. For float, each chain therefore starts at 0 and ends here, and its sum is added with rounding. This costs 4
// FADD for 6 or more HMMA.
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

// A block of 8 slots at 16 pixels, transposed. Before, lane 4 g + t has slots 2t and 2t + 1 of the block, at pixels g
// and g + 8. After, it has slot g, at pixels 2t and 2t + 1 of either half of the 16: an operand of mma for a product
// over pixels. Floats are transposed in two parts of 16 bits.
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

// Sum four values over the lanes that share a tap, and deal out the four sums: a lane keeps kKept, from first() on.
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
