// The gates of a MotionGRU step, the motion that they make, and the warp by it, in one launch, for gates of 1x1. All
// but the warp's samples is then a matter of one pixel:
//
//   [u, r, z_x, m] = W_x x + W_F F + b;   z = z_x + W_z (s(r) F);   F_t, D' = motion_update(u, z, F, D)
//   out = warp(x, F_t, m)
//
// A block takes 16 pixels. Its four warps share out the columns of the gates, then the pixels and taps of the update,
// then the taps of the warp, whose sums they add up, as offset_warp does it on small maps. The logits stay in shared
// memory, from which they are also stored for backward.
#pragma once

#include "cuda/motion_gates/forward.cuh"
#include "cuda/offset_warp/packing.cuh"

namespace motionrnn_ext::cuda {
namespace {

static_assert(kGatesWarps == kForwardWarps && kTilePixels == kTile);

// The shape of an image as one row of pixels: tiles of 1x1 convolutions are 16 neighbours in memory.
inline TileShape row_of_pixels(const GatesArguments& a) { return {1, a.height * a.width, 0}; }

// A warp has three of nine taps, rounded up to whole steps. In their place it leaves its sums at the end.
constexpr int kTapsOfPart = 4 * kTapDistance;
constexpr size_t kPartBytes = kTapsOfPart * (sizeof(CornerIndices) + sizeof(float4));
constexpr size_t kPartsBytes = kForwardWarps * kPartBytes;

struct GatedWarp {
  Operand x, offset, reset_offset;
  TileShape shape;
  int32_t count, pixels, motion, rows;
  const void* bias;
  Image logits[4];  // u, r, z, m
  Image trend, new_trend;
  float alpha, max_offset;

  // Floats from one pixel's logits to the next, odd so that pixels have banks of their own.
  MOTIONRNN_EXT_MATH int32_t stride() const { return rows | 1; }
  MOTIONRNN_EXT_MATH size_t logits_bytes() const { return (kTilePixels * stride() * sizeof(float) + 15) / 16 * 16; }
};

// Stage s(r) F: the lane's values of mma's tile are those of `column` and its neighbour, of which the logits are `sum`.
template <class T>
__device__ __forceinline__ void stage_reset(const GatedWarp& a, const Tile& tile, int column, int in_tile, float sum,
                                            Quad<T>* staged) {
  const int channel = column - a.motion;
  if (channel < 0 || channel >= a.motion) return;
  const int pixel = tile.col + in_tile;
  const float offset = pixel < a.pixels ? __ldg(&element<const float>(a.offset.image, tile.b, channel, pixel)) : 0.0f;
  reinterpret_cast<T*>(staged + in_tile * a.reset_offset.pixel)[channel] =
      from_float<T>(math::sigmoid(to_float(from_float<T>(sum))) * offset);
}

// Make the logits of the block's pixels, rounded as they are stored, in shared memory. Every thread takes part.
template <class T>
__device__ __forceinline__ void make_logits(const GatedWarp& a, const Tile& tile, const Factor<T, T>& x,
                                            const Factor<T, float>& offset, const Factor<T, T>& reset_offset,
                                            float* logits) {
  const int first = threadIdx.x / kWarp, stride = a.stride();
  float sum[2][4] = {};
  offset.multiply_staged(first, sum);
  add_bias<T>(a, first, sum);
  x.multiply_staged(first, sum);
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = column_of(first + n * kGatesWarps, i);
      if (column >= a.rows) continue;
      // z is rounded when it is whole.
      const bool is_candidate = column >= 2 * a.motion && column < 3 * a.motion;
      logits[pixel_of(i) * stride + column] = is_candidate ? sum[n][i] : to_float(from_float<T>(sum[n][i]));
      stage_reset<T>(a, tile, column, pixel_of(i), sum[n][i], reset_offset.staged);
    }
  __syncthreads();
  float candidate[1][4] = {};
  reset_offset.multiply_staged(first, candidate);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int column = column_of(first, i);
    if (column >= a.motion) continue;
    float& logit = logits[pixel_of(i) * stride + 2 * a.motion + column];
    logit = to_float(from_float<T>(logit + candidate[0][i]));
  }
  __syncthreads();
}

// Store the logits for backward; neighbouring threads write neighbouring addresses.
template <class T>
__device__ __forceinline__ void store_logits(const GatedWarp& a, const Tile& tile, const float* logits) {
#pragma unroll 1
  for (int map = 0; map < 4; ++map) {
    const Image& image = a.logits[map];
    const int first = map * a.motion, channels = map < 3 ? a.motion : a.rows - first;
#pragma unroll 1
    for (int i = threadIdx.x; i < kTilePixels * channels; i += kGatesThreads) {
      const int slow = image.channel == 1 ? i / channels : i / kTilePixels;
      const int in_tile = image.channel == 1 ? slow : i - slow * kTilePixels;
      const int channel = image.channel == 1 ? i - slow * channels : slow;
      if (tile.col + in_tile < a.pixels)
        element<T>(image, tile.b, channel, tile.col + in_tile) =
            from_float<T>(logits[in_tile * a.stride() + first + channel]);
    }
  }
}

// Move the motion of the warp's taps at 16 pixels, and find these taps: taps[i][pixel] is tap part + i * kForwardWarps.
__device__ __forceinline__ void find_moved_taps(const GatedWarp& a, const WarpArguments& w, const Tile& tile, int part,
                                                int places, const float* logits, CornerIndices* taps) {
  const int lane = threadIdx.x % kWarp, in_tile = lane % kTile, pixel = tile.col + in_tile, all_taps = w.k * w.k;
  const int row = pixel / w.width, col = pixel - row * w.width;
  logits += in_tile * a.stride();
  const Channels<const float> offset(a.offset.image, tile.b, pixel), trend(a.trend, tile.b, pixel);
  const Channels<float> new_offset(w.offset, tile.b, pixel), new_trend(a.new_trend, tile.b, pixel);
#pragma unroll 1
  for (int i = lane / kTile; i < places; i += kWarp / kTile) {
    const int tap = part + i * kForwardWarps;
    CornerIndices corner{{-1, -1, -1, -1}};
    float4 weight = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (tap < all_taps && pixel < a.pixels) {
      float previous[2][2], moved[2][2];
#pragma unroll
      for (int axis = 0; axis < 2; ++axis) {
        const int channel = axis * all_taps + tap;
        previous[axis][0] = offset.read(channel), previous[axis][1] = trend.read(channel);
      }
#pragma unroll
      for (int axis = 0; axis < 2; ++axis) {
        const int channel = axis * all_taps + tap;
        math::MotionUpdate::apply<float>(
            {logits[channel], logits[2 * a.motion + channel], previous[axis][0], previous[axis][1]}, moved[axis],
            {a.alpha, a.max_offset});
        new_offset[channel] = moved[axis][0], new_trend[channel] = moved[axis][1];
      }
      const int tap_row = tap / w.k;
      const Place place =
          locate(w, tap_row, tap - tap_row * w.k, row, col, moved[0][0], moved[1][0], logits[3 * a.motion + tap]);
      const auto weights = math::bilinear_weights<float>(place.row.fraction, place.col.fraction);
      corner = corner_indices(w, place);
      weight = make_float4(place.mask * weights.v00, place.mask * weights.v01, place.mask * weights.v10,
                           place.mask * weights.v11);
    }
    taps[i * kTapDistance + in_tile] = corner, weights_of<kTapsOfPart>(taps + i * kTapDistance + in_tile) = weight;
  }
}

// Blocks per multiprocessor for __launch_bounds__: kGatesBlocks, with 64 registers to a thread, but where it would
// spill, which is 32 channels in float32, or with an address for each.
template <class T, int N, bool vectors>
constexpr int gated_warp_blocks() {
  if (N < 32 || (sizeof(T) == 2 && vectors)) return kGatesBlocks;
  return sizeof(T) == 2 ? 4 : kArchitecture >= 1200 ? 5 : 6;
}

template <class T, int N, bool vectors>
__global__ void __launch_bounds__(kGatesThreads, gated_warp_blocks<T, N, vectors>())
    gated_warp_forward(const GatedWarp a, const WarpArguments w) {
  using Shape = ForwardShape<T, N>;
  using In = typename Shape::In;
  static_assert(Shape::Out::kTiles * 4 * kWarp * sizeof(float) <= kPartBytes);
  MOTIONRNN_EXT_SHARED(shared);
  const int part = threadIdx.x / kWarp, all_taps = w.k * w.k;
  auto* taps = reinterpret_cast<CornerIndices*>(shared + part * kPartBytes);
  float* logits = reinterpret_cast<float*>(shared + kPartsBytes);
  unsigned char* staged = shared + kPartsBytes + a.logits_bytes();
  prefetch_weight<T, N>(w);
  const int steps = ((all_taps - part + kForwardWarps - 1) / kForwardWarps + In::kTaps - 1) / In::kTaps;
#pragma unroll 1
  for (int index = blockIdx.x; index < a.count; index += gridDim.x) {
    const Tile tile(a.shape, index);
    const Factor<T, T> x(a.x, a.shape, tile, 1, a.pixels, staged);
    const Factor<T, float> offset(a.offset, a.shape, tile, 1, a.pixels, x.end());
    const Factor<T, T> reset_offset(a.reset_offset, a.shape, tile, 1, a.pixels, offset.end());
    x.begin(1), offset.begin(1);
    find_places(a.reset_offset, 1, a.shape, reset_offset.places);
    // What fills up a pixel's last quad.
    for (int i = threadIdx.x; i < a.reset_offset.staged_quads(a.shape); i += kGatesThreads)
      reset_offset.staged[i] = Quad<T>{};
    __syncthreads();
    make_logits<T>(a, tile, x, offset, reset_offset, logits);
    store_logits<T>(a, tile, logits);
    find_moved_taps(a, w, tile, part, steps * In::kTaps, logits, taps);
    __syncwarp();
    float sum[Shape::Out::kTiles][4] = {};
    int tap = part + In::tap(threadIdx.x % 4) * kForwardWarps;
    CornerIndices* lane_taps = taps + In::tap(threadIdx.x % 4) * kTapDistance;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      add_packed_step<T, N, vectors, kTapsOfPart>(w, tile.b, tap, lane_taps, sum);
      tap += In::kTaps * kForwardWarps, lane_taps += In::kTaps * kTapDistance;
    }
    __syncwarp();
    add_warps(sum, taps, kPartBytes);
    if (part == 0) store_tile<T, N, vectors>(w, tile.b, tile.col, 0, sum);
  }
}

// Return whether the gates and the warp run in one launch: gates of 1x1, and a packed weight, with taps of 3x3 and 32
// channels at the most.
inline bool in_one_launch(const GatesArguments& a, const WarpArguments& w) { return a.size == 1 && is_packed(w); }

template <class T, int N>
void launch_gated_warp(const GatesArguments& a, const WarpArguments& w, Stream stream) {
  const Packed<T> packed{a};
  const PackArguments fragments = packed.forward(a.packed);
  const TileShape shape = row_of_pixels(a);
  const GatedWarp gates{operand_of<T>(a.x, fragments.fragments[0]),
                        operand_of<float>(a.offset, fragments.fragments[1]),
                        operand_of<T>(Image{}, fragments.fragments[2]),
                        shape,
                        shape.per_image * a.batch,
                        a.height * a.width,
                        a.motion,
                        packed.rows,
                        a.x_bias,
                        {a.update, a.reset, a.candidate, a.mask},
                        a.trend,
                        a.new_trend,
                        a.alpha,
                        a.max_offset};
  size_t bytes = kPartsBytes + gates.logits_bytes();
  for (const Operand& operand : {gates.x, gates.offset, gates.reset_offset})
    bytes += operand.template shared_bytes<T>(shape);
  const int blocks = std::min(gates.count, kForwardBlocks / N);
  const bool vectors = takes_vectors<T>(w.x, w.channels, ForwardShape<T, N>::In::kVector) &&
                       takes_vectors<T>(w.out, w.out_channels, ForwardShape<T, N>::Out::kVector);
  launch(vectors ? gated_warp_forward<T, N, true> : gated_warp_forward<T, N, false>, dim3(blocks), kGatesThreads, bytes,
         stream, gates, w);
}

template <class T>
void launch_gated_warp(const GatesArguments& a, const WarpArguments& w, Stream stream) {
  for_channels(w, [&](auto n) { launch_gated_warp<T, n()>(a, w, stream); });
}

}  // namespace
}  // namespace motionrnn_ext::cuda
