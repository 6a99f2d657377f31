// What the bindings of all CPU kernels share: the instruction set, how images lie in memory, bands and workspace.
#pragma once

#include <algorithm>
#include <numeric>
#include <tuple>

#include "cpu/kernels.h"
#include "layouts.h"

namespace motionrnn_ext::cpu {

struct InstructionSet {
  const char* name;
  PointwiseKernel (*pointwise)(Map, Types);
  WarpKernels (*warp)(Types);
  GatesKernels (*gates)(Types);
  WinogradKernels (*winograd)(Types, int k);
  StridedKernels (*strided)(Types);
};

const InstructionSet& instruction_set();

// Return whether each pixel's channels are contiguous and all pixels lie at one distance; the batch stride may be any.
inline bool has_channels_last_pixels(const Tensor& t) {
  return (t.size(1) == 1 || t.stride(1) == 1) &&
         (t.size(2) == 1 || t.size(3) == 1 || t.stride(2) == t.stride(3) * t.size(3));
}

inline Image image_of(const Tensor& t) {
  const bool planes = is_dense_from(t, 1);
  STD_TORCH_CHECK(planes || has_channels_last_pixels(t),
                  "motionrnn_ext: an image is neither contiguous nor channels_last");
  if (planes) return {t.const_data_ptr(), t.stride(0), t.size(2) * t.size(3), 1};
  return {t.const_data_ptr(), t.stride(0), 1, t.size(3) == 1 ? t.stride(2) : t.stride(3)};
}

inline Tensor readable_image(const Tensor& t) {
  return is_dense_from(t, 1) || has_channels_last_pixels(t) ? t : torch::stable::contiguous(t);
}

// Return the number of bands that each image is cut into: as many as give every thread the same number of items, but no
// more than give each of them four. Work at the edges of bands, and the memory of their sums, grow with their number.
inline int64_t bands_for_threads(int64_t batch) {
  const int64_t threads = torch::stable::get_num_threads(), images = std::max<int64_t>(batch, 1);
  return images >= 4 * threads ? 1 : std::min(threads / std::gcd(images, threads), (4 * threads + images - 1) / images);
}

// ---- Ops that motion_step joins. `packed` is the memory of weights that are packed already; null: to be packed here.

using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using SixTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct GatesWeights {
  Tensor x_weight, x_bias, state_weight, candidate_weight;
};

Tensor run_warp(const Tensor& x, const Tensor& offset, const Tensor& mask_logits, const Tensor& weight,
                const void* packed);
FourTensors run_warp_backward(const Tensor& grad, const Tensor& x, const Tensor& offset, const Tensor& mask_logits,
                              const Tensor& weight, const void* packed, int64_t wanted);
SixTensors run_gates(const Tensor& x, const Tensor& offset, const Tensor& trend, const GatesWeights& weights,
                     const void* packed, double alpha, double max_offset);

// What backward of the gates reads beside weights and numbers. The gradient of the new offset is the sum of both.
struct GatesGradients {
  Tensor offset, trend, mask;
  const Tensor* more_offset;
  // Null, or a gradient of x to which this one is added in place.
  const Tensor* sum_of_x;
};
struct GatesSaved {
  Tensor x, offset, update, reset, candidate, new_offset;
};
// The last result is the gradient of the logits of u, r, z and m, where the gradients of weights are wanted.
FourTensors run_gates_backward(const GatesGradients& grads, const GatesSaved& saved, const GatesWeights& weights,
                               const void* packed, double alpha, double max_offset, int64_t wanted);

inline Tensor workspace(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, std::array<int64_t, 1>{bytes}, ScalarType::Byte);
}

}  // namespace motionrnn_ext::cpu
