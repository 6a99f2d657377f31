// Dtypes and memory formats of tensors, for the bindings of every native backend.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <vector>

#include "math/maps.h"

namespace motionrnn_ext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The bits of a backward op's argument `wanted`, the twin of `Wanted` in motionrnn_ext/backends/registration/wanted.py.
// The gradient of offset is kWantedMotion, and so are those of all inputs of motion_update in an op that includes it;
// those of weights and biases are kWantedWeights.
enum Wanted : int64_t { kWantedX = 1, kWantedMotion = 2, kWantedMask = 4, kWantedWeights = 8 };

inline math::Types types_of(ScalarType feature, ScalarType state) {
  using math::Types;
  if (feature == state) {
    switch (feature) {
      case ScalarType::Double: return Types::f64;
      case ScalarType::Float: return Types::f32;
      case ScalarType::BFloat16: return Types::bf16;
      case ScalarType::Half: return Types::f16;
      default: break;
    }
  } else if (state == ScalarType::Float) {
    if (feature == ScalarType::BFloat16) return Types::bf16_f32;
    if (feature == ScalarType::Half) return Types::f16_f32;
  }
  STD_TORCH_CHECK(false, "motionrnn_ext: no kernel for these dtypes");
  return Types::f32;
}

inline int64_t bytes_of(ScalarType type) { return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2; }

// Return whether the dimensions from `first` on are contiguous; a batch stride before them may be any.
inline bool is_dense_from(const Tensor& t, int64_t first) {
  // The strides of a tensor without elements are not products of its sizes.
  if (t.numel() == 0) return true;
  int64_t expected = 1;
  for (int64_t d = t.dim() - 1; d >= first; --d) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// Return t, or a contiguous copy. A call of PyTorch that copies nothing takes as long as a small kernel.
inline Tensor dense(const Tensor& t) { return is_dense_from(t, 0) ? t : torch::stable::contiguous(t); }

inline Tensor dense_planes(const Tensor& t) { return is_dense_from(t, 1) ? t : torch::stable::contiguous(t); }

// Return whether all strides but the batch's are those of channels_last.
inline bool is_channels_last(const Tensor& t) {
  const int64_t strides[] = {t.stride(0), 1, t.size(3) * t.size(1), t.size(1)};
  for (int d = 1; d < 4; ++d)
    if (t.size(d) != 1 && t.stride(d) != strides[d]) return false;
  return true;
}

// Return the distance of neighbouring pixels, where channels are last. A dimension of one element may have any stride.
inline int64_t pixel_distance(const Tensor& t) {
  for (int d : {3, 2, 0})
    if (t.size(d) != 1) return t.stride(d);
  return t.size(1);
}

// Return whether each pixel has C contiguous elements and all pixels lie at one distance: channels_last, or a slice of
// its channels.
inline bool is_pixel_rows(const Tensor& t) {
  if (t.dim() != 4 || t.numel() == 0 || (t.size(1) != 1 && t.stride(1) != 1)) return false;
  int64_t expected = pixel_distance(t);
  for (int d : {3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// Return whether results that follow t are channels_last, as `format_after` in motionrnn_ext/backends/layouts.py says.
inline bool wants_channels_last(const Tensor& t) { return !is_dense_from(t, 1) && is_pixel_rows(t); }

// Return a new (B, C, H, W), channels_last or contiguous.
inline Tensor new_tensor(const Tensor& like, std::vector<int64_t> sizes, ScalarType type, bool channels_last) {
  if (!channels_last) return torch::stable::new_empty(like, sizes, type);
  const std::vector<int64_t> sizes_last{sizes[0], sizes[2], sizes[3], sizes[1]};
  const Tensor made = torch::stable::new_empty(like, sizes_last, type);
  // (B, H, W, C) -> (B, C, W, H) -> (B, C, H, W)
  return torch::stable::transpose(torch::stable::transpose(made, 1, 3), 2, 3);
}

inline Tensor nothing(const Tensor& like) { return torch::stable::new_empty(like, std::array<int64_t, 1>{0}); }

// Return whether an image's output or gradient is channels_last: where x is, without gaps, and not contiguous.
inline bool follows_channels_last(const Tensor& x) {
  const bool gaps = x.size(0) != 1 && x.stride(0) != x.size(1) * x.size(2) * x.size(3);
  return !is_dense_from(x, 1) && !gaps && is_channels_last(x);
}

// Return an image's output or gradient, channels_last or contiguous.
inline Tensor new_image(const Tensor& x, int64_t channels) {
  return new_tensor(x, {x.size(0), channels, x.size(2), x.size(3)}, x.scalar_type(), follows_channels_last(x));
}

}  // namespace motionrnn_ext
