// The CUDA kernels of a MotionGRU step's gates and warp together, with packed weights, as torch ops.
#include "cuda/gates_tensors.h"

namespace motionrnn_ext::cuda {
namespace {

GatedWarpKernels gated_warp_kernels_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return gated_warp_kernels_f32();
    case ScalarType::BFloat16: return gated_warp_kernels_bf16();
    default: return gated_warp_kernels_f16();
  }
}

WarpKernels warp_kernels_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return warp_kernels_f32();
    case ScalarType::BFloat16: return warp_kernels_bf16();
    default: return warp_kernels_f16();
  }
}

// The warp that follows the gates, by their motion and mask.
struct WarpOfGates {
  Tensor weight;
  WarpArguments a{};
  GatedWarpKernels kernels;
  WarpKernels warp;

  WarpOfGates(const Gates& gates, const Tensor& weight_)
      : weight(torch::stable::contiguous(weight_)),
        kernels(gated_warp_kernels_of(gates.x.scalar_type())),
        warp(warp_kernels_of(gates.x.scalar_type())) {
    check_here(weight);
    const GatesArguments& of = gates.a;
    STD_TORCH_CHECK(weight.scalar_type() == gates.x.scalar_type(), "motionrnn_ext: mixed dtypes");
    STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == of.channels && weight.size(2) == weight.size(3) &&
                        weight.size(2) % 2 == 1 && of.masks == weight.size(2) * weight.size(2) &&
                        of.motion == 2 * of.masks,
                    "motionrnn_ext: mismatched sizes");
    a.batch = of.batch, a.channels = of.channels, a.out_channels = static_cast<int>(weight.size(0));
    a.height = of.height, a.width = of.width, a.k = static_cast<int>(weight.size(2));
    a.x = of.x, a.weight = weight.const_data_ptr();
  }

  // Use the fragments of one direction, those given or new ones: the gates' and then the warp's.
  void use(Gates& gates, const Tensor* fragments, bool backward, void* stream) {
    const size_t bytes = kernels.packed_bytes(a, backward);
    gates.use(fragments, backward, stream, bytes);
    if (bytes == 0) return;
    char* packed = static_cast<char*>(gates.a.packed) + gates.kernels.packed_bytes(gates.a, backward);
    if (fragments == nullptr) kernels.pack(a, backward, packed, stream);
    a.packed = packed;
  }
};

std::tuple<Tensor, Tensor> motion_gates_pack(Tensor x_weight, Tensor x_bias, Tensor state_weight,
                                             Tensor candidate_weight, Tensor warp_weight) {
  // Weights alone tell how they are packed: any map will do, and one without elements does.
  const std::vector<int64_t> x_sizes{0, x_weight.size(1), 1, 1}, motion_sizes{0, candidate_weight.size(0), 1, 1};
  const Tensor x = torch::stable::new_empty(x_weight, x_sizes);
  const Tensor offset = torch::stable::new_empty(x_weight, motion_sizes, ScalarType::Float);
  Gates gates(x, offset, x_weight, x_bias, state_weight, candidate_weight, 0.0, 0.0);
  WarpOfGates warp(gates, warp_weight);
  const OnDevice device(gates.x_weight);
  warp.use(gates, nullptr, false, device.stream);
  const Tensor forward = gates.packed;
  warp.use(gates, nullptr, true, device.stream);
  return {forward, gates.packed};
}

using SevenTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using SixTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SevenTensors gated_warp(Tensor x, Tensor offset, Tensor trend, Tensor x_weight, Tensor x_bias, Tensor state_weight,
                        Tensor candidate_weight, Tensor warp_weight, Tensor fragments, double alpha,
                        double max_offset) {
  Gates gates(x, offset, x_weight, x_bias, state_weight, candidate_weight, alpha, max_offset);
  WarpOfGates warp(gates, warp_weight);
  GatesArguments& a = gates.a;
  const ScalarType feature = gates.x.scalar_type(), state = ScalarType::Float;
  const Tensor readable_trend = readable_image(trend);
  a.trend = gates.read(readable_trend, a.motion, state);
  const Tensor new_offset = gates.new_map(a.motion, state), new_trend = gates.new_map(a.motion, state);
  const Tensor mask = gates.new_map(a.masks, feature), update = gates.new_map(a.motion, feature);
  const Tensor reset = gates.new_map(a.motion, feature), candidate = gates.new_map(a.motion, feature);
  const Tensor out = gates.new_map(warp.a.out_channels, feature);
  if (!gates.is_empty()) {
    const OnDevice device(gates.x);
    warp.use(gates, &fragments, false, device.stream);
    a.new_offset = image_of(new_offset), a.new_trend = image_of(new_trend), a.mask = image_of(mask);
    a.update = image_of(update), a.reset = image_of(reset), a.candidate = image_of(candidate);
    warp.a.offset = a.new_offset, warp.a.mask_logits = a.mask, warp.a.out = image_of(out);
    if (warp.kernels.in_one_launch(a, warp.a)) {
      warp.kernels.forward(a, warp.a, device.stream);
    } else {
      const Tensor reset_offset = gates.new_rows(a.motion);
      a.reset_offset = image_of(reset_offset);
      gates.kernels.forward(a, device.stream);
      warp.warp.forward(warp.a, device.stream);
    }
  }
  return {out, new_offset, new_trend, mask, update, reset, candidate};
}

SixTensors gated_warp_backward(Tensor grad, Tensor grad_offset, Tensor grad_trend, Tensor x, Tensor offset,
                               Tensor x_weight, Tensor x_bias, Tensor state_weight, Tensor candidate_weight,
                               Tensor warp_weight, Tensor mask, Tensor update, Tensor reset, Tensor candidate,
                               Tensor new_offset, Tensor fragments, double alpha, double max_offset, int64_t wanted,
                               bool deterministic) {
  Gates gates(x, offset, x_weight, x_bias, state_weight, candidate_weight, alpha, max_offset);
  WarpOfGates warp(gates, warp_weight);
  GatesArguments& a = gates.a;
  WarpArguments& w = warp.a;
  check_here(grad);
  check_warp_gradient(gates.x, warp.weight, grad);
  const Tensor by_warp = gates.new_map(a.motion, ScalarType::Float);
  const Tensor grad_mask = gates.new_map(a.masks, gates.x.scalar_type());
  const auto read = read_gradients(gates, {grad_offset, grad_trend, grad_mask, update, reset, candidate, new_offset});
  const bool want_weights = wanted & kWantedWeights;
  const GatesResults made(gates, wanted, a.size > 1 || w.k > 3);
  Tensor grad_weight = nothing(x);
  if (want_weights)
    grad_weight = new_tensor(x, {warp.weight.sizes().begin(), warp.weight.sizes().end()}, x.scalar_type(), false);
  const auto results = [&] {
    return SixTensors{made.x, made.offset, made.trend, made.logits, made.reset_offset, grad_weight};
  };
  if (gates.is_empty()) {
    if (want_weights) torch::stable::zero_(grad_weight);
    return results();
  }
  const OnDevice device(gates.x);
  warp.use(gates, &fragments, true, device.stream);
  a.grad_of_warp = image_of(by_warp);
  const Tensor grad_image = readable_image(grad), mask_image = readable_image(mask);
  w.grad_out = image_of(grad_image), w.deterministic = deterministic;
  w.offset = a.new_offset, w.mask_logits = gates.read(mask_image, a.masks, gates.x.scalar_type());
  w.grad_offset = a.grad_of_warp, w.grad_mask_logits = a.grad_mask, w.grad_x = a.grad_x;
  if (want_weights) w.grad_weight = grad_weight.mutable_data_ptr();
  const WarpWorkspace bytes = warp.warp.workspace(w);
  const size_t aligned = (bytes.partials + 15) / 16 * 16, sums = (bytes.sums + 15) / 16 * 16;
  const Tensor workspace = torch::stable::new_empty(
      x, std::array<int64_t, 1>{static_cast<int64_t>(aligned + sums + bytes.maxima)}, ScalarType::Byte);
  char* data = static_cast<char*>(workspace.mutable_data_ptr());
  w.partials = reinterpret_cast<float*>(data);
  w.sums = bytes.sums > 0 ? data + aligned : w.grad_x.data;
  w.maxima = reinterpret_cast<uint32_t*>(data + aligned + sums);
  warp.warp.backward_main(w, device.stream);
  if (!warp.kernels.finish(a, w, device.stream)) gates.kernels.convolutions_backward(a, w, device.stream);
  return results();
}

}  // namespace
}  // namespace motionrnn_ext::cuda

MOTIONRNN_EXT_CUDA_OPS(m) {
  namespace cuda = motionrnn_ext::cuda;
  m.impl("motion_gates_pack", TORCH_BOX(&cuda::motion_gates_pack));
  m.impl("gated_warp", TORCH_BOX(&cuda::gated_warp));
  m.impl("gated_warp_backward", TORCH_BOX(&cuda::gated_warp_backward));
}
