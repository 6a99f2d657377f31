// Checks of the operands of the ops with weights, for the bindings of every native backend. They guard direct calls of
// torch.ops; Python (motionrnn_ext/ops) has checked the arguments of everything else, with better messages.
#pragma once

#include "layouts.h"

namespace motionrnn_ext {

// Return the dtype of motion state beside features of this dtype.
inline ScalarType state_type(ScalarType feature) {
  return feature == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Return whether t is (B, channels, H, W), with B, H and W of x.
inline bool is_map_of(const Tensor& x, const Tensor& t, int64_t channels) {
  return t.dim() == 4 && t.size(0) == x.size(0) && t.size(1) == channels && t.size(2) == x.size(2) &&
         t.size(3) == x.size(3);
}

inline void check_map(const Tensor& x, const Tensor& t, int64_t channels, ScalarType type) {
  STD_TORCH_CHECK(t.scalar_type() == type, "motionrnn_ext: mixed dtypes");
  STD_TORCH_CHECK(is_map_of(x, t, channels), "motionrnn_ext: mismatched sizes");
}

// x (B, C, H, W), offset (B, 2k^2, H, W), mask_logits (B, k^2, H, W), weight (O, C, k, k).
inline void check_warp(const Tensor& x, const Tensor& offset, const Tensor& mask_logits, const Tensor& weight) {
  const ScalarType feature = x.scalar_type();
  STD_TORCH_CHECK(weight.scalar_type() == feature, "motionrnn_ext: mixed dtypes");
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && weight.size(2) == weight.size(3) && weight.size(1) == x.size(1),
                  "motionrnn_ext: mismatched sizes");
  const int64_t taps = weight.size(2) * weight.size(2);
  check_map(x, offset, 2 * taps, state_type(feature)), check_map(x, mask_logits, taps, feature);
}

// The gradient of the warp's output (B, O, H, W).
inline void check_warp_gradient(const Tensor& x, const Tensor& weight, const Tensor& grad) {
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type() && is_map_of(x, grad, weight.size(0)),
                  "motionrnn_ext: mismatched gradient");
}

// x (B, C, H, W), offset (B, M, H, W), x_weight (R, C, g, g) with R >= 3M, x_bias (R,), state_weight (2M, M, g, g),
// candidate_weight (M, M, g, g); g odd.
inline void check_gates(const Tensor& x, const Tensor& offset, const Tensor& x_weight, const Tensor& x_bias,
                        const Tensor& state_weight, const Tensor& candidate_weight) {
  const ScalarType feature = x.scalar_type();
  STD_TORCH_CHECK(x_weight.scalar_type() == feature && x_bias.scalar_type() == feature &&
                      state_weight.scalar_type() == feature && candidate_weight.scalar_type() == feature &&
                      offset.scalar_type() == state_type(feature),
                  "motionrnn_ext: mixed dtypes");
  STD_TORCH_CHECK(x.dim() == 4 && offset.dim() == 4 && x_weight.dim() == 4 && x_bias.dim() == 1 &&
                      state_weight.dim() == 4 && candidate_weight.dim() == 4,
                  "motionrnn_ext: mismatched ranks");
  const int64_t rows = x_weight.size(0), size = x_weight.size(2), motion = offset.size(1);
  const auto is_weight = [&](const Tensor& w, int64_t out, int64_t in) {
    return w.size(0) == out && w.size(1) == in && w.size(2) == size && w.size(3) == size;
  };
  STD_TORCH_CHECK(size % 2 == 1 && rows >= 3 * motion && x_bias.size(0) == rows &&
                      is_weight(x_weight, rows, x.size(1)) && is_weight(state_weight, 2 * motion, motion) &&
                      is_weight(candidate_weight, motion, motion) && is_map_of(x, offset, motion),
                  "motionrnn_ext: mismatched sizes");
}

}  // namespace motionrnn_ext
