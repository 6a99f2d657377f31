// The operands of a MotionGRU step's gates, for the bindings of the ops with gates.
#pragma once

#include <torch/csrc/stable/library.h>

#include "cuda/tensors.h"
#include "operand_checks.h"

namespace motionrnn_ext::cuda {
namespace {

inline GatesKernels kernels_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return gates_kernels_f32();
    case ScalarType::BFloat16: return gates_kernels_bf16();
    case ScalarType::Half: return gates_kernels_f16();
    default: STD_TORCH_CHECK(false, "motionrnn_ext: no kernel for these dtypes"); return {};
  }
}

struct Gates {
  Tensor x, offset, x_weight, x_bias, state_weight, candidate_weight, packed;
  GatesArguments a{};
  GatesKernels kernels;

  Gates(const Tensor& x_, const Tensor& offset_, const Tensor& x_weight_, const Tensor& x_bias_,
        const Tensor& state_weight_, const Tensor& candidate_weight_, double alpha, double max_offset)
      : x(readable_image(x_)),
        offset(readable_image(offset_)),
        x_weight(x_weight_),
        x_bias(torch::stable::contiguous(x_bias_)),
        state_weight(state_weight_),
        candidate_weight(candidate_weight_),
        kernels(kernels_of(x_.scalar_type())) {
    for (const Tensor& t : {x, offset, x_weight, x_bias, state_weight, candidate_weight}) check_here(t);
    check_gates(x, offset, x_weight, x_bias, state_weight, candidate_weight);
    const int64_t limit = std::numeric_limits<int32_t>::max();
    STD_TORCH_CHECK(x.size(0) * x.size(2) * x.size(3) <= limit - 32 && x_weight.numel() <= limit,
                    "motionrnn_ext: the images have more pixels than 32-bit indices reach");
    a.batch = static_cast<int>(x.size(0)), a.channels = static_cast<int>(x.size(1));
    a.motion = static_cast<int>(offset.size(1)), a.height = static_cast<int>(x.size(2));
    a.width = static_cast<int>(x.size(3)), a.size = static_cast<int>(x_weight.size(2));
    a.masks = static_cast<int>(x_weight.size(0)) - 3 * a.motion;
    a.alpha = static_cast<float>(alpha), a.max_offset = static_cast<float>(max_offset);
    a.x = image_of(x), a.offset = image_of(offset);
    a.x_bias = x_bias.const_data_ptr();
    point_at_weights();
  }

  void point_at_weights() {
    a.x_weight = x_weight.const_data_ptr(), a.state_weight = state_weight.const_data_ptr();
    a.candidate_weight = candidate_weight.const_data_ptr();
  }
  bool is_empty() const { return a.batch == 0 || a.height == 0 || a.width == 0; }
  int64_t rows() const { return 3 * int64_t(a.motion) + a.masks; }

  // Use the fragments of one direction: those given, or new ones. `more` bytes follow them.
  void use(const Tensor* fragments, bool backward, void* stream, size_t more = 0) {
    const std::array<int64_t, 1> bytes{static_cast<int64_t>(kernels.packed_bytes(a, backward) + more)};
    if (fragments != nullptr) {
      check_here(*fragments);
      STD_TORCH_CHECK(fragments->scalar_type() == ScalarType::Byte && fragments->numel() == bytes[0],
                      "motionrnn_ext: the fragments are those of other weights");
      packed = torch::stable::contiguous(*fragments);
      a.packed = const_cast<void*>(packed.const_data_ptr());
      return;
    }
    // Only packing reads the weights.
    for (Tensor* weight : {&x_weight, &state_weight, &candidate_weight}) *weight = dense(*weight);
    point_at_weights();
    packed = torch::stable::new_empty(x, bytes, ScalarType::Byte);
    a.packed = packed.mutable_data_ptr();
    kernels.pack(a, backward, stream);
  }

  Image read(const Tensor& t, int64_t channels, ScalarType type) const {
    check_here(t);
    check_map(x, t, channels, type);
    return image_of(t);
  }
  Tensor new_map(int64_t channels, ScalarType type) const {
    return new_tensor(x, {a.batch, channels, a.height, a.width}, type, wants_channels_last(x));
  }
  // Pixel rows of a multiple of four channels, of which the first `channels` are what is meant.
  Tensor new_rows(int64_t channels) const {
    return new_tensor(x, {a.batch, (channels + 3) / 4 * 4, a.height, a.width}, x.scalar_type(), true);
  }
};

// What backward reads beside the arguments of forward.
struct GatesGradients {
  Tensor grad_offset, grad_trend, grad_mask, update, reset, candidate, new_offset;
};

// Point the arguments at what backward reads. Returns the readable tensors, which have to live as long as that.
inline std::array<Tensor, 7> read_gradients(Gates& gates, const GatesGradients& given) {
  GatesArguments& a = gates.a;
  const ScalarType feature = gates.x.scalar_type(), state = ScalarType::Float;
  const std::array<Tensor, 7> read{readable_image(given.grad_offset), readable_image(given.grad_trend),
                                   readable_image(given.grad_mask),   readable_image(given.update),
                                   readable_image(given.reset),       readable_image(given.candidate),
                                   readable_image(given.new_offset)};
  a.grad_new_offset = gates.read(read[0], a.motion, state), a.grad_new_trend = gates.read(read[1], a.motion, state);
  a.grad_mask = gates.read(read[2], a.masks, feature);
  a.update = gates.read(read[3], a.motion, feature), a.reset = gates.read(read[4], a.motion, feature);
  a.candidate = gates.read(read[5], a.motion, feature), a.new_offset = gates.read(read[6], a.motion, state);
  return read;
}

// The gradients of x, F and D, and the factors of the weights' gradients: those of the logits, (B, 3M + K, H, W), and
// s(r) F, (B, M, H, W). `grads` and `reset_rows` are whole rows of them.
struct GatesResults {
  Tensor x, offset, trend, logits, reset_offset, grads, reset_rows;

  // wants_grads: whether the logits' gradients are read, also where they are no result.
  GatesResults(Gates& gates, int64_t wanted, bool wants_grads) {
    GatesArguments& a = gates.a;
    const bool want_x = wanted & kWantedX, want_motion = wanted & kWantedMotion, weights = wanted & kWantedWeights;
    const auto map = [&](bool want, int64_t channels, ScalarType type) {
      return want ? gates.new_map(channels, type) : nothing(gates.x);
    };
    x = map(want_x, a.channels, gates.x.scalar_type());
    offset = map(want_motion, a.motion, ScalarType::Float), trend = map(want_motion, a.motion, ScalarType::Float);
    logits = nothing(gates.x), reset_offset = nothing(gates.x);
    if (weights || wants_grads) grads = gates.new_rows(gates.rows()), a.grads = image_of(grads);
    if (want_x) a.grad_x = image_of(x);
    if (want_motion) a.grad_offset = image_of(offset), a.grad_trend = image_of(trend);
    if (!weights) return;
    reset_rows = gates.new_rows(a.motion), a.reset_offset = image_of(reset_rows);
    logits = torch::stable::narrow(grads, 1, 0, gates.rows());
    reset_offset = torch::stable::narrow(reset_rows, 1, 0, a.motion);
  }
};

}  // namespace
}  // namespace motionrnn_ext::cuda
