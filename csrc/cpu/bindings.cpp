// The CPU kernels as torch ops: layouts, allocation, threads, and the choice of the instruction set.
// Arguments were checked in Python (motionrnn_ext/ops); what is asserted here guards direct calls of torch.ops.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "math/motion_gru.h"
#include "math/recurrent_gates.h"

namespace motionrnn_ext::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- Instruction sets

struct InstructionSet {
  const char* name;
  PointwiseKernel (*pointwise)(Map, Types);
  WarpKernels (*warp)(Types);
};

// The best this machine runs, at most the one that MOTIONRNN_EXT_CPU_ISA names.
const InstructionSet& instruction_set() {
  static const InstructionSet chosen = [] {
    const char* limit = std::getenv("MOTIONRNN_EXT_CPU_ISA");
    const std::string at_most = limit == nullptr ? "x86_64_v4" : limit;
    STD_TORCH_CHECK(at_most == "baseline" || at_most == "x86_64_v3" || at_most == "x86_64_v4",
                    "MOTIONRNN_EXT_CPU_ISA is '", at_most, "'; it should be baseline, x86_64_v3 or x86_64_v4");
#if defined(MOTIONRNN_EXT_HAVE_V4)
    if (at_most == "x86_64_v4" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd"))
      return InstructionSet{"x86_64_v4", x86_64_v4::pointwise_kernel, x86_64_v4::warp_kernels};
#endif
#if defined(MOTIONRNN_EXT_HAVE_V3)
    if (at_most != "baseline" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"))
      return InstructionSet{"x86_64_v3", x86_64_v3::pointwise_kernel, x86_64_v3::warp_kernels};
#endif
    return InstructionSet{"baseline", baseline::pointwise_kernel, baseline::warp_kernels};
  }();
  return chosen;
}

std::string cpu_instruction_set() { return instruction_set().name; }

// ---- Dtypes and layouts

Types types_of(ScalarType feature, ScalarType state) {
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
  STD_TORCH_CHECK(false, "motionrnn_ext: no CPU kernel for these dtypes");
  return Types::f32;
}

int64_t bytes_of(ScalarType type) {
  return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
}

// Whether dimensions first.. are contiguous; a batch stride before them may be anything.
bool is_dense_from(const Tensor& t, int64_t first) {
  if (t.numel() == 0) return true;  // torch's strides of nothing are not products of sizes
  int64_t expected = 1;
  for (int64_t d = t.dim() - 1; d >= first; --d) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

Tensor dense_planes(const Tensor& t) { return is_dense_from(t, 1) ? t : torch::stable::contiguous(t); }

// ---- Pointwise

// Two times the elements that a thread switch is worth, some 10 us of gate arithmetic.
constexpr int64_t kGrain = 8192;

template <class MapOf, size_t inputs, size_t outputs = std::size(MapOf::outputs)>
std::array<Tensor, outputs> pointwise(Map map, std::array<Tensor, inputs> in, double parameter = 0) {
  static_assert(inputs == std::size(MapOf::inputs));
  std::optional<ScalarType> feature, state;
  for (size_t i = 0; i < inputs; ++i) {
    auto& role_type = MapOf::inputs[i].role == math::Role::feature ? feature : state;
    if (!role_type) role_type = in[i].scalar_type();
    STD_TORCH_CHECK(in[i].scalar_type() == *role_type, "motionrnn_ext: mixed dtypes");
    in[i] = dense_planes(in[i]);
  }
  if (!state) state = feature;

  STD_TORCH_CHECK(in[0].dim() >= 2, "motionrnn_ext: mismatched sizes");
  std::vector<int64_t> shape(in[0].sizes().begin(), in[0].sizes().end());
  const int64_t channels = shape[1] / MapOf::inputs[0].streams;
  PointwiseArguments a{};
  a.inner = channels;
  for (size_t d = 2; d < shape.size(); ++d) a.inner *= shape[d];
  a.parameter = parameter;

  for (size_t i = 0, stream = 0; i < inputs; ++i) {
    STD_TORCH_CHECK(in[i].dim() >= 2 && in[i].size(0) == shape[0] &&
                        in[i].numel() == shape[0] * a.inner * MapOf::inputs[i].streams,
                    "motionrnn_ext: mismatched sizes");
    const char* data = static_cast<const char*>(in[i].const_data_ptr());
    for (int s = 0; s < MapOf::inputs[i].streams; ++s, ++stream) {
      a.in[stream] = data + s * a.inner * bytes_of(in[i].scalar_type());
      a.in_stride[stream] = in[i].stride(0);
    }
  }
  std::array<Tensor, outputs> out;
  for (size_t o = 0, stream = 0; o < outputs; ++o) {
    const math::Operand operand = MapOf::outputs[o];
    const ScalarType type = operand.role == math::Role::feature ? *feature : *state;
    shape[1] = channels * operand.streams;
    out[o] = torch::stable::new_empty(in[0], shape, type);
    char* data = static_cast<char*>(out[o].mutable_data_ptr());
    for (int s = 0; s < operand.streams; ++s, ++stream) {
      a.out[stream] = data + s * a.inner * bytes_of(type);
      a.out_stride[stream] = a.inner * operand.streams;
    }
  }
  const int64_t elements = shape[0] * a.inner;
  if (elements == 0) return out;
  const PointwiseKernel kernel = instruction_set().pointwise(map, types_of(*feature, *state));
  torch::stable::parallel_for(0, elements, kGrain, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return out;
}

Tensor motion_reset(Tensor reset_logits, Tensor offset) {
  return pointwise<math::MotionReset, 2>(Map::MotionReset, {reset_logits, offset})[0];
}

std::tuple<Tensor, Tensor> motion_reset_backward(Tensor grad, Tensor reset_logits, Tensor offset) {
  return std::tuple_cat(
      pointwise<math::MotionResetBackward, 3>(Map::MotionResetBackward, {grad, reset_logits, offset}));
}

std::tuple<Tensor, Tensor> motion_update(Tensor update_logits, Tensor candidate_logits, Tensor offset, Tensor trend,
                                         double alpha) {
  return std::tuple_cat(
      pointwise<math::MotionUpdate, 4>(Map::MotionUpdate, {update_logits, candidate_logits, offset, trend}, alpha));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> motion_update_backward(Tensor grad_offset, Tensor grad_trend,
                                                                  Tensor update_logits, Tensor candidate_logits,
                                                                  Tensor offset, double alpha) {
  return std::tuple_cat(pointwise<math::MotionUpdateBackward, 5>(
      Map::MotionUpdateBackward, {grad_offset, grad_trend, update_logits, candidate_logits, offset}, alpha));
}

Tensor memory_update(Tensor gates_x, Tensor gates_h, Tensor memory, double forget_bias) {
  return pointwise<math::MemoryUpdate, 3>(Map::MemoryUpdate, {gates_x, gates_h, memory}, forget_bias)[0];
}

std::tuple<Tensor, Tensor> memory_update_backward(Tensor grad, Tensor gates_x, Tensor gates_h, Tensor memory,
                                                  double forget_bias) {
  return std::tuple_cat(pointwise<math::MemoryUpdateBackward, 4>(Map::MemoryUpdateBackward,
                                                                 {grad, gates_x, gates_h, memory}, forget_bias));
}

Tensor highway_output(Tensor output_logits, Tensor content, std::optional<Tensor> highway) {
  if (!highway) return pointwise<math::GatedOutput, 2>(Map::GatedOutput, {output_logits, content})[0];
  return pointwise<math::HighwayOutput, 3>(Map::HighwayOutput, {output_logits, content, *highway})[0];
}

std::tuple<Tensor, Tensor, Tensor> highway_output_backward(Tensor grad, Tensor output_logits, Tensor content,
                                                           std::optional<Tensor> highway) {
  if (highway)
    return std::tuple_cat(pointwise<math::HighwayOutputBackward, 4>(Map::HighwayOutputBackward,
                                                                    {grad, output_logits, content, *highway}));
  const auto grads =
      pointwise<math::GatedOutputBackward, 3>(Map::GatedOutputBackward, {grad, output_logits, content});
  return {grads[0], grads[1], torch::stable::new_empty(grad, {0})};
}

Tensor gated_blend(Tensor gate_logits, Tensor a, Tensor b) {
  return pointwise<math::GatedBlend, 3>(Map::GatedBlend, {gate_logits, a, b})[0];
}

std::tuple<Tensor, Tensor, Tensor> gated_blend_backward(Tensor grad, Tensor gate_logits, Tensor a, Tensor b) {
  return std::tuple_cat(pointwise<math::GatedBlendBackward, 4>(Map::GatedBlendBackward, {grad, gate_logits, a, b}));
}

// ---- Offset warp

bool is_channels_last(const Tensor& t) {
  const int64_t strides[] = {t.stride(0), 1, t.size(3) * t.size(1), t.size(1)};
  for (int d = 1; d < 4; ++d)
    if (t.size(d) != 1 && t.stride(d) != strides[d]) return false;
  return true;
}

Image image_of(const Tensor& t) {
  const bool planes = is_dense_from(t, 1);
  STD_TORCH_CHECK(planes || is_channels_last(t), "motionrnn_ext: an image is neither contiguous nor channels_last");
  if (planes) return {t.const_data_ptr(), t.stride(0), t.size(2) * t.size(3), 1};
  return {t.const_data_ptr(), t.stride(0), 1, t.size(1)};
}

Tensor readable_image(const Tensor& t) {
  return is_dense_from(t, 1) || is_channels_last(t) ? t : torch::stable::contiguous(t);
}

// channels_last where x is that and not contiguous; contiguous otherwise.
Tensor new_image_like(const Tensor& x, int64_t channels) {
  const std::array<int64_t, 4> sizes{x.size(0), channels, x.size(2), x.size(3)};
  const bool gaps = x.size(0) != 1 && x.stride(0) != x.size(1) * x.size(2) * x.size(3);
  if (is_dense_from(x, 1) || gaps || !is_channels_last(x)) return torch::stable::new_empty(x, sizes);
  const Tensor rows = torch::stable::new_empty(x, std::array<int64_t, 4>{sizes[0], sizes[2], sizes[3], sizes[1]});
  return torch::stable::transpose(torch::stable::transpose(rows, 1, 3), 2, 3);  // (B,H,W,C) -> (B,C,W,H) -> (B,C,H,W)
}

struct Warp {
  Tensor x, offset, mask_logits, weight, packed_weight;
  WarpArguments a{};
  WarpKernels kernels;

  Warp(const Tensor& x_, const Tensor& offset_, const Tensor& mask_logits_, const Tensor& weight_)
      : x(readable_image(x_)), offset(dense_planes(offset_)), mask_logits(dense_planes(mask_logits_)),
        weight(torch::stable::contiguous(weight_)) {
    STD_TORCH_CHECK(mask_logits.scalar_type() == x.scalar_type() && weight.scalar_type() == x.scalar_type() &&
                        offset.scalar_type() ==
                            (x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float),
                    "motionrnn_ext: mixed dtypes");
    STD_TORCH_CHECK(x.dim() == 4 && offset.dim() == 4 && mask_logits.dim() == 4 && weight.dim() == 4 &&
                        weight.size(2) == weight.size(3) && weight.size(1) == x.size(1) &&
                        offset.size(1) == 2 * weight.size(2) * weight.size(2) &&
                        offset.numel() == 2 * mask_logits.numel() && offset.size(2) == x.size(2) &&
                        offset.size(3) == x.size(3) && offset.size(0) == x.size(0) &&
                        mask_logits.size(2) == x.size(2) && mask_logits.size(0) == x.size(0),
                    "motionrnn_ext: mismatched sizes");
    a.batch = x.size(0), a.channels = x.size(1), a.out_channels = weight.size(0);
    a.height = x.size(2), a.width = x.size(3), a.k = static_cast<int>(weight.size(2));
    a.x = image_of(x);
    a.offset = offset.const_data_ptr(), a.offset_batch = offset.stride(0);
    a.mask_logits = mask_logits.const_data_ptr(), a.mask_batch = mask_logits.stride(0);
    a.weight = weight.const_data_ptr();
    // Few images are cut into bands so that every thread gets the same number of items.
    const int64_t threads = torch::stable::get_num_threads();
    a.bands = a.batch >= 4 * threads ? 1 : static_cast<int>(threads / std::gcd(a.batch, threads));
    kernels = instruction_set().warp(types_of(x.scalar_type(), offset.scalar_type()));
    if (a.batch == 0 || a.height == 0 || a.width == 0) return;
    packed_weight = workspace(kernels.sizes(a).packed_weight);
    a.packed_weight = packed_weight.mutable_data_ptr();
    kernels.pack(a);
  }

  Tensor workspace(int64_t bytes) const {
    return torch::stable::new_empty(x, std::array<int64_t, 1>{bytes}, ScalarType::Byte);
  }
};

Tensor offset_warp(Tensor x, Tensor offset, Tensor mask_logits, Tensor weight) {
  Warp warp(x, offset, mask_logits, weight);
  Tensor out = new_image_like(x, weight.size(0));
  if (out.numel() == 0) return out;
  warp.a.out = image_of(out);
  torch::stable::parallel_for(0, warp.a.batch * warp.a.bands, 1,
                              [&](int64_t begin, int64_t end) { warp.kernels.forward(warp.a, begin, end); });
  return out;
}

// Sums are taken in a fixed order, so `deterministic` asks for nothing more.
std::tuple<Tensor, Tensor, Tensor, Tensor> offset_warp_backward(Tensor grad, Tensor x, Tensor offset,
                                                                Tensor mask_logits, Tensor weight, int64_t wanted,
                                                                bool /*deterministic*/) {
  Warp warp(x, offset, mask_logits, weight);
  WarpArguments& a = warp.a;
  const Tensor grad_image = readable_image(grad);
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type() && grad.dim() == 4 && grad.size(0) == a.batch &&
                      grad.size(1) == a.out_channels && grad.size(2) == a.height && grad.size(3) == a.width,
                  "motionrnn_ext: mismatched gradient");
  const auto like = [&](bool want, const Tensor& t) {
    if (!want) return torch::stable::new_empty(t, std::array<int64_t, 1>{0});
    return torch::stable::new_empty(t, t.sizes());
  };
  const bool want_x = wanted & 1, want_weight = wanted & 8;
  Tensor grad_x = want_x ? new_image_like(x, a.channels) : like(false, x);
  Tensor grad_offset = like(wanted & 2, offset), grad_mask = like(wanted & 4, mask_logits);
  Tensor grad_weight = like(want_weight, weight);
  const int64_t items = a.batch * a.bands;
  if (items == 0 || grad.numel() == 0) {
    for (Tensor& t : {std::ref(grad_x), std::ref(grad_offset), std::ref(grad_mask), std::ref(grad_weight)})
      torch::stable::zero_(t);
    return {grad_x, grad_offset, grad_mask, grad_weight};
  }
  // Enough groups to balance the threads, few enough that their partials of grad_weight stay small.
  a.groups = static_cast<int>(std::min<int64_t>(items, 4 * torch::stable::get_num_threads()));
  const WarpSizes sizes = warp.kernels.sizes(a);
  Tensor images, matrices;
  a.out = image_of(grad_image);
  if (want_x) a.grad_x = image_of(grad_x);
  if (want_x && a.bands > 1) {
    images = warp.workspace(items * sizes.grad_image_per_item);
    a.grad_image = images.mutable_data_ptr();
  }
  if (wanted & 2) a.grad_offset = grad_offset.mutable_data_ptr();
  if (wanted & 4) a.grad_mask_logits = grad_mask.mutable_data_ptr();
  if (want_weight) {
    a.grad_weight = grad_weight.mutable_data_ptr();
    matrices = warp.workspace(a.groups * sizes.grad_matrix_per_group);
    a.grad_matrix = matrices.mutable_data_ptr();
  }
  torch::stable::parallel_for(0, a.groups, 1,
                              [&](int64_t begin, int64_t end) { warp.kernels.backward(a, begin, end); });
  if (want_x && a.bands > 1)
    torch::stable::parallel_for(0, a.batch, 1,
                                [&](int64_t begin, int64_t end) { warp.kernels.sum_images(a, begin, end); });
  if (want_weight) warp.kernels.sum_matrices(a);
  return {grad_x, grad_offset, grad_mask, grad_weight};
}

}  // namespace
}  // namespace motionrnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(motionrnn_ext, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&motionrnn_ext::cpu::cpu_instruction_set));
}

STABLE_TORCH_LIBRARY_IMPL(motionrnn_ext, CPU, m) {
#define MOTIONRNN_EXT_IMPL(op) m.impl(#op, TORCH_BOX(&motionrnn_ext::cpu::op))
  MOTIONRNN_EXT_IMPL(motion_reset);
  MOTIONRNN_EXT_IMPL(motion_reset_backward);
  MOTIONRNN_EXT_IMPL(motion_update);
  MOTIONRNN_EXT_IMPL(motion_update_backward);
  MOTIONRNN_EXT_IMPL(offset_warp);
  MOTIONRNN_EXT_IMPL(offset_warp_backward);
  MOTIONRNN_EXT_IMPL(memory_update);
  MOTIONRNN_EXT_IMPL(memory_update_backward);
  MOTIONRNN_EXT_IMPL(highway_output);
  MOTIONRNN_EXT_IMPL(highway_output_backward);
  MOTIONRNN_EXT_IMPL(gated_blend);
  MOTIONRNN_EXT_IMPL(gated_blend_backward);
#undef MOTIONRNN_EXT_IMPL
}
