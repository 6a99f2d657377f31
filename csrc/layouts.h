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

// Whether dimensions first.. are contiguous; a batch stride before them may be anything.
inline bool is_dense_from(const Tensor& t, int64_t first) {
  if (t.numel() == 0) return true;  // torch's strides of nothing are not products of sizes
  int64_t expected = 1;
  for (int64_t d = t.dim() - 1; d >= first; --d) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

inline Tensor dense_planes(const Tensor& t) { return is_dense_from(t, 1) ? t : torch::stable::contiguous(t); }

// All but the batch stride is that of channels_last.
inline bool is_channels_last(const Tensor& t) {
  const int64_t strides[] = {t.stride(0), 1, t.size(3) * t.size(1), t.size(1)};
  for (int d = 1; d < 4; ++d)
    if (t.size(d) != 1 && t.stride(d) != strides[d]) return false;
  return true;
}

// From one pixel to the next, where channels are last. The stride of a dimension of one element may be anything.
inline int64_t pixel_distance(const Tensor& t) {
  for (int d : {3, 2, 0})
    if (t.size(d) != 1) return t.stride(d);
  return t.size(1);
}

// Pixels of channels_last, or of channels split from it: C contiguous elements each, all at one distance.
inline bool is_rows(const Tensor& t) {
  if (t.dim() != 4 || t.numel() == 0 || (t.size(1) != 1 && t.stride(1) != 1)) return false;
  int64_t expected = pixel_distance(t);
  for (int d : {3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// The memory format of what follows t, as motionrnn_ext/backends/layouts.py's `format_after` has it.
inline bool wants_rows(const Tensor& t) { return !is_dense_from(t, 1) && is_rows(t); }

// (B, C, H, W) in channels_last with `rows`, else contiguous.
inline Tensor new_tensor(const Tensor& like, std::vector<int64_t> sizes, ScalarType type, bool rows) {
  if (!rows) return torch::stable::new_empty(like, sizes, type);
  const std::vector<int64_t> row_sizes{sizes[0], sizes[2], sizes[3], sizes[1]};
  const Tensor made = torch::stable::new_empty(like, row_sizes, type);
  return torch::stable::transpose(torch::stable::transpose(made, 1, 3), 2, 3);  // (B,H,W,C) -> (B,C,W,H) -> (B,C,H,W)
}

inline Tensor nothing(const Tensor& like) { return torch::stable::new_empty(like, std::array<int64_t, 1>{0}); }

// An image's output or gradient: channels_last where x is that and not contiguous; contiguous otherwise.
inline Tensor new_image(const Tensor& x, int64_t channels) {
  const bool gaps = x.size(0) != 1 && x.stride(0) != x.size(1) * x.size(2) * x.size(3);
  const bool rows = !is_dense_from(x, 1) && !gaps && is_channels_last(x);
  return new_tensor(x, {x.size(0), channels, x.size(2), x.size(3)}, x.scalar_type(), rows);
}

}  // namespace motionrnn_ext
