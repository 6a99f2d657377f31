// The CUDA kernels as torch ops: layouts, allocation, stream. Arguments were checked in Python (motionrnn_ext/ops);
// what is asserted here guards direct calls of torch.ops. Compiled by the host compiler; with MOTIONRNN_EXT_EMULATED
// for tests/ptx, where an interpreter runs the kernels on CPU tensors.
#include "cuda/tensors.h"
#include "operand_checks.h"
#include "pointwise_ops.h"

namespace motionrnn_ext::cuda {
namespace {

struct Backend {
  static bool is_here(const Tensor& t) { return cuda::is_here(t); }
  static void run(Map map, Types types, const PointwiseArguments& a, const Tensor& t) {
    const OnDevice device(t);
    pointwise(map, types, a, device.stream);
  }
};

Tensor new_like(const Tensor& t, bool channels_last) {
  return new_tensor(t, {t.sizes().begin(), t.sizes().end()}, t.scalar_type(), channels_last);
}

// ---- The warps

struct Warp {
  Tensor x, offset, mask_logits, weight;
  WarpArguments a{};
  WarpKernels kernels;

  Warp(const Tensor& x_, const Tensor& offset_, const Tensor& mask_logits_, const Tensor& weight_)
      : x(x_), offset(offset_), mask_logits(mask_logits_), weight(weight_) {
    for (const Tensor& t : {x, offset, mask_logits, weight}) check_here(t);
    check_warp(x, offset, mask_logits, weight);
    x = readable_image(x), offset = readable_image(offset), mask_logits = readable_image(mask_logits);
    weight = torch::stable::contiguous(weight);
    const int64_t limit = std::numeric_limits<int32_t>::max();
    // A block's step from tile to tile, at most 2^14, may go beyond the last one.
    STD_TORCH_CHECK(
        x.size(0) * ((x.size(2) * x.size(3) + 15) / 16) <= limit - (1 << 14) && x.size(2) * x.size(3) < limit - 32,
        "motionrnn_ext: the images have more pixels than 32-bit indices reach");
    a.batch = static_cast<int>(x.size(0)), a.channels = static_cast<int>(x.size(1));
    a.out_channels = static_cast<int>(weight.size(0)), a.k = static_cast<int>(weight.size(2));
    a.height = static_cast<int>(x.size(2)), a.width = static_cast<int>(x.size(3));
    a.x = image_of(x), a.offset = image_of(offset), a.mask_logits = image_of(mask_logits);
    a.weight = weight.const_data_ptr();
    switch (types_of(x.scalar_type(), x.scalar_type())) {
      case Types::f32: kernels = warp_kernels_f32(); break;
      case Types::bf16: kernels = warp_kernels_bf16(); break;
      case Types::f16: kernels = warp_kernels_f16(); break;
      default: STD_TORCH_CHECK(false, "motionrnn_ext: no kernel for these dtypes");
    }
  }

  void check_motion(const Tensor& t, ScalarType type) const {
    check_here(t);
    check_map(x, t, offset.size(1), type);
  }
  void check_grad(const Tensor& grad) const {
    check_here(grad);
    check_warp_gradient(x, weight, grad);
  }

  void run_forward() {
    if (a.batch == 0 || a.height == 0 || a.width == 0) return;
    const OnDevice device(x);
    kernels.forward(a, device.stream);
  }

  // Write all gradients that were made; they are zero where there is nothing to sum over.
  void run_backward(std::vector<Tensor> grads) {
    if (a.batch == 0 || a.height == 0 || a.width == 0 || (a.out_channels == 0 && !a.motion.given())) {
      for (Tensor& t : grads) torch::stable::zero_(t);
      return;
    }
    const OnDevice device(x);
    const WarpWorkspace bytes = kernels.workspace(a);
    const size_t aligned = (bytes.partials + 15) / 16 * 16, sums = (bytes.sums + 15) / 16 * 16;
    const Tensor workspace = torch::stable::new_empty(
        x, std::array<int64_t, 1>{static_cast<int64_t>(aligned + sums + bytes.maxima)}, ScalarType::Byte);
    char* data = static_cast<char*>(workspace.mutable_data_ptr());
    a.partials = reinterpret_cast<float*>(data);
    a.sums = bytes.sums > 0 ? data + aligned : a.grad_x.data;
    a.maxima = reinterpret_cast<uint32_t*>(data + aligned + sums);
    kernels.backward(a, device.stream);
  }
};

Tensor offset_warp(Tensor x, Tensor offset, Tensor mask_logits, Tensor weight) {
  Warp warp(x, offset, mask_logits, weight);
  Tensor out = new_image(x, weight.size(0));
  if (out.numel() == 0) return out;
  warp.a.out = image_of(out);
  warp.run_forward();
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> offset_warp_backward(Tensor grad, Tensor x, Tensor offset,
                                                                Tensor mask_logits, Tensor weight, int64_t wanted,
                                                                bool deterministic) {
  Warp warp(x, offset, mask_logits, weight);
  WarpArguments& a = warp.a;
  warp.check_grad(grad);
  const Tensor grad_image = readable_image(grad);
  a.grad_out = image_of(grad_image), a.deterministic = deterministic;
  std::array<Tensor, 4> grads{nothing(x), nothing(offset), nothing(mask_logits), nothing(weight)};
  if (wanted & kWantedX) grads[0] = new_image(x, a.channels), a.grad_x = image_of(grads[0]);
  if (wanted & kWantedMotion)
    grads[1] = new_like(offset, wants_channels_last(offset)), a.grad_offset = image_of(grads[1]);
  if (wanted & kWantedMask)
    grads[2] = new_like(mask_logits, wants_channels_last(mask_logits)), a.grad_mask_logits = image_of(grads[2]);
  if (wanted & kWantedWeights) grads[3] = new_like(weight, false), a.grad_weight = grads[3].mutable_data_ptr();
  warp.run_backward({grads.begin(), grads.end()});
  return std::tuple_cat(grads);
}

std::tuple<Tensor, Tensor, Tensor> motion_warp(Tensor x, Tensor update_logits, Tensor candidate_logits, Tensor offset,
                                               Tensor trend, Tensor mask_logits, Tensor weight, double alpha,
                                               double max_offset) {
  STD_TORCH_CHECK(update_logits.dim() == 4 && offset.dim() == 4 && trend.dim() == 4, "motionrnn_ext: mismatched ranks");
  const bool channels_last = wants_channels_last(update_logits);
  Tensor new_offset = new_like(offset, channels_last), new_trend = new_like(trend, channels_last);
  Warp warp(x, new_offset, mask_logits, weight);
  for (const Tensor& t : {update_logits, candidate_logits}) warp.check_motion(t, x.scalar_type());
  for (const Tensor& t : {offset, trend}) warp.check_motion(t, ScalarType::Float);
  const Tensor update = readable_image(update_logits), candidate = readable_image(candidate_logits);
  const Tensor previous_offset = readable_image(offset), previous_trend = readable_image(trend);
  WarpArguments& a = warp.a;
  a.motion.update_logits = image_of(update), a.motion.candidate_logits = image_of(candidate);
  a.motion.offset = image_of(previous_offset), a.motion.trend = image_of(previous_trend);
  a.motion.new_trend = image_of(new_trend);
  a.motion.alpha = static_cast<float>(alpha), a.motion.max_offset = static_cast<float>(max_offset);
  Tensor out = new_image(x, weight.size(0));
  a.out = image_of(out);
  warp.run_forward();
  return {out, new_offset, new_trend};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> motion_warp_backward(
    Tensor grad, Tensor grad_offset, Tensor grad_trend, Tensor x, Tensor update_logits, Tensor candidate_logits,
    Tensor offset, Tensor new_offset, Tensor mask_logits, Tensor weight, double alpha, double max_offset,
    int64_t wanted, bool deterministic) {
  Warp warp(x, new_offset, mask_logits, weight);
  WarpArguments& a = warp.a;
  warp.check_grad(grad);
  for (const Tensor& t : {update_logits, candidate_logits}) warp.check_motion(t, x.scalar_type());
  for (const Tensor& t : {offset, grad_offset, grad_trend}) warp.check_motion(t, ScalarType::Float);
  const Tensor grad_image = readable_image(grad), by_offset = readable_image(grad_offset);
  const Tensor by_trend = readable_image(grad_trend), update = readable_image(update_logits);
  const Tensor candidate = readable_image(candidate_logits), previous_offset = readable_image(offset);
  a.grad_out = image_of(grad_image), a.deterministic = deterministic;
  a.motion.update_logits = image_of(update), a.motion.candidate_logits = image_of(candidate);
  a.motion.offset = image_of(previous_offset);
  a.motion.alpha = static_cast<float>(alpha), a.motion.max_offset = static_cast<float>(max_offset);
  a.motion.grad_offset = image_of(by_offset), a.motion.grad_trend = image_of(by_trend);

  const bool channels_last = wants_channels_last(update_logits);
  std::array<Tensor, 7> grads{nothing(x),      nothing(x),           nothing(x),     nothing(offset),
                              nothing(offset), nothing(mask_logits), nothing(weight)};
  if (wanted & kWantedX) grads[0] = new_image(x, a.channels), a.grad_x = image_of(grads[0]);
  if (wanted & kWantedMotion) {
    grads[1] = new_like(update_logits, channels_last), grads[2] = new_like(candidate_logits, channels_last);
    grads[3] = new_like(offset, channels_last), grads[4] = new_like(offset, channels_last);
    a.motion.grad_update_logits = image_of(grads[1]), a.motion.grad_candidate_logits = image_of(grads[2]);
    a.grad_offset = image_of(grads[3]), a.motion.grad_previous_trend = image_of(grads[4]);
  }
  if (wanted & kWantedMask)
    grads[5] = new_like(mask_logits, wants_channels_last(mask_logits)), a.grad_mask_logits = image_of(grads[5]);
  if (wanted & kWantedWeights) grads[6] = new_like(weight, false), a.grad_weight = grads[6].mutable_data_ptr();
  warp.run_backward({grads.begin(), grads.end()});
  return std::tuple_cat(grads);
}

}  // namespace
}  // namespace motionrnn_ext::cuda

MOTIONRNN_EXT_CUDA_OPS(m) {
  namespace cuda = motionrnn_ext::cuda;
  using PointwiseOps = motionrnn_ext::PointwiseOps<cuda::Backend>;
  MOTIONRNN_EXT_IMPLEMENT_POINTWISE_OPS(m, PointwiseOps);
  m.impl("offset_warp", TORCH_BOX(&cuda::offset_warp));
  m.impl("offset_warp_backward", TORCH_BOX(&cuda::offset_warp_backward));
  m.impl("motion_warp", TORCH_BOX(&cuda::motion_warp));
  m.impl("motion_warp_backward", TORCH_BOX(&cuda::motion_warp_backward));
}
