// The end of the backward pass of gates and warp. The warp's main kernel has made the gradients of F_t and of the mask,
// and its parts of the gradients of x and of its weight. What follows is:
//
//   gates of 1x1   finish_gates: everything else, in one launch, as all of it is a matter of one pixel
//   larger gates   finish_update: the warp's weight, and update_backward; then reset_backward and inputs_backward
//
// Blocks that sum the weight's gradient come first, as in finish_backward.
#pragma once

#include "cuda/motion_gates/backward.cuh"
#include "cuda/motion_gates/gated_warp.cuh"
#include "cuda/offset_warp/backward.cuh"

namespace motionrnn_ext::cuda {
namespace {

template <class T, int N>
__global__ void __launch_bounds__(kFinishThreads)
    finish_update(const UpdateBackward a, const WarpArguments w, const FinishPlan plan) {
  MOTIONRNN_EXT_SHARED(shared);
  if (int(blockIdx.x) < plan.weight_blocks)
    finish_weight<T, N>(w, plan, reinterpret_cast<float*>(shared));
  else
    update_backward_of<T>(a, int64_t(blockIdx.x - plan.weight_blocks) * kFinishThreads + threadIdx.x);
}

constexpr int kFinishWarps = kFinishThreads / kWarp;

// The operands of finish_gates are parts of one row of quads for each pixel: [g_u, g_r, g_z, g_m]. All start at whole
// quads, because there are 2 K motion channels, and K is odd.
struct FinishGates {
  Operand candidate;    // g_z
  Operand grads, rest;  // [g_u, g_r]; [g_z, g_m]
  TileShape shape;
  int32_t pixels, first_candidate;  // the quad of a row where g_z begins
  int32_t row, stride;              // quads of a row, and to the next one

  MOTIONRNN_EXT_MATH int32_t places() const { return candidate.places() + grads.places() + rest.places(); }
  // The rows; what is known of the gradient of F; the places.
  template <class T>
  size_t shared_bytes(int32_t motion) const {
    return kTilePixels * stride * sizeof(Quad<T>) + (kTilePixels * motion + places()) * sizeof(float);
  }
};

// A block of finish_gates, and its shared memory.
template <class T>
struct GatesBackward {
  const GatesArguments& a;
  const FinishGates& f;
  const Tile tile;
  Quad<T>* rows;
  float* grad_offset;
  int32_t* places;

  __device__ __forceinline__ GatesBackward(const GatesArguments& a_, const FinishGates& f_, int32_t index,
                                           unsigned char* shared)
      : a(a_),
        f(f_),
        tile(f.shape, index),
        rows(reinterpret_cast<Quad<T>*>(shared)),
        grad_offset(reinterpret_cast<float*>(rows + kTilePixels * f.stride)),
        places(reinterpret_cast<int32_t*>(grad_offset + kTilePixels * a.motion)) {}

  __device__ __forceinline__ T& grad(int in_tile, int channel) const {
    return reinterpret_cast<T*>(rows + in_tile * f.stride)[channel];
  }
  __device__ __forceinline__ bool inside(int in_tile) const { return tile.col + in_tile < f.pixels; }

  // Call `use` with each pixel of the tile and each channel; neighbouring threads have neighbouring addresses.
  template <class Use>
  __device__ __forceinline__ void for_each(int channels, bool by_pixel, Use&& use) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < kTilePixels * channels; i += kFinishThreads) {
      const int slow = by_pixel ? i / channels : i / kTilePixels, fast = i - slow * (by_pixel ? channels : kTilePixels);
      use(by_pixel ? slow : fast, by_pixel ? fast : slow);
    }
  }

  // g_u and g_z. Zeros stand for the mask until g_z was read, whose last quad they fill up.
  __device__ __forceinline__ void update() const {
    const int motion = a.motion;
    for_each(motion + 2, a.update.channel == 1, [&](int in_tile, int channel) {
      const int pixel = tile.col + in_tile, b = tile.b;
      if (channel >= motion) {
        grad(in_tile, 2 * motion + channel) = from_float<T>(0.0f);
        return;
      }
      float out[4] = {};
      if (inside(in_tile)) {
        const float in[6] = {grad_of_motion(a, b, channel, pixel),
                             __ldg(&element<const float>(a.grad_new_trend, b, channel, pixel)),
                             to_float(__ldg(&element<const T>(a.update, b, channel, pixel))),
                             to_float(__ldg(&element<const T>(a.candidate, b, channel, pixel))),
                             __ldg(&element<const float>(a.offset, b, channel, pixel)),
                             __ldg(&element<const float>(a.new_offset, b, channel, pixel))};
        math::MotionUpdateBackward::apply<float>(in, out, {a.alpha, a.max_offset});
        if (a.grad_trend.data != nullptr) element<float>(a.grad_trend, b, channel, pixel) = out[3];
      }
      grad(in_tile, channel) = from_float<T>(out[0]);
      grad(in_tile, 2 * motion + channel) = from_float<T>(out[1]);
      grad_offset[in_tile * motion + channel] = out[2];
    });
  }

  // d = W_z^T g_z;  g_r = d F s'(r);  g_F += d s(r)
  __device__ __forceinline__ void reset() const {
    const int first = threadIdx.x / kWarp, motion = a.motion;
    if (first >= f.candidate.tiles) return;
    float sum[1][4] = {};
    multiply_chunk<T>(f.candidate, 0, f.shape, rows + f.first_candidate, places, first, sum);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int channel = column_of(first, i), in_tile = pixel_of(i), pixel = tile.col + in_tile;
      if (channel >= motion) continue;
      float out[2] = {};
      if (inside(in_tile)) {
        const float in[3] = {sum[0][i], to_float(__ldg(&element<const T>(a.reset, tile.b, channel, pixel))),
                             __ldg(&element<const float>(a.offset, tile.b, channel, pixel))};
        math::MotionResetBackward::apply<float>(in, out, {});
        if (a.reset_offset.data != nullptr)
          element<T>(a.reset_offset, tile.b, channel, pixel) = from_float<T>(math::sigmoid(in[1]) * in[2]);
      }
      grad(in_tile, motion + channel) = from_float<T>(out[0]);
      grad_offset[in_tile * motion + channel] += out[1];
    }
  }

  // g_m, and 0 in what fills up the row
  __device__ __forceinline__ void mask() const {
    const int first = 3 * a.motion;
    for_each(4 * f.row - first, a.grad_mask.channel == 1, [&](int in_tile, int channel) {
      grad(in_tile, first + channel) = inside(in_tile) && channel < a.masks
                                           ? __ldg(&element<const T>(a.grad_mask, tile.b, channel, tile.col + in_tile))
                                           : from_float<T>(0.0f);
    });
  }

  // g_x += W_x^T [g_u, g_r, g_z, g_m];  g_F += W_F^T [g_u, g_r]
  __device__ __forceinline__ void inputs(const FinishedSums& of_warp) const {
    const int32_t *of_grads = places + f.candidate.places(), *of_rest = of_grads + f.grads.places();
#pragma unroll 1
    for (int first = threadIdx.x / kWarp; first < f.grads.tiles; first += kFinishWarps) {
      float sum[1][4] = {};
      if (first < f.rest.tiles) multiply_chunk<T>(f.rest, 0, f.shape, rows + f.first_candidate, of_rest, first, sum);
      // The last tile of x may hold columns of F, to which z and m give nothing: not even 0 times nan.
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (column_of(first, i) >= a.channels) sum[0][i] = 0.0f;
      multiply_chunk<T>(f.grads, 0, f.shape, rows, of_grads, first, sum);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = column_of(first, i), channel = column - a.channels;
        const int in_tile = pixel_of(i), pixel = tile.col + in_tile;
        if (!inside(in_tile) || channel >= a.motion) continue;
        if (channel >= 0) {
          if (a.grad_offset.data != nullptr)
            element<float>(a.grad_offset, tile.b, channel, pixel) =
                grad_offset[in_tile * a.motion + channel] + sum[0][i];
        } else if (a.grad_x.data != nullptr) {
          element<T>(a.grad_x, tile.b, column, pixel) = from_float<T>(of_warp(tile.b, pixel, column) + sum[0][i]);
        }
      }
    }
  }

  // Store the rows for the gradients of the weights.
  __device__ __forceinline__ void store_rows() const {
    if (a.grads.data == nullptr) return;
    for_each(f.row, true, [&](int in_tile, int quad) {
      if (inside(in_tile))
        store_words<Quad<T>::kWords>(&element<T>(a.grads, tile.b, 4 * quad, tile.col + in_tile),
                                     rows[in_tile * f.stride + quad].word);
    });
  }

  __device__ __forceinline__ void run(const WarpArguments& w) const {
    find_places(f.candidate, 1, f.shape, places);
    find_places(f.grads, 1, f.shape, places + f.candidate.places());
    find_places(f.rest, 1, f.shape, places + f.candidate.places() + f.grads.places());
    update();
    const FinishedSums of_warp(w);
    __syncthreads();
    reset();
    __syncthreads();
    mask();
    __syncthreads();
    inputs(of_warp);
    store_rows();
  }
};

template <class T, int N>
__global__ void __launch_bounds__(kFinishThreads, 4)
    finish_gates(const GatesArguments a, const FinishGates f, const WarpArguments w, const FinishPlan plan) {
  MOTIONRNN_EXT_SHARED(shared);
  if (int(blockIdx.x) < plan.weight_blocks)
    finish_weight<T, N>(w, plan, reinterpret_cast<float*>(shared));
  else
    GatesBackward<T>(a, f, blockIdx.x - plan.weight_blocks, shared).run(w);
}

// ---- Launches

inline dim3 finish_grid(const FinishPlan& plan, int64_t blocks) {
  return dim3(static_cast<unsigned>(plan.weight_blocks + blocks));
}

template <class T, int N>
void launch_finish_gates(const GatesArguments& a, const WarpArguments& w, const FinishPlan& plan, Stream stream) {
  const PackArguments fragments = Packed<T>{a}.backward(a.packed);
  FinishGates gates{operand_of<T>(Image{}, fragments.fragments[0]),
                    operand_of<T>(Image{}, fragments.fragments[1]),
                    operand_of<T>(Image{}, fragments.fragments[2]),
                    row_of_pixels(a),
                    a.height * a.width,
                    a.motion / 2,
                    (3 * a.motion + a.masks + 3) / 4,
                    0};
  gates.stride = gates.row % 8 == 0 ? gates.row + 4 : gates.row;
  for (Operand* operand : {&gates.candidate, &gates.grads, &gates.rest}) operand->pixel = gates.stride;
  const size_t bytes = std::max(gates.template shared_bytes<T>(a.motion), kFinishThreads * sizeof(float));
  launch(finish_gates<T, N>, finish_grid(plan, int64_t(gates.shape.per_image) * a.batch), kFinishThreads, bytes, stream,
         a, gates, w, plan);
}

template <class T, int N>
void launch_finish_update(const GatesArguments& a, const WarpArguments& w, const FinishPlan& plan, Stream stream) {
  const UpdateBackward update(a);
  launch(finish_update<T, N>, finish_grid(plan, (update.threads() + kFinishThreads - 1) / kFinishThreads),
         kFinishThreads, kFinishThreads * sizeof(float), stream, update, w, plan);
}

// Return whether this was the last launch.
template <class T>
bool launch_gated_warp_finish(const GatesArguments& a, const WarpArguments& w, Stream stream) {
  const auto finish = [&]<int N, bool chunked>(Backward<T, N, chunked>) {
    const BackwardPlan<T, N, chunked> plan(w);
    const int64_t threads = w.grad_weight != nullptr ? int64_t(plan.elements) * kSumLanes : 0;
    const FinishPlan of_weight{static_cast<int>((threads + kFinishThreads - 1) / kFinishThreads),
                               plan.blocks,
                               plan.elements,
                               plan.out_chunks,
                               false,
                               false,
                               0,
                               Division(1),
                               Division(1)};
    // The quads of a larger motion come in more than one chunk.
    const bool is_last = a.size == 1 && w.k <= 3;
    if (is_last)
      launch_finish_gates<T, N>(a, w, of_weight, stream);
    else
      launch_finish_update<T, N>(a, w, of_weight, stream);
    return is_last;
  };
  return choose_backward<T>(w, finish);
}

}  // namespace
}  // namespace motionrnn_ext::cuda
