// The sums that grad_x is made from: channels last, in whole vectors of 4 channels, as float; in deterministic mode as
// integer multiples of a power of two. An integer has 8 bytes, and no instruction adds a vector of them. Up to four
// vectors are therefore interleaved: their first channels, their second ones, and so on. The lanes of a pixel, which
// have a vector each, then add to adjacent integers.
//
// Atomic sums of floats depend on their order, sums of integers do not. The unit is the smallest for which 62 bits hold
// every possible sum: about 2^-44 of the largest addend at 128x128 pixels and k = 3. If a gradient or a weight is inf
// or nan, or an offset or a mask logit is nan, floats are summed instead. Then inf and nan arrive where they belong,
// and the other sums depend on the order.
#pragma once

#include "cuda/division.h"
#include "cuda/offset_warp/common.cuh"

namespace motionrnn_ext::cuda {
namespace {

constexpr int kPrepareBlocks = 256, kPrepareThreads = 256;

__host__ __device__ inline int sums_channels(const WarpArguments& a) { return (a.channels + 3) / 4 * 4; }
__host__ __device__ inline int64_t sums_count(const WarpArguments& a) {
  return int64_t(a.batch) * a.height * a.width * sums_channels(a);
}

// Return how many vectors are interleaved, where `channels` channels are left from the first of them on.
__host__ __device__ inline int vectors_together(int channels) { return std::min(channels, 16) / 4; }

constexpr int kNoExponent = -0x7fffffff - 1;

// Return 2^exponent, or 0 where floats are summed instead of integers.
__device__ inline float unit_of(int exponent) { return exponent == kNoExponent ? 0.0f : ldexpf(1.0f, exponent); }

// Return e, where 2^-e is the unit: addends are multiplied by 2^e and rounded to integers. The maxima found by
// prepare_backward decide it.
__device__ inline int unit_exponent(const WarpArguments& a) {
  uint32_t grad = 0, weight = 0;
  for (int i = threadIdx.x % kWarp; i < kPrepareBlocks; i += kWarp) {
    grad = std::max(grad, a.maxima[i]);
    weight = std::max(weight, a.maxima[kPrepareBlocks + i]);
  }
  for (int lane = 1; lane < kWarp; lane *= 2) {
    grad = std::max(grad, __shfl_xor_sync(kAll, grad, lane));
    weight = std::max(weight, __shfl_xor_sync(kAll, weight, lane));
  }
  constexpr uint32_t kInfinity = 0x7f800000u;
  if (grad >= kInfinity || weight >= kInfinity) return kNoExponent;
  if (grad == 0 || weight == 0) return 0;
  // An addend is below 2^(e_grad + e_weight), and each pixel and tap adds at most one to an element.
  int e_grad, e_weight, log_addends = 0;
  frexpf(__uint_as_float(grad), &e_grad);
  frexpf(__uint_as_float(weight), &e_weight);
  if (e_grad + e_weight > 128) return kNoExponent;  // float may not hold an addend
  while ((int64_t(1) << log_addends) < int64_t(a.height) * a.width * a.k * a.k) ++log_addends;
  // Float has no smaller normal numbers for the unit, so that gradients below 1e-30 are summed with fewer bits.
  return std::max(-126, std::min(126, 62 - e_grad - e_weight - log_addends));
}

// Adds a lane's channels of pixels to the sums.
template <class Layout, bool deterministic>
struct LaneSums {
  char* first;  // the sum of the lane's first channel at pixel 0
  uint32_t pixel_bytes;
  int32_t left;  // channels from the lane's first on
  float unit;    // deterministic: the factor that turns an addend into units, 0 for sums of floats

  __device__ __forceinline__ LaneSums(const WarpArguments& a, int b, int begin, float unit_) : unit(unit_) {
    constexpr int kBytes = deterministic ? 8 : 4;
    const int channels = sums_channels(a), of_lane = Layout::channel(threadIdx.x % 4, 0);
    pixel_bytes = channels * kBytes;
    left = a.grad_x.data != nullptr ? channels - begin - of_lane : 0;
    first = static_cast<char*>(a.sums) +
            (int64_t(b) * a.height * a.width * channels + begin + (deterministic ? of_lane / 4 : of_lane)) * kBytes;
  }

  // Add weight * grad to the pixel, if it lies inside.
  __device__ __forceinline__ void add(int32_t pixel, float weight, const float (&grad)[Layout::kSlots]) const {
    char* to = first + uint64_t(uint32_t(pixel)) * pixel_bytes;
#pragma unroll
    for (int s = 0; s < Layout::kSlots; s += 4) {
      const int at = Layout::channel(0, s);
      if (pixel < 0 || at >= left) continue;
      if constexpr (deterministic) {
        auto* sum = reinterpret_cast<unsigned long long*>(to) + at;
        const int together = vectors_together(left + Layout::channel(threadIdx.x % 4, 0) - at);
#pragma unroll
        for (int i = 0; i < 4; ++i, sum += together) {
          const float value = weight * grad[s + i];
          if (unit == 0.0f)
            atomicAdd(reinterpret_cast<float*>(sum), value);
          else
            red_add(sum, static_cast<unsigned long long>(__float2ll_rn(value * unit)));
        }
      } else {
        red_add(reinterpret_cast<float*>(to) + at,
                make_float4(weight * grad[s], weight * grad[s + 1], weight * grad[s + 2], weight * grad[s + 3]));
      }
    }
  }
};

// Reads finished sums, one channel at a time. The sums of grad_x in place may be overwritten afterwards.
struct FinishedSums {
  const WarpArguments& a;
  int channels;
  float unit;  // value of an integer's 1; 0 where floats were summed

  // Every lane of a warp.
  __device__ __forceinline__ explicit FinishedSums(const WarpArguments& a_)
      : a(a_), channels(sums_channels(a_)), unit(0.0f) {
    const int exponent = a.deterministic ? unit_exponent(a) : kNoExponent;
    if (exponent != kNoExponent) unit = unit_of(-exponent);
  }
  __device__ __forceinline__ float operator()(int b, int pixel, int channel) const {
    const int64_t first = (int64_t(b) * a.height * a.width + pixel) * channels;
    if (!a.deterministic) return static_cast<const float*>(a.sums)[first + channel];
    const int block = channel / 16 * 16, together = vectors_together(channels - block);
    const long long* sum =
        static_cast<const long long*>(a.sums) + first + block + channel % 4 * together + (channel - block) / 4;
    return unit == 0.0f ? *reinterpret_cast<const float*>(sum) : static_cast<float>(*sum) * unit;
  }
};

// ---- Prepare (deterministic only): zeroes the sums, and finds the largest |grad_out| and the largest sum over o of
// |W[o, c, n]|. The maxima are of the bits of floats, whose order is that of integers and puts nan last. A nan offset
// or mask logit counts as a gradient that is nan.

// Visit an image's elements in the order in which they lie in memory.
struct Scan {
  int64_t count;
  Division image, line;
  bool rows;

  Scan(const WarpArguments& a, const Image& of, int64_t channels)
      : count(int64_t(a.batch) * channels * a.height * a.width),
        image(std::max<int64_t>(channels * a.height * a.width, 1)),
        line(std::max<int64_t>(of.channel == 1 ? channels : int64_t(a.height) * a.width, 1)),
        rows(of.channel == 1) {}

  template <class T>
  __device__ __forceinline__ float value(const Image& of, int64_t i) const {
    const int64_t b = image(i), rest = i - b * image.divisor, outer = line(rest), inner = rest - outer * line.divisor;
    return to_float(element<const T>(of, b, rows ? inner : outer, rows ? outer : inner));
  }
};

struct PreparePlan {
  Scan grad, offset, mask;
  explicit PreparePlan(const WarpArguments& a)
      : grad(a, a.grad_out, a.out_channels), offset(a, a.offset, 2 * a.k * a.k), mask(a, a.mask_logits, a.k * a.k) {}
};

template <class T>
__global__ void __launch_bounds__(kPrepareThreads) prepare_backward(const WarpArguments a, const PreparePlan plan) {
  MOTIONRNN_EXT_SHARED(shared);
  uint32_t* maxima = reinterpret_cast<uint32_t*>(shared);
  const int64_t thread = int64_t(blockIdx.x) * kPrepareThreads + threadIdx.x;
  constexpr int64_t kThreads = kPrepareBlocks * kPrepareThreads;
  auto* sums = static_cast<unsigned long long*>(a.sums);
  for (int64_t i = thread; i < sums_count(a); i += kThreads) sums[i] = 0;

  const auto bits = [](float value) { return __float_as_uint(fabsf(value)); };
  const auto only_nan = [&](float value) { return value == value ? 0u : bits(value); };
  uint32_t largest[2] = {0, 0};
  for (int64_t i = thread; i < plan.grad.count; i += kThreads)
    largest[0] = std::max(largest[0], bits(plan.grad.value<T>(a.grad_out, i)));
  for (int64_t i = thread; i < plan.offset.count; i += kThreads)
    largest[0] = std::max(largest[0], only_nan(plan.offset.value<float>(a.offset, i)));
  for (int64_t i = thread; i < plan.mask.count; i += kThreads)
    largest[0] = std::max(largest[0], only_nan(plan.mask.value<T>(a.mask_logits, i)));
  const int per_weight = a.channels * a.k * a.k;
  for (int64_t i = thread; i < per_weight; i += kThreads) {
    float sum = 0.0f;
    for (int o = 0; o < a.out_channels; ++o)
      sum += fabsf(to_float(static_cast<const T*>(a.weight)[int64_t(o) * per_weight + i]));
    largest[1] = std::max(largest[1], bits(sum));
  }
  for (int which = 0; which < 2; ++which) {
    maxima[threadIdx.x] = largest[which];
    __syncthreads();
    for (int half = kPrepareThreads / 2; half > 0; half /= 2) {
      if (int(threadIdx.x) < half) maxima[threadIdx.x] = std::max(maxima[threadIdx.x], maxima[threadIdx.x + half]);
      __syncthreads();
    }
    if (threadIdx.x == 0) a.maxima[which * kPrepareBlocks + blockIdx.x] = maxima[0];
    __syncthreads();
  }
}

}  // namespace
}  // namespace motionrnn_ext::cuda
