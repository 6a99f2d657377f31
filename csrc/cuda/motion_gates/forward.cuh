// The gates of a MotionGRU step and the motion that they make, in two launches. The second needs s(r) F of each pixel's
// neighbours.
//
//   gates_forward      [u, r, z_x, m] = W_x * x + W_F * F + b,   s(r) F
//   candidate_forward  z = z_x + W_z * (s(r) F);   F_t, D' = motion_update(u, z, F, D)
#pragma once

#include "cuda/motion_gates/packing.cuh"

namespace motionrnn_ext::cuda {
namespace {

// The most blocks per multiprocessor that registers allow: 8 of 128 threads with 64 registers each.
constexpr int kGatesBlocks = 8;
constexpr int kWideBlocks = kGatesBlocks * kGatesThreads / kWideThreads;

// An output of a convolution, whose columns may be stored by twos.
struct Output {
  Image image;
  bool together;
};

template <class T>
Output output_of(const Image& image, int channels) {
  return {image, takes_vectors<T>(image, channels, 2)};
}

// Store the values of columns `channel` and `channel` + 1, of which `count` exist.
template <class T>
__device__ __forceinline__ void store_columns(const Output& out, const Pixel& pixel, int channel, int count,
                                              const float (&value)[2]) {
  T* to = &element<T>(out.image, pixel.b, channel, pixel.index);
  if (out.together && count == 2) {
    store_floats<2>(to, value);
  } else {
    to[0] = from_float<T>(value[0]);
    if (count == 2) to[out.image.channel] = from_float<T>(value[1]);
  }
}

// Keep W_F F in the columns of u and r, and add the bias. The last tile of u and r may hold columns of z, which F does
// not reach: not even as 0 times nan.
template <class T, int kTiles, class Arguments>
__device__ __forceinline__ void add_bias(const Arguments& a, int first, float (&sum)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = column_of(first + n * kGatesWarps, i);
      if (column >= 2 * a.motion) sum[n][i] = 0.0f;
      if (column < a.rows) sum[n][i] += to_float(__ldg(static_cast<const T*>(a.bias) + column));
    }
}

struct GatesForward {
  Operand x, offset;
  TileShape shape;
  int32_t height, width, size, motion, rows;
  const void* bias;
  Output logits[4];  // u, r, z_x, m
  Output reset_offset;
};

template <class T>
__global__ void __launch_bounds__(kWideThreads, kWideBlocks) gates_forward(const GatesForward a) {
  MOTIONRNN_EXT_SHARED(shared);
  const Tile tile(a.shape);
  const Factor<T, T> x(a.x, a.shape, tile, a.height, a.width, shared);
  const Factor<T, float> offset(a.offset, a.shape, tile, a.height, a.width, x.end());
  x.begin(a.size);
  offset.begin(a.size);
  const int first = blockIdx.y * kWideWarps + threadIdx.x / kWarp;
  float sum[1][4] = {};
  __syncthreads();
  offset.multiply_all(first, sum);
  add_bias<T>(a, first, sum);
  x.multiply_all(first, sum);
  const int column = column_of(first, 0);
  int map[2], channel[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = column + i;
    map[i] = at >= a.rows ? -1 : (at >= a.motion) + (at >= 2 * a.motion) + (at >= 3 * a.motion);
    channel[i] = at - map[i] * a.motion;
  }
  const int count = map[0] == map[1] ? 2 : 1;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const Pixel pixel(tile, a.shape, a.height, a.width, pixel_of(2 * h));
    if (!pixel.inside) continue;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (map[i] < 0 || i >= 3 - count) continue;
      const float stored[2] = {sum[0][2 * h + i], sum[0][2 * h + 1]};
      store_columns<T>(a.logits[map[i]], pixel, channel[i], count, stored);
      if (map[i] != 1) continue;
      float reset[2];
#pragma unroll
      for (int j = 0; j < 2; ++j)
        reset[j] = j < count ? math::sigmoid(stored[j]) *
                                   element<const float>(a.offset.image, pixel.b, channel[i] + j, pixel.index)
                             : 0.0f;
      store_columns<T>(a.reset_offset, pixel, channel[i], count, reset);
    }
  }
}

struct CandidateForward {
  Operand reset_offset;
  TileShape shape;
  int32_t height, width, size, motion;
  Image update, candidate, offset, trend, new_offset, new_trend;
  float alpha, max_offset;
};

template <class T>
__global__ void __launch_bounds__(kGatesThreads, kGatesBlocks) candidate_forward(const CandidateForward a) {
  MOTIONRNN_EXT_SHARED(shared);
  const Tile tile(a.shape);
  const Factor<T, T> reset_offset(a.reset_offset, a.shape, tile, a.height, a.width, shared);
  reset_offset.begin(a.size);
  const int first = blockIdx.y * kGatesWarps + threadIdx.x / kWarp;
  float sum[1][4] = {};
  __syncthreads();
  reset_offset.multiply_all(first, sum);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Pixel pixel(tile, a.shape, a.height, a.width, pixel_of(i));
    const int channel = column_of(first, i);
    if (!pixel.inside || channel >= a.motion) continue;
    T& candidate = element<T>(a.candidate, pixel.b, channel, pixel.index);
    candidate = from_float<T>(to_float(candidate) + sum[0][i]);
    const float in[4] = {to_float(element<const T>(a.update, pixel.b, channel, pixel.index)), to_float(candidate),
                         element<const float>(a.offset, pixel.b, channel, pixel.index),
                         element<const float>(a.trend, pixel.b, channel, pixel.index)};
    float out[2];
    math::MotionUpdate::apply<float>(in, out, {a.alpha, a.max_offset});
    element<float>(a.new_offset, pixel.b, channel, pixel.index) = out[0];
    element<float>(a.new_trend, pixel.b, channel, pixel.index) = out[1];
  }
}

// ---- Launches

// An operand over `channels` of an image of T. What `padded` says is readable, the kernels' own workspace, goes by
// four.
template <class T>
Operand operand_of(const Image& image, const Fragments& fragments, bool padded = false) {
  const int channels = fragments.steps.channels;
  const bool by_four = takes_vectors<T>(image, padded ? 4 : channels, 4);
  return {image, fragments.steps,
          by_four                                ? 4
          : takes_vectors<T>(image, channels, 2) ? 2
                                                 : 1,
          fragments.out, fragments.weight.columns};
}

inline dim3 gates_grid(const GatesArguments& a, const TileShape& shape, int columns, int columns_of_block) {
  return dim3(static_cast<unsigned>(shape.per_image * a.batch),
              std::max((columns + columns_of_block - 1) / columns_of_block, 1));
}

template <class T>
void launch_forward(const GatesArguments& a, Stream stream) {
  const Packed<T> packed{a};
  const PackArguments fragments = packed.forward(a.packed);
  const TileShape shape(a.height, a.width, (a.size - 1) / 2);
  const GatesForward gates{operand_of<T>(a.x, fragments.fragments[0]),
                           operand_of<float>(a.offset, fragments.fragments[1]),
                           shape,
                           a.height,
                           a.width,
                           a.size,
                           a.motion,
                           packed.rows,
                           a.x_bias,
                           {output_of<T>(a.update, a.motion), output_of<T>(a.reset, a.motion),
                            output_of<T>(a.candidate, a.motion), output_of<T>(a.mask, a.masks)},
                           output_of<T>(a.reset_offset, a.motion)};
  launch(gates_forward<T>, gates_grid(a, shape, packed.rows, kWideWarps * kTileColumns), kWideThreads,
         gates.x.shared_bytes<T>(shape) + gates.offset.shared_bytes<T>(shape), stream, gates);
  const CandidateForward candidate{operand_of<T>(a.reset_offset, fragments.fragments[2], true),
                                   shape,
                                   a.height,
                                   a.width,
                                   a.size,
                                   a.motion,
                                   a.update,
                                   a.candidate,
                                   a.offset,
                                   a.trend,
                                   a.new_offset,
                                   a.new_trend,
                                   a.alpha,
                                   a.max_offset};
  launch(candidate_forward<T>, gates_grid(a, shape, a.motion, kGatesWarps * kTileColumns), kGatesThreads,
         candidate.reset_offset.shared_bytes<T>(shape), stream, candidate);
}

}  // namespace
}  // namespace motionrnn_ext::cuda
