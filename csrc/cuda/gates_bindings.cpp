// The CUDA kernels of a MotionGRU step up to its warp, as torch ops.
#include <torch/csrc/stable/library.h>

#include "cuda/tensors.h"
#include "operand_checks.h"

#if defined(MOTIONRNN_EXT_EMULATED)
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#define MOTIONRNN_EXT_CONVOLUTION_BACKWARD aoti_torch_cpu_convolution_backward
#else
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#define MOTIONRNN_EXT_CONVOLUTION_BACKWARD aoti_torch_cuda_convolution_backward
#endif

namespace motionrnn_ext::cuda {
namespace {

GatesKernels kernels_of(ScalarType type) {
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
        x_weight(torch::stable::contiguous(x_weight_)),
        x_bias(torch::stable::contiguous(x_bias_)),
        state_weight(torch::stable::contiguous(state_weight_)),
        candidate_weight(torch::stable::contiguous(candidate_weight_)),
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
    a.x_weight = x_weight.const_data_ptr(), a.x_bias = x_bias.const_data_ptr();
    a.state_weight = state_weight.const_data_ptr(), a.candidate_weight = candidate_weight.const_data_ptr();
  }

  bool is_empty() const { return a.batch == 0 || a.height == 0 || a.width == 0; }
  int64_t rows() const { return 3 * int64_t(a.motion) + a.masks; }

  void pack_into_workspace(bool backward) {
    const std::array<int64_t, 1> bytes{static_cast<int64_t>(kernels.packed_bytes(a, backward))};
    packed = torch::stable::new_empty(x, bytes, ScalarType::Byte);
    a.packed = packed.mutable_data_ptr();
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

using SixTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using SevenTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SixTensors motion_gates(Tensor x, Tensor offset, Tensor trend, Tensor x_weight, Tensor x_bias, Tensor state_weight,
                        Tensor candidate_weight, double alpha, double max_offset) {
  Gates gates(x, offset, x_weight, x_bias, state_weight, candidate_weight, alpha, max_offset);
  GatesArguments& a = gates.a;
  const ScalarType feature = gates.x.scalar_type(), state = ScalarType::Float;
  const Tensor readable_trend = readable_image(trend);
  a.trend = gates.read(readable_trend, a.motion, state);
  Tensor new_offset = gates.new_map(a.motion, state), new_trend = gates.new_map(a.motion, state);
  Tensor mask = gates.new_map(a.masks, feature), update = gates.new_map(a.motion, feature);
  Tensor reset = gates.new_map(a.motion, feature), candidate = gates.new_map(a.motion, feature);
  if (!gates.is_empty()) {
    const OnDevice device(gates.x);
    const Tensor reset_offset = gates.new_rows(a.motion);
    gates.pack_into_workspace(false);
    a.new_offset = image_of(new_offset), a.new_trend = image_of(new_trend), a.mask = image_of(mask);
    a.update = image_of(update), a.reset = image_of(reset), a.candidate = image_of(candidate);
    a.reset_offset = image_of(reset_offset);
    gates.kernels.forward(a, device.stream);
  }
  return {new_offset, new_trend, mask, update, reset, candidate};
}

// Return the gradients of the weight and the bias of a "same" convolution of x, where grad is that of its output.
std::tuple<Tensor, Tensor> weight_gradients(const Tensor& grad, const Tensor& x, const Tensor& weight, bool bias) {
  const int64_t pads = (weight.size(2) - 1) / 2, rows = weight.size(0);
  const std::array<int64_t, 2> ones{1, 1}, padding{pads, pads}, zeros{0, 0};
  const std::array<int32_t, 3> wanted{false, true, bias};
  const int64_t* bias_sizes = &rows;
  std::array<AtenTensorHandle, 3> made{};
  TORCH_ERROR_CODE_CHECK(MOTIONRNN_EXT_CONVOLUTION_BACKWARD(
      grad.get(), x.get(), weight.get(), bias ? &bias_sizes : nullptr, 1, ones.data(), 2, padding.data(), 2,
      ones.data(), 2, false, zeros.data(), 2, 1, wanted.data(), 3, &made[0], &made[1], &made[2]));
  const Tensor unwanted(made[0]);
  return {torch::stable::contiguous(Tensor(made[1])), Tensor(made[2])};
}

SevenTensors motion_gates_backward(Tensor grad_offset, Tensor grad_trend, Tensor grad_mask, Tensor x, Tensor offset,
                                   Tensor x_weight, Tensor x_bias, Tensor state_weight, Tensor candidate_weight,
                                   Tensor update, Tensor reset, Tensor candidate, Tensor new_offset, double alpha,
                                   double max_offset, int64_t wanted) {
  Gates gates(x, offset, x_weight, x_bias, state_weight, candidate_weight, alpha, max_offset);
  GatesArguments& a = gates.a;
  const ScalarType feature = gates.x.scalar_type(), state = ScalarType::Float;
  const Tensor read[] = {readable_image(grad_offset), readable_image(grad_trend), readable_image(grad_mask),
                         readable_image(update),      readable_image(reset),      readable_image(candidate),
                         readable_image(new_offset)};
  a.grad_new_offset = gates.read(read[0], a.motion, state), a.grad_new_trend = gates.read(read[1], a.motion, state);
  a.grad_mask = gates.read(read[2], a.masks, feature);
  a.update = gates.read(read[3], a.motion, feature), a.reset = gates.read(read[4], a.motion, feature);
  a.candidate = gates.read(read[5], a.motion, feature), a.new_offset = gates.read(read[6], a.motion, state);
  const bool want_x = wanted & kWantedX, want_motion = wanted & kWantedMotion, want_weights = wanted & kWantedWeights;
  const auto map = [&](bool want, int64_t channels, ScalarType type) {
    return want ? gates.new_map(channels, type) : nothing(x);
  };
  Tensor to_x = map(want_x, a.channels, feature), to_offset = map(want_motion, a.motion, state);
  Tensor to_trend = map(want_motion, a.motion, state);
  if (gates.is_empty()) {
    const auto zeros = [&](const Tensor& t) {
      return want_weights ? torch::stable::new_zeros(t, t.sizes()) : nothing(x);
    };
    return {to_x,
            to_offset,
            to_trend,
            zeros(gates.x_weight),
            zeros(gates.x_bias),
            zeros(gates.state_weight),
            zeros(gates.candidate_weight)};
  }
  const OnDevice device(gates.x);
  const Tensor grads = gates.new_rows(gates.rows());
  const Tensor reset_offset = want_weights ? gates.new_rows(a.motion) : nothing(x);
  gates.pack_into_workspace(true);
  a.grads = image_of(grads);
  if (want_x) a.grad_x = image_of(to_x);
  if (want_motion) a.grad_offset = image_of(to_offset), a.grad_trend = image_of(to_trend);
  if (want_weights) a.reset_offset = image_of(reset_offset);
  gates.kernels.backward(a, device.stream);
  if (!want_weights) return {to_x, to_offset, to_trend, nothing(x), nothing(x), nothing(x), nothing(x)};
  const auto of_logits = [&](int64_t first, int64_t count) {
    return torch::stable::narrow(const_cast<Tensor&>(grads), 1, first, count);
  };
  Tensor reset_maps = reset_offset;
  const auto [to_x_weight, to_x_bias] = weight_gradients(of_logits(0, gates.rows()), gates.x, gates.x_weight, true);
  const auto to_state_weight = std::get<0>(weight_gradients(
      of_logits(0, 2 * a.motion), torch::stable::to(gates.offset, feature), gates.state_weight, false));
  const auto to_candidate_weight =
      std::get<0>(weight_gradients(of_logits(2 * a.motion, a.motion), torch::stable::narrow(reset_maps, 1, 0, a.motion),
                                   gates.candidate_weight, false));
  return {to_x, to_offset, to_trend, to_x_weight, to_x_bias, to_state_weight, to_candidate_weight};
}

}  // namespace
}  // namespace motionrnn_ext::cuda

#if defined(MOTIONRNN_EXT_EMULATED)
STABLE_TORCH_LIBRARY_IMPL(motionrnn_ext_emulated, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(motionrnn_ext, CUDA, m) {
#endif
  namespace cuda = motionrnn_ext::cuda;
  m.impl("motion_gates", TORCH_BOX(&cuda::motion_gates));
  m.impl("motion_gates_backward", TORCH_BOX(&cuda::motion_gates_backward));
}
