// The 5x5 convolutions by Winograd's algorithm as torch ops.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "cpu/bindings.h"

namespace motionrnn_ext::cpu {
namespace {

WinogradKernels kernels_for(const Tensor& t) {
  return instruction_set().winograd(types_of(t.scalar_type(), t.scalar_type()));
}

void check_type(const Tensor& t, ScalarType type) {
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "motionrnn_ext: Winograd's convolution has float32 and float64");
  STD_TORCH_CHECK(t.scalar_type() == type, "motionrnn_ext: mixed dtypes");
}

Tensor winograd_pack(Tensor weight_, bool transposed) {
  const Tensor weight = torch::stable::contiguous(weight_);
  check_type(weight, weight.scalar_type());
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 5 && weight.size(3) == 5,
                  "motionrnn_ext: Winograd's weight should be (C_out, C, 5, 5)");
  WinogradArguments a{};
  a.channels = weight.size(transposed ? 0 : 1), a.out_channels = weight.size(transposed ? 1 : 0);
  a.weight = weight.const_data_ptr(), a.transposed = transposed;
  const WinogradKernels kernels = kernels_for(weight);
  Tensor packed = torch::stable::new_empty(weight, std::array<int64_t, 1>{kernels.sizes(a).packed});
  a.packed = packed.mutable_data_ptr();
  torch::stable::parallel_for(0, kernels.blocks(a), 1,
                              [&](int64_t begin, int64_t end) { kernels.pack(a, begin, end); });
  return packed;
}

Tensor winograd_conv(Tensor x_, Tensor packed, int64_t out_channels, std::optional<Tensor> bias_) {
  STD_TORCH_CHECK(x_.dim() == 4, "motionrnn_ext: x should be (B, C, H, W)");
  check_type(x_, x_.scalar_type()), check_type(packed, x_.scalar_type());
  const Tensor x = readable_image(x_);
  WinogradArguments a{};
  a.batch = x.size(0), a.channels = x.size(1), a.height = x.size(2), a.width = x.size(3);
  a.out_channels = out_channels;
  const WinogradKernels kernels = kernels_for(x);
  STD_TORCH_CHECK(packed.dim() == 1 && packed.numel() == kernels.sizes(a).packed && is_dense_from(packed, 0),
                  "motionrnn_ext: the packed weight is of another size");
  Tensor bias;
  if (bias_) {
    bias = torch::stable::contiguous(*bias_);
    check_type(bias, x.scalar_type());
    STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == out_channels, "motionrnn_ext: mismatched bias");
    a.bias = bias.const_data_ptr();
  }
  Tensor out = new_image(x, out_channels);
  if (out.numel() == 0) return out;
  a.x = image_of(x), a.out = image_of(out), a.packed = const_cast<void*>(packed.const_data_ptr());
  a.threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, kernels.items(a), 1,
                              [&](int64_t begin, int64_t end) { kernels.forward(a, begin, end); });
  return out;
}

}  // namespace
}  // namespace motionrnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(motionrnn_ext, CPU, m) {
  namespace cpu = motionrnn_ext::cpu;
  m.impl("winograd_pack", TORCH_BOX(&cpu::winograd_pack));
  m.impl("winograd_conv", TORCH_BOX(&cpu::winograd_conv));
}
