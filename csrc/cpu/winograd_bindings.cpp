// The convolutions by Winograd's algorithm as torch ops.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "cpu/bindings.h"

namespace motionrnn_ext::cpu {
namespace {

WinogradKernels kernels_for(const Tensor& t, int64_t k) {
  STD_TORCH_CHECK(k == 3 || k == 5, "motionrnn_ext: kernel_size should be 3 or 5");
  return instruction_set().winograd(types_of(t.scalar_type(), t.scalar_type()), static_cast<int>(k));
}

void check_type(const Tensor& t, ScalarType type) {
  STD_TORCH_CHECK(t.scalar_type() == type, "motionrnn_ext: mixed dtypes");
}

// Return the dtype of the arithmetic on maps of this dtype, in which packed weights and gradients of weights are.
ScalarType arithmetic_type(const Tensor& map) {
  const ScalarType type = map.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16,
                  "motionrnn_ext: no kernel for these dtypes");
  return type == ScalarType::Double ? type : ScalarType::Float;
}

Tensor winograd_pack(Tensor weight_, bool transposed) {
  const Tensor weight = dense(weight_);
  const ScalarType type = arithmetic_type(weight);
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == weight.size(3), "motionrnn_ext: mismatched sizes");
  WinogradArguments a{};
  a.channels = weight.size(transposed ? 0 : 1), a.out_channels = weight.size(transposed ? 1 : 0);
  a.weight = weight.const_data_ptr(), a.transposed = transposed;
  const WinogradKernels kernels = kernels_for(weight, weight.size(2));
  Tensor packed = torch::stable::new_empty(weight, std::array<int64_t, 1>{kernels.packed_size(a)}, type);
  a.packed = packed.mutable_data_ptr();
  torch::stable::parallel_for(0, kernels.blocks(a), 1,
                              [&](int64_t begin, int64_t end) { kernels.pack(a, begin, end); });
  return packed;
}

Tensor winograd_conv(Tensor x_, Tensor packed, int64_t kernel_size, int64_t out_channels, std::optional<Tensor> bias_) {
  STD_TORCH_CHECK(x_.dim() == 4, "motionrnn_ext: mismatched ranks");
  const ScalarType type = arithmetic_type(x_);
  check_type(packed, type);
  const Tensor x = readable_image(x_);
  WinogradArguments a{};
  a.batch = x.size(0), a.channels = x.size(1), a.height = x.size(2), a.width = x.size(3);
  a.out_channels = out_channels;
  STD_TORCH_CHECK(a.channels > 0, "motionrnn_ext: no input channels");
  const WinogradKernels kernels = kernels_for(x, kernel_size);
  STD_TORCH_CHECK(packed.dim() == 1 && packed.numel() == kernels.packed_size(a) && is_dense_from(packed, 0),
                  "motionrnn_ext: mismatched packed weight");
  Tensor bias;
  if (bias_) {
    bias = dense(*bias_);
    check_type(bias, type);
    STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == out_channels, "motionrnn_ext: mismatched bias");
    a.bias = bias.const_data_ptr();
  }
  Tensor out = new_image(x, out_channels);
  if (out.numel() == 0) return out;
  a.x = image_of(x), a.out = image_of(out), a.packed = const_cast<void*>(packed.const_data_ptr());
  const int64_t items = kernels.plan(a, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) { kernels.forward(a, begin, end); });
  return out;
}

Tensor winograd_weight_gradient(std::vector<Tensor> grads, std::vector<Tensor> xs, int64_t kernel_size) {
  STD_TORCH_CHECK(!xs.empty() && grads.size() == xs.size(), "motionrnn_ext: mismatched numbers of tensors");
  const Tensor &x = xs[0], &grad = grads[0];
  STD_TORCH_CHECK(x.dim() == 4 && grad.dim() == 4, "motionrnn_ext: mismatched ranks");
  const ScalarType type = arithmetic_type(x);
  WinogradArguments a{};
  a.batch = x.size(0), a.channels = x.size(1), a.height = x.size(2), a.width = x.size(3);
  a.out_channels = grad.size(1), a.steps = static_cast<int64_t>(xs.size());
  const auto images_of = [&](std::vector<Tensor>& tensors, int64_t channels) {
    std::vector<Image> images;
    for (Tensor& t : tensors) {
      check_type(t, x.scalar_type());
      STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == a.batch && t.size(1) == channels && t.size(2) == a.height &&
                          t.size(3) == a.width,
                      "motionrnn_ext: mismatched sizes");
      t = readable_image(t);
      images.push_back(image_of(t));
    }
    return images;
  };
  const std::vector<Image> x_images = images_of(xs, a.channels), grad_images = images_of(grads, a.out_channels);
  a.xs = x_images.data(), a.grads = grad_images.data();
  const std::vector<int64_t> sizes{a.out_channels, a.channels, kernel_size, kernel_size};
  Tensor grad_weight = torch::stable::new_empty(x, sizes, type);
  if (x.numel() == 0 || grad.numel() == 0) return torch::stable::zero_(grad_weight);
  a.grad_weight = grad_weight.mutable_data_ptr();
  const WinogradKernels kernels = kernels_for(x, kernel_size);
  torch::stable::parallel_for(0, kernels.blocks(a), 1,
                              [&](int64_t begin, int64_t end) { kernels.weight_gradient(a, begin, end); });
  return grad_weight;
}

}  // namespace
}  // namespace motionrnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(MOTIONRNN_EXT_NAMESPACE, CPU, m) {
  namespace cpu = motionrnn_ext::cpu;
  m.impl("winograd_pack", TORCH_BOX(&cpu::winograd_pack));
  m.impl("winograd_conv", TORCH_BOX(&cpu::winograd_conv));
  m.impl("winograd_weight_gradient", TORCH_BOX(&cpu::winograd_weight_gradient));
}
