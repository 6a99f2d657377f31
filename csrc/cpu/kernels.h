// The interface between the CPU kernels, compiled once per instruction set without torch, and their bindings.
#pragma once

#include <cstdint>

#include "math/maps.h"

namespace motionrnn_ext::cpu {

using math::Map;
using math::PointwiseArguments;
using math::Types;

// Bytes, of the kernels' own memory and of packed weights: the widest vector.
constexpr int kAlignment = 64;

// Runs the map over elements [begin, end) of the rows * inner elements of each stream.
using PointwiseKernel = void (*)(const PointwiseArguments&, int64_t begin, int64_t end);

// A map (B, C, H, W) whose pixels lie at one distance: contiguous has channel = H*W, pixel = 1; channels_last 1 and C,
// or more if it was split from other channels.
struct Image {
  const void* data;
  int64_t batch, channel, pixel;  // strides in elements
};

struct WarpArguments {
  int64_t batch, channels, out_channels, height, width;
  int k;
  int bands;   // an item of work is one band of one image's pixels; items = batch * bands
  int groups;  // backward: groups of nearly equal numbers of items, each with one partial grad_weight; at most items
  Image x;
  Image offset, mask_logits;  // (B, 2K, H, W), (B, K, H, W)
  const void* weight;         // (C_out, C, k, k) contiguous
  Image out;                  // forward: written; backward: the gradient of out

  // Backward. Null means not wanted.
  Image grad_x, grad_offset, grad_mask_logits;
  void* grad_weight;  // contiguous

  // Workspace in the arithmetic type, sizes by WarpKernels::sizes.
  void* packed_weight;
  void* grad_image;  // a partial grad_x per item, zero-framed and channels last; only if bands > 1 and grad_x is wanted
  void* grad_matrix;  // a partial grad_weight per group
};

struct WarpSizes {  // bytes
  int64_t packed_weight, grad_image_per_item, grad_matrix_per_group;
};

struct WarpKernels {
  WarpSizes (*sizes)(const WarpArguments&);
  void (*pack)(const WarpArguments&);                                    // weight -> packed_weight
  void (*forward)(const WarpArguments&, int64_t begin, int64_t end);     // items
  void (*backward)(const WarpArguments&, int64_t begin, int64_t end);    // groups
  void (*sum_images)(const WarpArguments&, int64_t begin, int64_t end);  // batch entries: grad_image -> grad_x
  void (*sum_matrices)(const WarpArguments&);                            // grad_matrix -> grad_weight
};

struct GatesArguments {
  int64_t batch, channels, motion, masks, height, width;
  int k;
  double alpha, max_offset;
  int bands;  // an item of work is one band of one image's rows, at most one a row; items = batch * bands

  Image x, offset;                 // (B, C, H, W), (B, M, H, W)
  Image update, reset, candidate;  // (B, M, H, W) logits; forward: written
  Image new_offset;                // (B, M, H, W); forward: written
  // Weights, all contiguous.
  const void *x_weight, *x_bias;  // (3M + masks, C, k, k) for u, r, z, m, and (3M + masks)
  const void* state_weight;       // (2M, M, k, k)
  const void* candidate_weight;   // (M, M, k, k)

  // Forward.
  Image trend, new_trend, mask;

  // Backward. Null means not wanted. The gradient of the new offset is the sum of both.
  Image grad_new_offset, more_grad_new_offset, grad_new_trend, grad_mask;
  Image grad_x, grad_offset, grad_trend;
  Image grad_logits;   // (B, 3M + masks, H, W) for u, r, z, m, in the arithmetic type
  bool add_to_grad_x;  // whether grad_x is added to what is there

  // The gradients of the weights and the bias, all contiguous, from x, offset, reset and grad_logits.
  void *grad_x_weight, *grad_x_bias, *grad_state_weight, *grad_candidate_weight;

  void* packed;  // in the arithmetic type
};

struct GatesKernels {
  int64_t (*packed_size)(const GatesArguments&);                                // bytes
  void (*pack)(const GatesArguments&, bool backward);                           // weights -> packed, one direction
  void (*forward)(const GatesArguments&, int64_t begin, int64_t end);           // items
  void (*backward)(const GatesArguments&, int64_t begin, int64_t end);          // items
  int64_t (*blocks)(const GatesArguments&);                                     // blocks of weights
  void (*weight_gradients)(const GatesArguments&, int64_t begin, int64_t end);  // blocks
};

// A 3x3 or 5x5 convolution that keeps the map's size, by Winograd's algorithm (winograd/).
struct WinogradArguments {
  int64_t batch, channels, out_channels, height, width;

  Image x;                    // (B, C, H, W)
  Image out;                  // (B, C_out, H, W)
  const void* bias;           // (C_out); null: none
  int64_t item_tiles, parts;  // forward: the most tiles of an item, and the parts of the output channels; by plan

  // The weight is (C_out, C, k, k) and contiguous. `transposed`: it is (C, C_out, k, k) and its taps are mirrored.
  const void* weight;
  bool transposed;
  void* packed;

  // Weight gradient: the sum over `steps` pairs of x and the gradient of out.
  int64_t steps;
  const Image *xs, *grads;
  void* grad_weight;  // (C_out, C, k, k) contiguous
};

struct WinogradKernels {
  int64_t (*packed_size)(const WinogradArguments&);                               // elements of a packed weight
  int64_t (*blocks)(const WinogradArguments&);                                    // blocks of output channels
  int64_t (*plan)(WinogradArguments&, int64_t threads);                           // sets the items' fields
  void (*pack)(const WinogradArguments&, int64_t begin, int64_t end);             // blocks: weight -> packed
  void (*forward)(const WinogradArguments&, int64_t begin, int64_t end);          // items
  void (*weight_gradient)(const WinogradArguments&, int64_t begin, int64_t end);  // blocks
};

// Convolutions of stride 2 between a map (B, C, 2H, 2W) and one of half its size, (B, M, H, W), by a weight
// (M, C, k, k) with a padding of (k-1)/2: `halve` computes the half from the whole, and `twice` is its transpose.
struct StridedArguments {
  int64_t batch, channels, half_channels, height, width;
  int k;
  int bands;  // an item of work is one band of one image's half rows, at most one a row; items = batch * bands

  Image whole, half;
  Image addend;  // twice: null, or what is added to the result, like `whole`

  const void *weight, *bias;  // contiguous; bias null: none
  void* packed;
};

struct StridedKernels {
  int64_t (*packed_size)(const StridedArguments&);  // bytes, the same both ways
  void (*pack)(const StridedArguments&, bool to_half);
  void (*halve)(const StridedArguments&, int64_t begin, int64_t end);  // items
  void (*twice)(const StridedArguments&, int64_t begin, int64_t end);  // items
};

#define MOTIONRNN_EXT_DECLARE_KERNELS(isa)                \
  namespace isa {                                         \
  PointwiseKernel pointwise_kernel(Map map, Types types); \
  WarpKernels warp_kernels(Types types);                  \
  GatesKernels gates_kernels(Types types);                \
  WinogradKernels winograd_kernels(Types types, int k);   \
  StridedKernels strided_kernels(Types types);            \
  }
MOTIONRNN_EXT_DECLARE_KERNELS(baseline)
MOTIONRNN_EXT_DECLARE_KERNELS(x86_64_v3)
MOTIONRNN_EXT_DECLARE_KERNELS(x86_64_v4)
#undef MOTIONRNN_EXT_DECLARE_KERNELS

}  // namespace motionrnn_ext::cpu
