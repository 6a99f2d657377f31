// The CUDA kernels of a MotionGRU step up to its warp, as torch ops.
#include <torch/csrc/stable/library.h>

#include "cuda/tensors.h"
#include "operand_checks.h"

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

  // Use the fragments of one direction: those given, or new ones.
  void use(const Tensor* fragments, bool backward, void* stream) {
    const std::array<int64_t, 1> bytes{static_cast<int64_t>(kernels.packed_bytes(a, backward))};
    if (fragments != nullptr) {
      check_here(*fragments);
      STD_TORCH_CHECK(fragments->scalar_type() == ScalarType::Byte && fragments->numel() == bytes[0],
                      "motionrnn_ext: the fragments are those of other weights");
      packed = torch::stable::contiguous(*fragments);
      a.packed = const_cast<void*>(packed.const_data_ptr());
      return;
    }
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

using SixTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using SevenTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SixTensors run_forward(Gates& gates, const Tensor& trend, const Tensor* fragments) {
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
    gates.use(fragments, false, device.stream);
    a.new_offset = image_of(new_offset), a.new_trend = image_of(new_trend), a.mask = image_of(mask);
    a.update = image_of(update), a.reset = image_of(reset), a.candidate = image_of(candidate);
    a.reset_offset = image_of(reset_offset);
    gates.kernels.forward(a, device.stream);
  }
  return {new_offset, new_trend, mask, update, reset, candidate};
}

SixTensors motion_gates(Tensor x, Tensor offset, Tensor trend, Tensor x_weight, Tensor x_bias, Tensor state_weight,
                        Tensor candidate_weight, double alpha, double max_offset) {
  Gates gates(x, offset, x_weight, x_bias, state_weight, candidate_weight, alpha, max_offset);
  return run_forward(gates, trend, nullptr);
}

SixTensors motion_gates_packed(Tensor x, Tensor offset, Tensor trend, Tensor x_weight, Tensor x_bias,
                               Tensor state_weight, Tensor candidate_weight, Tensor fragments, double alpha,
                               double max_offset) {
  Gates gates(x, offset, x_weight, x_bias, state_weight, candidate_weight, alpha, max_offset);
  return run_forward(gates, trend, &fragments);
}

// What backward reads beside the arguments of forward.
struct GatesGradients {
  Tensor grad_offset, grad_trend, grad_mask, update, reset, candidate, new_offset;
};

// The gradients of x, F and D, and the factors of the weights' gradients: those of the logits, (B, 3M + K, H, W), and
// s(r) F, (B, M, H, W).
struct GatesBackward {
  Tensor x, offset, trend, logits, reset_offset;
};

GatesBackward run_backward(Gates& gates, const GatesGradients& given, int64_t wanted, const Tensor* fragments) {
  GatesArguments& a = gates.a;
  const Tensor& x = gates.x;
  const ScalarType feature = x.scalar_type(), state = ScalarType::Float;
  const Tensor read[] = {readable_image(given.grad_offset), readable_image(given.grad_trend),
                         readable_image(given.grad_mask),   readable_image(given.update),
                         readable_image(given.reset),       readable_image(given.candidate),
                         readable_image(given.new_offset)};
  a.grad_new_offset = gates.read(read[0], a.motion, state), a.grad_new_trend = gates.read(read[1], a.motion, state);
  a.grad_mask = gates.read(read[2], a.masks, feature);
  a.update = gates.read(read[3], a.motion, feature), a.reset = gates.read(read[4], a.motion, feature);
  a.candidate = gates.read(read[5], a.motion, feature), a.new_offset = gates.read(read[6], a.motion, state);
  const bool want_x = wanted & kWantedX, want_motion = wanted & kWantedMotion, want_weights = wanted & kWantedWeights;
  const auto map = [&](bool want, int64_t channels, ScalarType type) {
    return want ? gates.new_map(channels, type) : nothing(x);
  };
  GatesBackward made{map(want_x, a.channels, feature), map(want_motion, a.motion, state),
                     map(want_motion, a.motion, state), nothing(x), nothing(x)};
  Tensor grads = gates.new_rows(gates.rows()), reset_offset = want_weights ? gates.new_rows(a.motion) : nothing(x);
  if (want_weights) {
    made.logits = torch::stable::narrow(grads, 1, 0, gates.rows());
    made.reset_offset = torch::stable::narrow(reset_offset, 1, 0, a.motion);
  }
  if (gates.is_empty()) return made;
  const OnDevice device(x);
  gates.use(fragments, true, device.stream);
  a.grads = image_of(grads);
  if (want_x) a.grad_x = image_of(made.x);
  if (want_motion) a.grad_offset = image_of(made.offset), a.grad_trend = image_of(made.trend);
  if (want_weights) a.reset_offset = image_of(reset_offset);
  gates.kernels.backward(a, device.stream);
  return made;
}

// Return the gradients of the weight and the bias of a "same" convolution of x, where grad is that of its output.
std::array<Tensor, 2> weight_gradients(const Tensor& grad, const Tensor& x, const Tensor& weight, bool bias) {
  using torch::stable::detail::from;
  const int64_t padding = (weight.size(2) - 1) / 2;
  using Numbers = std::vector<int64_t>;
  const std::array<bool, 3> wanted{false, true, bias};
  std::array<StableIValue, 11> stack{from(grad),
                                     from(x),
                                     from(weight),
                                     from(std::optional<Numbers>(Numbers{weight.size(0)})),
                                     from(Numbers{1, 1}),
                                     from(Numbers{padding, padding}),
                                     from(Numbers{1, 1}),
                                     from(false),
                                     from(Numbers{0, 0}),
                                     from(int64_t(1)),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(wanted))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  using torch::stable::detail::to;
  const Tensor unwanted = to<Tensor>(stack[0]);
  return {torch::stable::contiguous(to<Tensor>(stack[1])), to<Tensor>(stack[2])};
}

SevenTensors motion_gates_backward(Tensor grad_offset, Tensor grad_trend, Tensor grad_mask, Tensor x, Tensor offset,
                                   Tensor x_weight, Tensor x_bias, Tensor state_weight, Tensor candidate_weight,
                                   Tensor update, Tensor reset, Tensor candidate, Tensor new_offset, double alpha,
                                   double max_offset, int64_t wanted) {
  Gates gates(x, offset, x_weight, x_bias, state_weight, candidate_weight, alpha, max_offset);
  const GatesGradients given{grad_offset, grad_trend, grad_mask, update, reset, candidate, new_offset};
  GatesBackward made = run_backward(gates, given, wanted, nullptr);
  if (!(wanted & kWantedWeights))
    return {made.x, made.offset, made.trend, nothing(x), nothing(x), nothing(x), nothing(x)};
  if (gates.is_empty()) {
    const auto zeros = [](const Tensor& t) { return torch::stable::new_zeros(t, t.sizes()); };
    return {
        made.x, made.offset, made.trend, zeros(x_weight), zeros(x_bias), zeros(state_weight), zeros(candidate_weight)};
  }
  const OnDevice device(gates.x);
  const int64_t motion = gates.a.motion;
  const auto [to_x_weight, to_x_bias] = weight_gradients(made.logits, gates.x, gates.x_weight, true);
  const Tensor to_state_weight =
      weight_gradients(torch::stable::narrow(made.logits, 1, 0, 2 * motion),
                       torch::stable::to(gates.offset, x.scalar_type()), gates.state_weight, false)[0];
  const Tensor to_candidate_weight = weight_gradients(torch::stable::narrow(made.logits, 1, 2 * motion, motion),
                                                      made.reset_offset, gates.candidate_weight, false)[0];
  return {made.x, made.offset, made.trend, to_x_weight, to_x_bias, to_state_weight, to_candidate_weight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> motion_gates_packed_backward(
    Tensor grad_offset, Tensor grad_trend, Tensor grad_mask, Tensor x, Tensor offset, Tensor x_weight, Tensor x_bias,
    Tensor state_weight, Tensor candidate_weight, Tensor update, Tensor reset, Tensor candidate, Tensor new_offset,
    Tensor fragments, double alpha, double max_offset, int64_t wanted) {
  Gates gates(x, offset, x_weight, x_bias, state_weight, candidate_weight, alpha, max_offset);
  const GatesGradients given{grad_offset, grad_trend, grad_mask, update, reset, candidate, new_offset};
  const GatesBackward made = run_backward(gates, given, wanted, &fragments);
  return {made.x, made.offset, made.trend, made.logits, made.reset_offset};
}

std::tuple<Tensor, Tensor> motion_gates_pack(Tensor x_weight, Tensor x_bias, Tensor state_weight,
                                             Tensor candidate_weight) {
  // Weights alone tell how they are packed: any map will do, and one without elements does.
  const std::vector<int64_t> x_sizes{0, x_weight.size(1), 1, 1}, motion_sizes{0, candidate_weight.size(0), 1, 1};
  const Tensor x = torch::stable::new_empty(x_weight, x_sizes);
  const Tensor offset = torch::stable::new_empty(x_weight, motion_sizes, ScalarType::Float);
  Gates gates(x, offset, x_weight, x_bias, state_weight, candidate_weight, 0.0, 0.0);
  const OnDevice device(gates.x_weight);
  gates.use(nullptr, false, device.stream);
  const Tensor forward = gates.packed;
  gates.use(nullptr, true, device.stream);
  return {forward, gates.packed};
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
  m.impl("motion_gates_pack", TORCH_BOX(&cuda::motion_gates_pack));
  m.impl("motion_gates_packed", TORCH_BOX(&cuda::motion_gates_packed));
  m.impl("motion_gates_packed_backward", TORCH_BOX(&cuda::motion_gates_packed_backward));
}
