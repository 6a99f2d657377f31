// The sums that grad_x is made from: channels last, in whole vectors of 4 channels, as float or, deterministic, as
// multiples of a power of two.
//
// Atomic float sums depend on their order, sums of integers do not. The unit is so small that 62 bits just hold any sum
// there can be: about 2^-44 of the largest addend at B32 C32 128x128.
#pragma once

#include "cuda/offset_warp.cuh"

namespace motionrnn_ext::cuda {
namespace {

constexpr int kPrepareBlocks = 256, kPrepareThreads = 256;

__host__ __device__ inline int sums_channels(const WarpArguments& a) { return (a.channels + 3) / 4 * 4; }
__host__ __device__ inline int64_t sums_count(const WarpArguments& a) {
  return int64_t(a.batch) * a.height * a.width * sums_channels(a);
}

// The exponent of the deterministic unit from the maxima that `prepare` left; INT_MIN where a gradient is not finite,
// and then the sums are of floats, so that what is not finite arrives where it belongs.
constexpr int kNoExponent = -0x7fffffff - 1;

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
  const float bound = __uint_as_float(grad) * __uint_as_float(weight);  // of one addend
  if (!(bound < INFINITY)) return kNoExponent;
  if (bound == 0.0f) return 0;
  // At most one addend of a pixel and tap goes to a place. A float below 2^e has exponent e - 1.
  int log_addends = 0, exponent;
  while ((int64_t(1) << log_addends) < int64_t(a.height) * a.width * a.k * a.k) ++log_addends;
  frexpf(bound, &exponent);
  return std::max(-126, std::min(126, 62 - exponent - log_addends));
}

__device__ inline float power_of_two(int exponent) {  // 0 for kNoExponent
  return exponent == kNoExponent ? 0.0f : ldexpf(1.0f, exponent);
}

// Adds a lane's channels of pixels to the sums.
template <class Layout, bool deterministic>
struct LaneSums {
  char* first;  // the lane's first channel at pixel 0
  uint32_t pixel_bytes;
  int32_t left;  // channels from the lane's first on
  float unit;    // deterministic: 2^exponent, or 0 for floats in the place of the integers

  __device__ __forceinline__ LaneSums(const WarpArguments& a, int b, int begin, float unit_) : unit(unit_) {
    constexpr int kBytes = deterministic ? 8 : 4;
    const int channels = sums_channels(a), lane_channel = begin + Layout::channel(threadIdx.x % 4, 0);
    pixel_bytes = channels * kBytes;
    left = a.grad_x.data != nullptr ? channels - lane_channel : 0;
    first = static_cast<char*>(a.sums) + (int64_t(b) * a.height * a.width * channels + lane_channel) * kBytes;
  }

  // weight * grad to the pixel, if that is inside.
  __device__ __forceinline__ void add(int32_t pixel, float weight, const float (&grad)[Layout::kSlots]) const {
    char* to = first + uint64_t(uint32_t(pixel)) * pixel_bytes;
#pragma unroll
    for (int s = 0; s < Layout::kSlots; s += 4) {
      const int at = Layout::channel(0, s);
      if (pixel < 0 || at >= left) continue;
      if constexpr (deterministic) {
        auto* sums = reinterpret_cast<unsigned long long*>(to) + at;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float value = weight * grad[s + i];
          if (unit != 0.0f)
            red_add(sums + i, static_cast<unsigned long long>(__float2ll_rn(value * unit)));
          else
            atomicAdd(reinterpret_cast<float*>(sums + i), value);
        }
      } else {
        red_add(reinterpret_cast<float*>(to) + at,
                make_float4(weight * grad[s], weight * grad[s + 1], weight * grad[s + 2], weight * grad[s + 3]));
      }
    }
  }
};

// ---- Prepare (deterministic only): zeroes the sums; the largest |grad_out| and sum over o of |W[o, c, n]|, as the
// bits of floats, whose order is that of integers and puts nan last.

template <class T>
__global__ void __launch_bounds__(kPrepareThreads) prepare_backward(const WarpArguments a) {
  MOTIONRNN_EXT_SHARED(shared);
  uint32_t* maxima = reinterpret_cast<uint32_t*>(shared);
  const int64_t thread = int64_t(blockIdx.x) * kPrepareThreads + threadIdx.x;
  constexpr int64_t kThreads = kPrepareBlocks * kPrepareThreads;
  auto* sums = static_cast<unsigned long long*>(a.sums);
  for (int64_t i = thread; i < sums_count(a); i += kThreads) sums[i] = 0;

  const int64_t pixels = int64_t(a.height) * a.width;
  const int per_weight = a.channels * a.k * a.k;
  const T* weight = static_cast<const T*>(a.weight);
  uint32_t largest[2] = {0, 0};
  for (int64_t i = thread; i < a.batch * pixels * a.out_channels; i += kThreads) {
    const bool rows = a.out.channel == 1;  // neighbouring threads read neighbouring elements
    const int64_t image = i / (pixels * a.out_channels), rest = i - image * pixels * a.out_channels;
    const int64_t pixel = rows ? rest / a.out_channels : rest % pixels;
    const int64_t channel = rows ? rest % a.out_channels : rest / pixels;
    largest[0] = std::max(largest[0], __float_as_uint(fabsf(read<T>(a.out, image, channel, pixel))));
  }
  for (int64_t i = thread; i < per_weight; i += kThreads) {
    float sum = 0.0f;
    for (int o = 0; o < a.out_channels; ++o) sum += fabsf(to_float(weight[int64_t(o) * per_weight + i]));
    largest[1] = std::max(largest[1], __float_as_uint(sum));
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
