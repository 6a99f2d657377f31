// The end of offset_warp backward: grad_weight summed over the blocks in a fixed order, grad_x converted.
#pragma once

#include "cuda/offset_warp/sums.cuh"

namespace motionrnn_ext::cuda {
namespace {

template <class T, int N>
struct BackwardShape {
  // Four channels, also where loads could be of eight: the lanes of a pixel then add to adjacent sums, whole sectors.
  using In = Step<T, N, 4>;
  // mma sums over 4 lanes x 2 words of output channels at a time
  static constexpr int kOut = N < 8 * kPerWord<T> ? 8 * kPerWord<T> : N;
  using Out = Columns<T, kOut>;
  static constexpr int kMmas = Out::kWords / 2;  // over output channels
  static constexpr int kSlotsOfMma = Out::kSlots / kMmas;
  static constexpr int kOutPairs = Out::kSlots / 2;               // 8 x 8 blocks of a 16-pixel tile
  static constexpr int kRows = In::kSlots / 4;                    // grad_weight's tiles of 16 slots
  static constexpr int kPartial = kRows * kOutPairs * 4 * kWarp;  // floats of a warp's part of it
  static constexpr int kTiles = In::kSlots / 2;                   // tiles of grad_column, 8 slots each
  static constexpr int kFragments = kMmas * kTiles * kWarp;       // fragments of the weight of a step
};

template <class T, int N>
using WeightSums = float[BackwardShape<T, N>::kRows][BackwardShape<T, N>::kOutPairs][4];

// A warp's partial grad_weight in mma's layout: [block][chunks][step][row][pair][result][lane].
template <class T, int N, bool chunked>
__device__ __forceinline__ void store_weight(const WarpArguments& a, const WeightSums<T, N>& sum, int step) {
  using Shape = BackwardShape<T, N>;
  const int steps = (a.k * a.k + Shape::In::kTaps - 1) / Shape::In::kTaps, pairs = chunked ? gridDim.z - 1 : 1;
  const int64_t pair = chunked ? blockIdx.z - 1 : 0;
  float* partial = a.partials + ((int64_t(blockIdx.x) * pairs + pair) * steps + step) * Shape::kPartial;
#pragma unroll
  for (int i = 0; i < Shape::kPartial / kWarp; ++i)
    partial[i * kWarp + threadIdx.x % kWarp] = sum[i / (Shape::kOutPairs * 4)][i / 4 % Shape::kOutPairs][i % 4];
}

constexpr int kFinishThreads = 256;
constexpr int kSumLanes = 8;  // threads that share the partial sums of one element of grad_weight
// The most blocks for grad_x.
constexpr int kFinishBlocks = 16384;

struct FinishPlan {
  int weight_blocks;       // blocks that sum grad_weight; they come first
  int partials, elements;  // the parts of grad_weight, one for each block of the main kernel; floats of a part
  int out_chunks;
  // grad_x: an image's vectors of 4 channels, in the order in which grad_x is written
  bool rows, vectors;
  int64_t vector_count;
  Division image, line;
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

  // The same order as in `store_weight`.
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
__device__ void finish_x(const WarpArguments& a, const FinishPlan& plan, int64_t first, int64_t stride) {
  const int exponent = a.deterministic ? unit_exponent(a) : kNoExponent, channels = sums_channels(a);
  const float unit = exponent == kNoExponent ? 0.0f : unit_of(-exponent);
  for (int64_t i = first; i < plan.vector_count; i += stride) {
    const int64_t b = plan.image(i), rest = i - b * plan.image.divisor;
    const int64_t outer = plan.line(rest), inner = rest - outer * plan.line.divisor;
    const int64_t pixel = plan.rows ? outer : inner, channel = 4 * (plan.rows ? inner : outer);
    const int64_t at = (b * a.height * a.width + pixel) * channels + channel;
    float value[4];
    if (!a.deterministic) {
      const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(a.sums) + at);
      value[0] = four.x, value[1] = four.y, value[2] = four.z, value[3] = four.w;
    } else {
      const int vector = static_cast<int>(channel / 4), together = vectors_together(channels - vector / 4 * 16);
      const long long* sums = static_cast<const long long*>(a.sums) + (at - vector % 4 * 3);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const long long* sum = sums + j * together;
        value[j] = unit == 0.0f ? *reinterpret_cast<const float*>(sum) : static_cast<float>(*sum) * unit;
      }
    }
    if (plan.vectors) {
      uint32_t word[4 / kPerWord<T>];
#pragma unroll
      for (int w = 0; w < 4 / kPerWord<T>; ++w) word[w] = pack<T>(value + w * kPerWord<T>);
      store_words<4 / kPerWord<T>>(&element<T>(a.grad_x, b, channel, pixel), word);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (channel + j < a.channels) element<T>(a.grad_x, b, channel + j, pixel) = from_float<T>(value[j]);
    }
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kFinishThreads) finish_backward(const WarpArguments a, const FinishPlan plan) {
  MOTIONRNN_EXT_SHARED(shared);
  if (int(blockIdx.x) < plan.weight_blocks)
    finish_weight<T, N>(a, plan, reinterpret_cast<float*>(shared));
  else
    finish_x<T>(a, plan, int64_t(blockIdx.x - plan.weight_blocks) * kFinishThreads + threadIdx.x,
                int64_t(gridDim.x - plan.weight_blocks) * kFinishThreads);
}

}  // namespace
}  // namespace motionrnn_ext::cuda
