// The interface between the CUDA kernels, which nvcc compiles without torch, and their bindings. `stream` is a
// cudaStream_t. Every function launches and returns; errors are exceptions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math/maps.h"

namespace motionrnn_ext::cuda {

using math::Map;
using math::PointwiseArguments;
using math::Types;

// Arithmetic is float; there is no float64.
void pointwise(Map map, Types types, const PointwiseArguments& arguments, void* stream);

// (B, C, H, W) whose pixels lie at one distance; strides in elements. Contiguous: channel = H*W, pixel = 1;
// channels_last: channel = 1, pixel = C, or more where it was split from a wider one.
struct Image {
  void* data = nullptr;
  int64_t batch = 0;
  int32_t channel = 0, pixel = 0;
};

// motion_update in the same launch. All (B, 2K, H, W): logits and their gradients are features, the rest is state.
struct Motion {
  Image update_logits, candidate_logits, offset, trend;
  float alpha, max_offset;
  Image new_trend;                // written forward; the new offset is WarpArguments::offset
  Image grad_offset, grad_trend;  // given backward: of the new offset and trend
  Image grad_update_logits, grad_candidate_logits, grad_previous_trend;

  MOTIONRNN_EXT_MATH bool given() const { return update_logits.data != nullptr; }
};

struct WarpArguments {
  int32_t batch, channels, out_channels, height, width, k;
  Image x;             // features
  Image offset;        // motion state, (B, 2K, H, W); written forward where motion is given
  Image mask_logits;   // features, (B, K, H, W)
  const void* weight;  // features, (C_out, C, k, k) contiguous
  const void* packed;  // the weight of one direction as `pack` of GatedWarpKernels has written it, or null
  Image out;           // features, written forward
  Motion motion;

  // Backward: grad_out is given; null among the others means not wanted. grad_offset is that of the previous offset
  // where motion is given.
  Image grad_out, grad_x, grad_offset, grad_mask_logits;
  void* grad_weight;  // contiguous
  bool deterministic;

  // Workspace of backward.
  void* sums;       // grad_x before its conversion, see offset_warp/sums.cuh; grad_x itself where the two agree
  float* partials;  // of grad_weight
  uint32_t* maxima;
};

// Bytes of workspace for backward, zero where it needs none. grad_x and grad_weight show which gradients are wanted.
struct WarpWorkspace {
  size_t sums, partials, maxima;
};

struct WarpKernels {
  void (*forward)(const WarpArguments&, void* stream);
  WarpWorkspace (*workspace)(const WarpArguments&);
  void (*backward)(const WarpArguments&, void* stream);
  void (*backward_main)(const WarpArguments&, void* stream);  // without its last launch
};

// The kernels for each storage type of the features; motion state is float.
WarpKernels warp_kernels_f32();
WarpKernels warp_kernels_bf16();
WarpKernels warp_kernels_f16();

// A MotionGRU step up to its warp. Features are of T, motion state and its gradients are float; images of s(r) F and of
// the logits' gradients are workspaces of pixel rows, whose length is a multiple of four.
struct GatesArguments {
  int32_t batch, channels, motion, masks, height, width;
  int32_t size;  // side of the convolutions' kernels
  Image x, offset, trend;
  const void *x_weight, *x_bias, *state_weight, *candidate_weight;  // contiguous
  float alpha, max_offset;
  Image update, reset, candidate, mask;  // the logits: written forward, all but the mask's read backward
  Image new_offset, new_trend;           // written forward; backward reads new_offset
  Image reset_offset;                    // s(r) F; backward may do without

  // Backward: the first three are given; null among the others means not wanted.
  Image grad_new_offset, grad_new_trend, grad_mask;
  Image grad_of_warp;  // an addend of grad_new_offset, where there is one
  Image grads;         // [g_u, g_r, g_z, g_m] of the logits
  Image grad_x, grad_offset, grad_trend;

  void* packed;  // the weights of one direction, as `pack` of the kernels has written them
};

struct GatesKernels {
  size_t (*packed_bytes)(const GatesArguments&, bool backward);
  void (*pack)(const GatesArguments&, bool backward, void* stream);
  void (*forward)(const GatesArguments&, void* stream);
  void (*backward)(const GatesArguments&, void* stream);
  // What follows the update in backward. The warp's part of the gradient of x is added where its sums are given.
  void (*convolutions_backward)(const GatesArguments&, const WarpArguments&, void* stream);
};

GatesKernels gates_kernels_f32();
GatesKernels gates_kernels_bf16();
GatesKernels gates_kernels_f16();

// The gates and the warp by the motion that they make, in one launch where `in_one_launch` says so. `finish` is the
// launch after the warp's main kernel in backward, and returns whether it was the last; convolutions_backward follows.
struct GatedWarpKernels {
  size_t (*packed_bytes)(const WarpArguments&, bool backward);  // 0 where the warp's weight is not packed
  void (*pack)(const WarpArguments&, bool backward, void* to, void* stream);
  bool (*in_one_launch)(const GatesArguments&, const WarpArguments&);
  void (*forward)(const GatesArguments&, const WarpArguments&, void* stream);
  bool (*finish)(const GatesArguments&, const WarpArguments&, void* stream);
};

GatedWarpKernels gated_warp_kernels_f32();
GatedWarpKernels gated_warp_kernels_bf16();
GatedWarpKernels gated_warp_kernels_f16();

// The end of a MotionGRU step: decoder, output gate of 1x1 and blend. Maps are of twice the size of `warped`.
struct DecodeBlendArguments {
  int32_t batch, channels, encoded, height, width;  // height and width of `warped`
  bool gates_maps;                                  // whether the gate multiplies the maps, and not Q
  Image warped, maps;
  const void *decoder_weight, *decoder_bias;  // (encoded, C, 4, 4), contiguous
  const void *gate_weight, *gate_bias;        // (C, 2C, 1, 1), contiguous
  Image decoded, logits;                      // Q and g: written forward, read backward
  Image out;
  Image grad, grad_logits, grad_decoded, grad_maps;
  void* packed;  // the weights of one direction, as `pack` of the kernels has written them
};

struct DecodeBlendKernels {
  size_t (*packed_bytes)(const DecodeBlendArguments&, bool backward);
  void (*pack)(const DecodeBlendArguments&, bool backward, void* stream);
  void (*forward)(const DecodeBlendArguments&, void* stream);
  void (*backward)(const DecodeBlendArguments&, void* stream);
};

DecodeBlendKernels decode_blend_kernels_f32();
DecodeBlendKernels decode_blend_kernels_bf16();
DecodeBlendKernels decode_blend_kernels_f16();

}  // namespace motionrnn_ext::cuda
