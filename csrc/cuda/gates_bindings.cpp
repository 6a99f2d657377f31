// The CUDA kernels of a MotionGRU step up to its warp, as torch ops.
#include "cuda/gates_tensors.h"

namespace motionrnn_ext::cuda {
namespace {

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
    gates.use(nullptr, false, device.stream);
    a.new_offset = image_of(new_offset), a.new_trend = image_of(new_trend), a.mask = image_of(mask);
    a.update = image_of(update), a.reset = image_of(reset), a.candidate = image_of(candidate);
    a.reset_offset = image_of(reset_offset);
    gates.kernels.forward(a, device.stream);
  }
  return {new_offset, new_trend, mask, update, reset, candidate};
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
  const auto read = read_gradients(gates, {grad_offset, grad_trend, grad_mask, update, reset, candidate, new_offset});
  GatesResults made(gates, wanted, true);
  if (!gates.is_empty()) {
    const OnDevice device(gates.x);
    gates.use(nullptr, true, device.stream);
    gates.kernels.backward(gates.a, device.stream);
  }
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

}  // namespace
}  // namespace motionrnn_ext::cuda

MOTIONRNN_EXT_CUDA_OPS(m) {
  namespace cuda = motionrnn_ext::cuda;
  m.impl("motion_gates", TORCH_BOX(&cuda::motion_gates));
  m.impl("motion_gates_backward", TORCH_BOX(&cuda::motion_gates_backward));
}
