// The end of offset_warp backward: grad_weight summed over the blocks in a fixed order, grad_x converted.
#pragma once

#include "cuda/offset_warp_sums.cuh"

namespace motionrnn_ext::cuda {
namespace {

template <class T, int N>
struct BackwardShape {
  using In = Step<T, N>;
  // mma sums over 4 lanes x 2 words of output channels at a time
  static constexpr int kOut = N < 8 * kPerWord<T> ? 8 * kPerWord<T> : N;
  using Out = Columns<T, kOut>;
  static constexpr int kProducts = Out::kWords / 2;  // over output channels
  static constexpr int kSlotsOfProduct = Out::kSlots / kProducts;
  static constexpr int kInPairs = In::kSlots / 2, kOutPairs = Out::kSlots / 2;  // 8 x 8 blocks of a 16-pixel tile
  static constexpr int kRows = In::kSlots / 4;                                  // grad_weight's tiles of 16 slots
  static constexpr int kPartial = kRows * kOutPairs * 4 * kWarp;                // floats of a warp's part of it
  static constexpr int kTiles = In::kSlots / 2;                                 // of grad_column: 8 slots each
  static constexpr int kFragments = kProducts * kTiles * kWarp;                 // of the weight of a step
};

constexpr int kFinishThreads = 256;
constexpr int kSumLanes = 8;  // threads that share the partial sums of one element of grad_weight

struct FinishPlan {
  int weight_blocks, blocks_per_image;  // those of the weight come first
  int partials, elements;               // blocks that left some; floats of each
  int out_chunks;
};

template <class T, int N>
__device__ void finish_weight(const WarpArguments& a, const FinishPlan& plan, float* shared) {
  using Shape = BackwardShape<T, N>;
  constexpr int kElements = kFinishThreads / kSumLanes;
  const int column = threadIdx.x % kElements, part = threadIdx.x / kElements;
  const int element = blockIdx.x * kElements + column;
  float sum = 0.0f;
  if (element < plan.elements) {
#pragma unroll 8
    for (int i = part; i < plan.partials; i += kSumLanes) sum += a.partials[int64_t(i) * plan.elements + element];
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (part != 0 || element >= plan.elements) return;
  for (int i = 1; i < kSumLanes; ++i) sum += shared[i * kElements + column];

  // Where `warp_backward` had it: lane, then number of mma's result, tiles of out and in, step, chunks.
  const int lane = element % kWarp, g = lane / 4, t = lane % 4, i = element / kWarp;
  const int q = i % 4, out = i / 4 % Shape::kOutPairs, row = i / (4 * Shape::kOutPairs) % Shape::kRows;
  const int taps = a.k * a.k, steps = (taps + Shape::In::kTaps - 1) / Shape::In::kTaps;
  const int at = element / Shape::kPartial, step = at % steps, pair = at / steps;
  const int slot = 2 * (2 * row + q / 2) + (g & 1), tap = step * Shape::In::kTaps + Shape::In::tap(g >> 1);
  const int c = pair / plan.out_chunks * N + Shape::In::channel(g >> 1, slot);
  const int o = pair % plan.out_chunks * Shape::kOut + Shape::Out::channel(t, 2 * out + q % 2);
  if (tap < taps && c < a.channels && o < a.out_channels)
    static_cast<T*>(a.grad_weight)[(int64_t(o) * a.channels + c) * taps + tap] = from_float<T>(sum);
}

template <class T>
__device__ void finish_x(const WarpArguments& a, const FinishPlan& plan, int block) {
  const int exponent = a.deterministic ? unit_exponent(a) : kNoExponent;
  const float unit = exponent == kNoExponent ? 0.0f : power_of_two(-exponent);
  const int b = block / plan.blocks_per_image, channels = sums_channels(a);
  const int64_t pixels = int64_t(a.height) * a.width;
  const int64_t stride = int64_t(plan.blocks_per_image) * kFinishThreads;
  const bool rows = a.grad_x.channel == 1;  // neighbouring threads write neighbouring elements
  for (int64_t i = int64_t(block - b * plan.blocks_per_image) * kFinishThreads + threadIdx.x; i < pixels * a.channels;
       i += stride) {
    const int64_t pixel = rows ? i / a.channels : i % pixels, channel = rows ? i % a.channels : i / pixels;
    const int64_t at = (b * pixels + pixel) * channels + channel;
    float value;
    if (!a.deterministic)
      value = static_cast<const float*>(a.sums)[at];
    else if (unit != 0.0f)
      value = static_cast<float>(static_cast<const long long*>(a.sums)[at]) * unit;
    else
      value = *reinterpret_cast<const float*>(static_cast<const long long*>(a.sums) + at);
    element<T>(a.grad_x, b, channel, pixel) = from_float<T>(value);
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kFinishThreads) finish_backward(const WarpArguments a, const FinishPlan plan) {
  MOTIONRNN_EXT_SHARED(shared);
  if (int(blockIdx.x) < plan.weight_blocks)
    finish_weight<T, N>(a, plan, reinterpret_cast<float*>(shared));
  else
    finish_x<T>(a, plan, blockIdx.x - plan.weight_blocks);
}

}  // namespace
}  // namespace motionrnn_ext::cuda
