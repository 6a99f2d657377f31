// The CPU kernels as torch ops: layouts, allocation, threads, and the choice of the instruction set.
// Arguments were checked in Python (motionrnn_ext/ops); what is asserted here guards direct calls of torch.ops.
#include "cpu/bindings.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>

#include "operand_checks.h"
#include "pointwise_ops.h"

namespace motionrnn_ext::cpu {
// ---- Instruction sets

// Return the best instruction set that this machine runs, at most the one that MOTIONRNN_EXT_CPU_ISA names.
const InstructionSet& instruction_set() {
  static const InstructionSet chosen = [] {
    const char* limit = std::getenv("MOTIONRNN_EXT_CPU_ISA");
    std::string at_most = limit == nullptr ? "" : limit;
    // Blank counts as unset.
    if (at_most.find_first_not_of(" \t\r\n") == std::string::npos) at_most = "x86_64_v4";
    STD_TORCH_CHECK(at_most == "baseline" || at_most == "x86_64_v3" || at_most == "x86_64_v4",
                    "MOTIONRNN_EXT_CPU_ISA is '", at_most, "'; it should be baseline, x86_64_v3 or x86_64_v4");
#if defined(MOTIONRNN_EXT_HAVE_V4)
    if (at_most == "x86_64_v4" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd"))
      return InstructionSet{"x86_64_v4",
                            x86_64_v4::pointwise_kernel,
                            x86_64_v4::warp_kernels,
                            x86_64_v4::gates_kernels,
                            x86_64_v4::winograd_kernels,
                            x86_64_v4::strided_kernels};
#endif
#if defined(MOTIONRNN_EXT_HAVE_V3)
    if (at_most != "baseline" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"))
      return InstructionSet{"x86_64_v3",
                            x86_64_v3::pointwise_kernel,
                            x86_64_v3::warp_kernels,
                            x86_64_v3::gates_kernels,
                            x86_64_v3::winograd_kernels,
                            x86_64_v3::strided_kernels};
#endif
    return InstructionSet{"baseline",
                          baseline::pointwise_kernel,
                          baseline::warp_kernels,
                          baseline::gates_kernels,
                          baseline::winograd_kernels,
                          baseline::strided_kernels};
  }();
  return chosen;
}

namespace {

std::string cpu_instruction_set() { return instruction_set().name; }

// ---- Pointwise

// Elements per task: twice what a thread computes while another wakes up, some 10 us of gate arithmetic.
constexpr int64_t kGrain = 8192;

struct Backend {
  static bool is_here(const Tensor& t) { return t.is_cpu(); }
  static void run(Map map, Types types, const PointwiseArguments& a, const Tensor&) {
    const PointwiseKernel kernel = instruction_set().pointwise(map, types);
    torch::stable::parallel_for(0, a.rows * a.inner, kGrain,
                                [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  }
};

// Aligned memory of a call. Tensors for it take as long as a small kernel.
using OwnMemory = std::unique_ptr<void, void (*)(void*)>;

OwnMemory own_memory(int64_t bytes) {
  void* made = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
  if (made == nullptr) throw std::bad_alloc();
  return {made, std::free};
}

// ---- Offset warp

struct Warp {
  Tensor x, offset, mask_logits, weight;
  OwnMemory packed_weight{nullptr, std::free};
  WarpArguments a{};
  WarpKernels kernels;

  Warp(const Tensor& x_, const Tensor& offset_, const Tensor& mask_logits_, const Tensor& weight_, const void* packed) {
    check_warp(x_, offset_, mask_logits_, weight_);
    x = readable_image(x_), offset = readable_image(offset_), mask_logits = readable_image(mask_logits_);
    weight = dense(weight_);
    a.batch = x.size(0), a.channels = x.size(1), a.out_channels = weight.size(0);
    a.height = x.size(2), a.width = x.size(3), a.k = static_cast<int>(weight.size(2));
    a.x = image_of(x), a.offset = image_of(offset), a.mask_logits = image_of(mask_logits);
    a.weight = weight.const_data_ptr();
    a.bands = static_cast<int>(bands_for_threads(a.batch));
    kernels = instruction_set().warp(types_of(x.scalar_type(), offset.scalar_type()));
    a.packed_weight = const_cast<void*>(packed);
    if (packed != nullptr || a.batch == 0 || a.height == 0 || a.width == 0) return;
    packed_weight = own_memory(kernels.sizes(a).packed_weight);
    a.packed_weight = packed_weight.get();
    kernels.pack(a);
  }
};

Tensor offset_warp(Tensor x, Tensor offset, Tensor mask_logits, Tensor weight) {
  return run_warp(x, offset, mask_logits, weight, nullptr);
}

// Sums are taken in an order that is fixed for a number of threads, so `deterministic` asks for nothing more.
FourTensors offset_warp_backward(Tensor grad, Tensor x, Tensor offset, Tensor mask_logits, Tensor weight,
                                 int64_t wanted, bool /*deterministic*/) {
  return run_warp_backward(grad, x, offset, mask_logits, weight, nullptr, wanted);
}

}  // namespace

Tensor run_warp(const Tensor& x, const Tensor& offset, const Tensor& mask_logits, const Tensor& weight,
                const void* packed) {
  Warp warp(x, offset, mask_logits, weight, packed);
  Tensor out = new_image(x, weight.size(0));
  if (out.numel() == 0) return out;
  warp.a.out = image_of(out);
  torch::stable::parallel_for(0, warp.a.batch * warp.a.bands, 1,
                              [&](int64_t begin, int64_t end) { warp.kernels.forward(warp.a, begin, end); });
  return out;
}

FourTensors run_warp_backward(const Tensor& grad, const Tensor& x, const Tensor& offset, const Tensor& mask_logits,
                              const Tensor& weight, const void* packed, int64_t wanted) {
  Warp warp(x, offset, mask_logits, weight, packed);
  WarpArguments& a = warp.a;
  const Tensor grad_image = readable_image(grad);
  check_warp_gradient(x, weight, grad);
  const auto like = [&](bool want, const Tensor& t) {
    return want ? new_tensor(t, {t.sizes().begin(), t.sizes().end()}, t.scalar_type(), wants_channels_last(t))
                : nothing(t);
  };
  const bool want_x = wanted & kWantedX, want_weight = wanted & kWantedWeights;
  Tensor grad_x = want_x ? new_image(x, a.channels) : nothing(x);
  Tensor grad_offset = like(wanted & kWantedMotion, offset), grad_mask = like(wanted & kWantedMask, mask_logits);
  Tensor grad_weight = want_weight ? torch::stable::new_empty(weight, weight.sizes()) : nothing(weight);
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
    images = workspace(x, items * sizes.grad_image_per_item);
    a.grad_image = images.mutable_data_ptr();
  }
  if (wanted & kWantedMotion) a.grad_offset = image_of(grad_offset);
  if (wanted & kWantedMask) a.grad_mask_logits = image_of(grad_mask);
  if (want_weight) {
    a.grad_weight = grad_weight.mutable_data_ptr();
    matrices = workspace(x, a.groups * sizes.grad_matrix_per_group);
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

// ---- Motion gates

namespace {

// Pixels of a band. An image is cut into bands where there are fewer images than threads, and so that what a band
// convolves (some 115 planes for 16 channels) fits about the second-level cache.
constexpr int64_t kBandPixels = 4608;
constexpr int64_t kLeastPixels = 128;

int bands_for_cache(const GatesArguments& a) {
  const int64_t pixels = a.height * (a.width + a.k - 1);
  return static_cast<int>(std::min(a.height, (pixels + kBandPixels - 1) / kBandPixels));
}

struct Gates {
  Tensor x, offset, x_weight, x_bias, state_weight, candidate_weight;
  OwnMemory packed{nullptr, std::free};
  GatesArguments a{};
  GatesKernels kernels;

  Gates(const Tensor& x_, const Tensor& offset_, const GatesWeights& weights, const void* packed_, double alpha,
        double max_offset, bool backward)
      : x(readable_image(x_)),
        offset(readable_image(offset_)),
        x_weight(dense(weights.x_weight)),
        x_bias(dense(weights.x_bias)),
        state_weight(dense(weights.state_weight)),
        candidate_weight(dense(weights.candidate_weight)) {
    const ScalarType feature = x.scalar_type();
    check_gates(x, offset, x_weight, x_bias, state_weight, candidate_weight);
    a.batch = x.size(0), a.channels = x.size(1), a.motion = offset.size(1), a.height = x.size(2), a.width = x.size(3);
    a.masks = x_weight.size(0) - 3 * a.motion, a.k = static_cast<int>(x_weight.size(2));
    a.alpha = alpha, a.max_offset = max_offset;
    a.x = image_of(x), a.offset = image_of(offset);
    a.x_weight = x_weight.const_data_ptr(), a.x_bias = x_bias.const_data_ptr();
    a.state_weight = state_weight.const_data_ptr(), a.candidate_weight = candidate_weight.const_data_ptr();
    kernels = instruction_set().gates(types_of(feature, offset.scalar_type()));
    if (is_empty()) return;
    a.bands = bands_for_cache(a);
    // Bands of smaller maps would compute as much again for their neighbours.
    if (a.height * a.width >= kLeastPixels)
      a.bands = std::max(a.bands, static_cast<int>(std::min(a.height, bands_for_threads(a.batch))));
    a.packed = const_cast<void*>(packed_);
    if (packed_ != nullptr) return;
    packed = own_memory(kernels.packed_size(a));
    a.packed = packed.get();
    kernels.pack(a, backward);
  }

  bool is_empty() const { return a.batch == 0 || a.height == 0 || a.width == 0; }

  Image read(const Tensor& t, int64_t channels, ScalarType type) const {
    check_map(x, t, channels, type);
    return image_of(t);
  }

  Tensor new_map(int64_t channels, ScalarType type) const {
    return new_tensor(x, {a.batch, channels, a.height, a.width}, type, wants_channels_last(x));
  }
};

SixTensors motion_gates(Tensor x, Tensor offset, Tensor trend, Tensor x_weight, Tensor x_bias, Tensor state_weight,
                        Tensor candidate_weight, double alpha, double max_offset) {
  return run_gates(x, offset, trend, {x_weight, x_bias, state_weight, candidate_weight}, nullptr, alpha, max_offset);
}

using SevenTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

FourTensors motion_gates_weight_gradients(Tensor grad_logits_, Tensor x_, Tensor offset_, Tensor reset_, int64_t k) {
  for (const Tensor* t : {&grad_logits_, &x_, &offset_})
    STD_TORCH_CHECK(t->dim() == 4, "motionrnn_ext: mismatched ranks");
  const Tensor x = readable_image(x_), offset = readable_image(offset_), reset = readable_image(reset_);
  const Tensor grad_logits = readable_image(grad_logits_);
  const ScalarType feature = x.scalar_type(), state = state_type(feature);
  GatesArguments a{};
  a.batch = x.size(0), a.channels = x.size(1), a.motion = offset.size(1), a.height = x.size(2), a.width = x.size(3);
  a.masks = grad_logits.size(1) - 3 * a.motion, a.k = static_cast<int>(k);
  STD_TORCH_CHECK(a.masks >= 0 && k % 2 == 1, "motionrnn_ext: mismatched sizes");
  check_map(x, offset, a.motion, state), check_map(x, reset, a.motion, feature);
  check_map(x, grad_logits, 3 * a.motion + a.masks, state);
  a.x = image_of(x), a.offset = image_of(offset), a.reset = image_of(reset), a.grad_logits = image_of(grad_logits);
  const auto weight = [&](int64_t outs, int64_t in) {
    return torch::stable::new_empty(x, std::array<int64_t, 4>{outs, in, k, k});
  };
  Tensor to_x = weight(3 * a.motion + a.masks, a.channels), to_state = weight(2 * a.motion, a.motion);
  Tensor to_candidate = weight(a.motion, a.motion);
  Tensor to_bias = torch::stable::new_empty(x, std::array<int64_t, 1>{to_x.size(0)});
  if (x.numel() == 0) {
    for (Tensor* t : {&to_x, &to_bias, &to_state, &to_candidate}) torch::stable::zero_(*t);
    return {to_x, to_bias, to_state, to_candidate};
  }
  a.grad_x_weight = to_x.mutable_data_ptr(), a.grad_x_bias = to_bias.mutable_data_ptr();
  a.grad_state_weight = to_state.mutable_data_ptr(), a.grad_candidate_weight = to_candidate.mutable_data_ptr();
  a.bands = bands_for_cache(a);
  const GatesKernels kernels = instruction_set().gates(types_of(feature, state));
  torch::stable::parallel_for(0, kernels.blocks(a), 1,
                              [&](int64_t begin, int64_t end) { kernels.weight_gradients(a, begin, end); });
  return {to_x, to_bias, to_state, to_candidate};
}

SevenTensors motion_gates_backward(Tensor grad_offset, Tensor grad_trend, Tensor grad_mask, Tensor x, Tensor offset,
                                   Tensor x_weight, Tensor x_bias, Tensor state_weight, Tensor candidate_weight,
                                   Tensor update, Tensor reset, Tensor candidate, Tensor new_offset, double alpha,
                                   double max_offset, int64_t wanted) {
  const auto [to_x, to_offset, to_trend, to_logits] = run_gates_backward(
      {grad_offset, grad_trend, grad_mask, nullptr, nullptr}, {x, offset, update, reset, candidate, new_offset},
      {x_weight, x_bias, state_weight, candidate_weight}, nullptr, alpha, max_offset, wanted);
  if ((wanted & kWantedWeights) == 0)
    return {to_x, to_offset, to_trend, nothing(x), nothing(x), nothing(x), nothing(x)};
  const auto [to_x_weight, to_bias, to_state, to_candidate] =
      motion_gates_weight_gradients(to_logits, x, offset, reset, x_weight.size(2));
  return {to_x, to_offset, to_trend, to_x_weight, to_bias, to_state, to_candidate};
}

}  // namespace

SixTensors run_gates(const Tensor& x, const Tensor& offset, const Tensor& trend, const GatesWeights& weights,
                     const void* packed, double alpha, double max_offset) {
  Gates gates(x, offset, weights, packed, alpha, max_offset, false);
  GatesArguments& a = gates.a;
  const ScalarType feature = gates.x.scalar_type(), state = gates.offset.scalar_type();
  const Tensor readable_trend = readable_image(trend);
  a.trend = gates.read(readable_trend, a.motion, state);
  Tensor new_offset = gates.new_map(a.motion, state), new_trend = gates.new_map(a.motion, state);
  Tensor mask = gates.new_map(a.masks, feature), update = gates.new_map(a.motion, feature);
  Tensor reset = gates.new_map(a.motion, feature), candidate = gates.new_map(a.motion, feature);
  if (!gates.is_empty()) {
    a.new_offset = image_of(new_offset), a.new_trend = image_of(new_trend), a.mask = image_of(mask);
    a.update = image_of(update), a.reset = image_of(reset), a.candidate = image_of(candidate);
    torch::stable::parallel_for(0, a.batch * a.bands, 1,
                                [&](int64_t begin, int64_t end) { gates.kernels.forward(a, begin, end); });
  }
  return {new_offset, new_trend, mask, update, reset, candidate};
}

FourTensors run_gates_backward(const GatesGradients& grads, const GatesSaved& saved, const GatesWeights& of,
                               const void* packed, double alpha, double max_offset, int64_t wanted) {
  const Tensor& x = saved.x;
  Gates gates(x, saved.offset, of, packed, alpha, max_offset, true);
  GatesArguments& a = gates.a;
  const ScalarType feature = gates.x.scalar_type(), state = gates.offset.scalar_type();
  const Tensor read[] = {readable_image(grads.offset),    readable_image(grads.trend), readable_image(grads.mask),
                         readable_image(saved.update),    readable_image(saved.reset), readable_image(saved.candidate),
                         readable_image(saved.new_offset)};
  Tensor more_offset;
  if (grads.more_offset != nullptr) {
    more_offset = readable_image(*grads.more_offset);
    a.more_grad_new_offset = gates.read(more_offset, a.motion, state);
  }
  a.grad_new_offset = gates.read(read[0], a.motion, state), a.grad_new_trend = gates.read(read[1], a.motion, state);
  a.grad_mask = gates.read(read[2], a.masks, feature);
  a.update = gates.read(read[3], a.motion, feature), a.reset = gates.read(read[4], a.motion, feature);
  a.candidate = gates.read(read[5], a.motion, feature), a.new_offset = gates.read(read[6], a.motion, state);
  const bool want_x = wanted & kWantedX, want_motion = wanted & kWantedMotion, want_weights = wanted & kWantedWeights;
  const auto map = [&](bool want, int64_t channels, ScalarType type) {
    return want ? gates.new_map(channels, type) : nothing(x);
  };
  a.add_to_grad_x = grads.sum_of_x != nullptr;
  Tensor to_x = a.add_to_grad_x ? *grads.sum_of_x : map(want_x, a.channels, feature);
  Tensor to_offset = map(want_motion, a.motion, state), to_trend = map(want_motion, a.motion, state);
  Tensor to_logits = map(want_weights, 3 * a.motion + a.masks, state);
  if (gates.is_empty()) return {to_x, to_offset, to_trend, to_logits};
  if (want_x) a.grad_x = image_of(to_x);
  if (want_motion) a.grad_offset = image_of(to_offset), a.grad_trend = image_of(to_trend);
  if (want_weights) a.grad_logits = image_of(to_logits);
  torch::stable::parallel_for(0, a.batch * a.bands, 1,
                              [&](int64_t begin, int64_t end) { gates.kernels.backward(a, begin, end); });
  return {to_x, to_offset, to_trend, to_logits};
}

}  // namespace motionrnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(MOTIONRNN_EXT_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&motionrnn_ext::cpu::cpu_instruction_set));
}

STABLE_TORCH_LIBRARY_IMPL(MOTIONRNN_EXT_NAMESPACE, CPU, m) {
  namespace cpu = motionrnn_ext::cpu;
  using PointwiseOps = motionrnn_ext::PointwiseOps<cpu::Backend>;
  MOTIONRNN_EXT_IMPLEMENT_POINTWISE_OPS(m, PointwiseOps);
  m.impl("offset_warp", TORCH_BOX(&cpu::offset_warp));
  m.impl("offset_warp_backward", TORCH_BOX(&cpu::offset_warp_backward));
  m.impl("motion_gates", TORCH_BOX(&cpu::motion_gates));
  m.impl("motion_gates_backward", TORCH_BOX(&cpu::motion_gates_backward));
  m.impl("motion_gates_weight_gradients", TORCH_BOX(&cpu::motion_gates_weight_gradients));
}
