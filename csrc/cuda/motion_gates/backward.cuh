// The gradients of a MotionGRU step's gates, but for those of the weights, in three launches. One buffer of pixel rows
// takes the gradients of the logits, [g_u, g_r, g_z, g_m], and what sums over them reads it.
//
//   update_backward  g_u, g_z, and the parts of g_F and g_D that come from motion_update
//   reset_backward   d = W_z^T * g_z;   g_r = d F s'(r);   g_F += d s(r)
//   inputs_backward  g_x = W_x^T * [g_u, g_r, g_z, g_m];   g_F += W_F^T * [g_u, g_r]
#pragma once

#include "cuda/motion_gates/forward.cuh"
#include "cuda/offset_warp/sums.cuh"

namespace motionrnn_ext::cuda {
namespace {

struct UpdateBackward {
  int64_t count;  // pixels
  int32_t pixels, motion, masks, row;
  Image grad_new_offset, grad_new_trend, grad_mask, grad_of_warp, update, candidate, offset, new_offset;
  Image grads, grad_offset, grad_trend;
  float alpha, max_offset;
  bool by_pixel;  // channels are neighbours in memory

  explicit UpdateBackward(const GatesArguments& a)
      : count(int64_t(a.batch) * a.height * a.width),
        pixels(a.height * a.width),
        motion(a.motion),
        masks(a.masks),
        row(a.grads.pixel),
        grad_new_offset(a.grad_new_offset),
        grad_new_trend(a.grad_new_trend),
        grad_mask(a.grad_mask),
        grad_of_warp(a.grad_of_warp),
        update(a.update),
        candidate(a.candidate),
        offset(a.offset),
        new_offset(a.new_offset),
        grads(a.grads),
        grad_offset(a.grad_offset),
        grad_trend(a.grad_trend),
        alpha(a.alpha),
        max_offset(a.max_offset),
        by_pixel(a.update.channel == 1) {}
  int64_t threads() const { return count * (row - 2 * motion); }
};

// Return the gradient of a channel of F_t.
template <class Arguments>
__device__ __forceinline__ float grad_of_motion(const Arguments& a, int b, int channel, int pixel) {
  const float by_warp =
      a.grad_of_warp.data == nullptr ? 0.0f : __ldg(&element<const float>(a.grad_of_warp, b, channel, pixel));
  return by_warp + __ldg(&element<const float>(a.grad_new_offset, b, channel, pixel));
}

// A thread takes one channel of the motion at a pixel, or one of the mask or of what fills up the row.
template <class T>
__device__ __forceinline__ void update_backward_of(const UpdateBackward& a, int64_t i) {
  const int channels = a.row - 2 * a.motion;
  if (i >= a.count * channels) return;
  const int64_t fast = a.by_pixel ? channels : a.pixels, slow = i / fast;
  int b, channel, pixel;
  if (a.by_pixel) {
    channel = i - slow * fast, b = slow / a.pixels, pixel = slow - int64_t(b) * a.pixels;
  } else {
    pixel = i - slow * fast, b = slow / channels, channel = slow - int64_t(b) * channels;
  }
  if (channel >= a.motion) {
    const int mask = channel - a.motion;
    element<T>(a.grads, b, 3 * a.motion + mask, pixel) =
        mask < a.masks ? __ldg(&element<const T>(a.grad_mask, b, mask, pixel)) : from_float<T>(0.0f);
    return;
  }
  const float in[6] = {grad_of_motion(a, b, channel, pixel),
                       __ldg(&element<const float>(a.grad_new_trend, b, channel, pixel)),
                       to_float(__ldg(&element<const T>(a.update, b, channel, pixel))),
                       to_float(__ldg(&element<const T>(a.candidate, b, channel, pixel))),
                       __ldg(&element<const float>(a.offset, b, channel, pixel)),
                       __ldg(&element<const float>(a.new_offset, b, channel, pixel))};
  float out[4];
  math::MotionUpdateBackward::apply<float>(in, out, {a.alpha, a.max_offset});
  element<T>(a.grads, b, channel, pixel) = from_float<T>(out[0]);
  element<T>(a.grads, b, 2 * a.motion + channel, pixel) = from_float<T>(out[1]);
  if (a.grad_offset.data == nullptr) return;
  element<float>(a.grad_offset, b, channel, pixel) = out[2];
  element<float>(a.grad_trend, b, channel, pixel) = out[3];
}

template <class T>
__global__ void __launch_bounds__(kGatesThreads) update_backward(const UpdateBackward a) {
  update_backward_of<T>(a, int64_t(blockIdx.x) * kGatesThreads + threadIdx.x);
}

struct ResetBackward {
  Operand grad_candidate;
  TileShape shape;
  int32_t height, width, size, motion;
  Image reset, offset, grad_reset, grad_offset, reset_offset;
};

template <class T>
__global__ void __launch_bounds__(kGatesThreads, kGatesBlocks) reset_backward(const ResetBackward a) {
  MOTIONRNN_EXT_SHARED(shared);
  const Tile tile(a.shape);
  const Factor<T, T> grad_candidate(a.grad_candidate, a.shape, tile, a.height, a.width, shared);
  grad_candidate.begin(a.size);
  const int first = blockIdx.y * kGatesWarps + threadIdx.x / kWarp;
  float sum[1][4] = {};
  __syncthreads();
  grad_candidate.multiply_all(first, sum);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Pixel pixel(tile, a.shape, a.height, a.width, pixel_of(i));
    const int channel = column_of(first, i);
    if (!pixel.inside || channel >= a.motion) continue;
    const float in[3] = {sum[0][i], to_float(__ldg(&element<const T>(a.reset, pixel.b, channel, pixel.index))),
                         __ldg(&element<const float>(a.offset, pixel.b, channel, pixel.index))};
    float out[2];
    math::MotionResetBackward::apply<float>(in, out, {});
    element<T>(a.grad_reset, pixel.b, channel, pixel.index) = from_float<T>(out[0]);
    if (a.grad_offset.data != nullptr) element<float>(a.grad_offset, pixel.b, channel, pixel.index) += out[1];
    if (a.reset_offset.data != nullptr)
      element<T>(a.reset_offset, pixel.b, channel, pixel.index) = from_float<T>(math::sigmoid(in[1]) * in[2]);
  }
}

struct InputsBackward {
  Operand grads, rest;  // [g_u, g_r]; [g_z, g_m]
  TileShape shape;
  int32_t height, width, size, channels, motion;
  Image grad_x;
  Image grad_offset;
};

// `w`: the warp, whose part of g_x is added where its sums are given.
template <class T>
__global__ void __launch_bounds__(kWideThreads, kWideBlocks)
    inputs_backward(const InputsBackward a, const WarpArguments w) {
  MOTIONRNN_EXT_SHARED(shared);
  const Tile tile(a.shape);
  const Factor<T, T> grads(a.grads, a.shape, tile, a.height, a.width, shared);
  const Factor<T, T> rest(a.rest, a.shape, tile, a.height, a.width, grads.end());
  grads.begin(a.size);
  rest.begin(a.size);
  const int first = blockIdx.y * kWideWarps + threadIdx.x / kWarp;
  float sum[1][4] = {};
  __syncthreads();
  rest.multiply_all(first, sum);
  // The last tile of x may hold columns of F, to which z and m give nothing: not even 0 times nan.
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (column_of(first, i) >= a.channels) sum[0][i] = 0.0f;
  grads.multiply_all(first, sum);
  const FinishedSums of_warp(w);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Pixel pixel(tile, a.shape, a.height, a.width, pixel_of(i));
    const int column = column_of(first, i), motion = column - a.channels;
    if (!pixel.inside || motion >= a.motion) continue;
    if (motion >= 0) {
      if (a.grad_offset.data != nullptr) element<float>(a.grad_offset, pixel.b, motion, pixel.index) += sum[0][i];
    } else if (a.grad_x.data != nullptr) {
      const float by_warp = w.sums != nullptr ? of_warp(pixel.b, pixel.index, column) : 0.0f;
      element<T>(a.grad_x, pixel.b, column, pixel.index) = from_float<T>(sum[0][i] + by_warp);
    }
  }
}

// Return the channels of an image from `first` on.
template <class T>
Image channels_from(Image image, int64_t first) {
  image.data = static_cast<T*>(image.data) + first * image.channel;
  return image;
}

// Launch what follows the update.
template <class T>
void launch_convolutions_backward(const GatesArguments& a, const WarpArguments& w, Stream stream) {
  const PackArguments fragments = Packed<T>{a}.backward(a.packed);
  const TileShape shape(a.height, a.width, (a.size - 1) / 2);
  const Image grad_candidate = channels_from<T>(a.grads, 2 * a.motion);
  const ResetBackward reset{operand_of<T>(grad_candidate, fragments.fragments[0], true),
                            shape,
                            a.height,
                            a.width,
                            a.size,
                            a.motion,
                            a.reset,
                            a.offset,
                            channels_from<T>(a.grads, a.motion),
                            a.grad_offset,
                            a.reset_offset};
  launch(reset_backward<T>, gates_grid(a, shape, a.motion, kGatesWarps * kTileColumns), kGatesThreads,
         reset.grad_candidate.shared_bytes<T>(shape), stream, reset);
  if (a.grad_x.data == nullptr && a.grad_offset.data == nullptr) return;
  const InputsBackward inputs{operand_of<T>(a.grads, fragments.fragments[1], true),
                              operand_of<T>(grad_candidate, fragments.fragments[2], true),
                              shape,
                              a.height,
                              a.width,
                              a.size,
                              a.channels,
                              a.motion,
                              a.grad_x,
                              a.grad_offset};
  launch(inputs_backward<T>, gates_grid(a, shape, a.channels + a.motion, kWideWarps * kTileColumns), kWideThreads,
         inputs.grads.shared_bytes<T>(shape) + inputs.rest.shared_bytes<T>(shape), stream, inputs, w);
}

template <class T>
void launch_backward(const GatesArguments& a, Stream stream) {
  const UpdateBackward update(a);
  launch(update_backward<T>, dim3(static_cast<unsigned>((update.threads() + kGatesThreads - 1) / kGatesThreads)),
         kGatesThreads, 0, stream, update);
  launch_convolutions_backward<T>(a, {}, stream);
}

}  // namespace
}  // namespace motionrnn_ext::cuda
