// The CUDA kernels of the end of a MotionGRU step, with packed weights, as torch ops.
#include <torch/csrc/stable/library.h>

#include "cuda/tensors.h"
#include "operand_checks.h"

namespace motionrnn_ext::cuda {
namespace {

DecodeBlendKernels kernels_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return decode_blend_kernels_f32();
    case ScalarType::BFloat16: return decode_blend_kernels_bf16();
    case ScalarType::Half: return decode_blend_kernels_f16();
    default: STD_TORCH_CHECK(false, "motionrnn_ext: no kernel for these dtypes"); return {};
  }
}

struct Blend {
  DecodeBlendArguments a{};
  DecodeBlendKernels kernels;
  ScalarType type;

  // decoder_weight (E, C, 4, 4), gate_weight (C, 2C, 1, 1)
  Blend(const Tensor& decoder_weight, const Tensor& gate_weight)
      : kernels(kernels_of(gate_weight.scalar_type())), type(gate_weight.scalar_type()) {
    for (const Tensor& t : {decoder_weight, gate_weight}) check_here(t);
    STD_TORCH_CHECK(decoder_weight.scalar_type() == type, "motionrnn_ext: mixed dtypes");
    STD_TORCH_CHECK(decoder_weight.dim() == 4 && gate_weight.dim() == 4 && decoder_weight.size(2) == 4 &&
                        decoder_weight.size(3) == 4 && gate_weight.size(0) == decoder_weight.size(1) &&
                        gate_weight.size(1) == 2 * gate_weight.size(0) && gate_weight.size(2) == 1 &&
                        gate_weight.size(3) == 1,
                    "motionrnn_ext: mismatched sizes");
    STD_TORCH_CHECK(gate_weight.size(0) <= kMostChannels && decoder_weight.size(0) <= kMostChannels / 4,
                    "motionrnn_ext: there are more channels than the kernels of decoder and blend hold");
    a.encoded = static_cast<int>(decoder_weight.size(0)), a.channels = static_cast<int>(gate_weight.size(0));
  }

  // Take the size of the maps (B, C, 2h, 2w).
  void fit(const Tensor& maps) {
    STD_TORCH_CHECK(maps.dim() == 4 && maps.size(2) % 2 == 0 && maps.size(3) % 2 == 0 &&
                        maps.size(0) * maps.size(2) * maps.size(3) <= std::numeric_limits<int32_t>::max() - 32,
                    "motionrnn_ext: mismatched sizes");
    a.batch = static_cast<int>(maps.size(0)), a.height = static_cast<int>(maps.size(2) / 2);
    a.width = static_cast<int>(maps.size(3) / 2);
  }
  Image map(const Tensor& t, int64_t channels, int64_t height, int64_t width) const {
    check_here(t);
    STD_TORCH_CHECK(t.scalar_type() == type, "motionrnn_ext: mixed dtypes");
    STD_TORCH_CHECK(
        t.dim() == 4 && t.size(0) == a.batch && t.size(1) == channels && t.size(2) == height && t.size(3) == width,
        "motionrnn_ext: mismatched sizes");
    return image_of(t);
  }
  Image map(const Tensor& t) const { return map(t, a.channels, 2 * a.height, 2 * a.width); }
  const void* bias(const Tensor& t) const {
    check_here(t);
    STD_TORCH_CHECK(t.scalar_type() == type && t.dim() == 1 && t.size(0) == a.channels && is_dense_from(t, 0),
                    "motionrnn_ext: mismatched sizes");
    return t.const_data_ptr();
  }
  void use(const Tensor& packed, bool backward) {
    check_here(packed);
    STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && is_dense_from(packed, 0) &&
                        packed.numel() == static_cast<int64_t>(kernels.packed_bytes(a, backward)),
                    "motionrnn_ext: the fragments are those of other weights");
    a.packed = const_cast<void*>(packed.const_data_ptr());
  }
  bool is_empty() const { return a.batch == 0 || a.height == 0 || a.width == 0; }

  static constexpr int64_t kMostChannels = 256;
};

std::tuple<Tensor, Tensor> decode_blend_pack(Tensor decoder_weight, Tensor gate_weight) {
  Blend blend(decoder_weight, gate_weight);
  const OnDevice device(decoder_weight);
  const Tensor decoder = torch::stable::contiguous(decoder_weight), gate = torch::stable::contiguous(gate_weight);
  blend.a.decoder_weight = decoder.const_data_ptr(), blend.a.gate_weight = gate.const_data_ptr();
  std::array<Tensor, 2> packed;
  for (const bool backward : {false, true}) {
    const std::array<int64_t, 1> bytes{static_cast<int64_t>(blend.kernels.packed_bytes(blend.a, backward))};
    packed[backward] = torch::stable::new_empty(decoder_weight, bytes, ScalarType::Byte);
    blend.a.packed = packed[backward].mutable_data_ptr();
    blend.kernels.pack(blend.a, backward, device.stream);
  }
  return {packed[0], packed[1]};
}

using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

ThreeTensors decode_blend(Tensor warped, Tensor maps, Tensor decoder_weight, Tensor decoder_bias, Tensor gate_weight,
                          Tensor gate_bias, Tensor packed, bool gates_maps) {
  Blend blend(decoder_weight, gate_weight);
  DecodeBlendArguments& a = blend.a;
  blend.fit(maps), blend.use(packed, false);
  const Tensor read[] = {readable_image(warped), readable_image(maps)};
  a.warped = blend.map(read[0], a.encoded, a.height, a.width), a.maps = blend.map(read[1]);
  a.decoder_bias = blend.bias(decoder_bias), a.gate_bias = blend.bias(gate_bias), a.gates_maps = gates_maps;
  const Tensor out = new_image(maps, a.channels), decoded = new_image(maps, a.channels);
  const Tensor logits = new_image(maps, a.channels);
  a.out = image_of(out), a.decoded = image_of(decoded), a.logits = image_of(logits);
  if (!blend.is_empty()) {
    const OnDevice device(maps);
    blend.kernels.forward(a, device.stream);
  }
  return {out, decoded, logits};
}

ThreeTensors decode_blend_backward(Tensor grad, Tensor maps, Tensor decoded, Tensor logits, Tensor decoder_weight,
                                   Tensor gate_weight, Tensor packed, bool gates_maps) {
  Blend blend(decoder_weight, gate_weight);
  DecodeBlendArguments& a = blend.a;
  blend.fit(maps), blend.use(packed, true);
  a.gates_maps = gates_maps;
  const Tensor read[] = {readable_image(grad), readable_image(maps), readable_image(decoded), readable_image(logits)};
  a.grad = blend.map(read[0]), a.maps = blend.map(read[1]), a.decoded = blend.map(read[2]);
  a.logits = blend.map(read[3]);
  const Tensor to_maps = new_image(maps, a.channels), to_decoded = new_image(maps, a.channels);
  const Tensor to_logits = new_image(maps, a.channels);
  a.grad_maps = image_of(to_maps), a.grad_decoded = image_of(to_decoded), a.grad_logits = image_of(to_logits);
  if (!blend.is_empty()) {
    const OnDevice device(maps);
    blend.kernels.backward(a, device.stream);
  }
  return {to_maps, to_decoded, to_logits};
}

}  // namespace
}  // namespace motionrnn_ext::cuda

MOTIONRNN_EXT_CUDA_OPS(m) {
  namespace cuda = motionrnn_ext::cuda;
  m.impl("decode_blend_pack", TORCH_BOX(&cuda::decode_blend_pack));
  m.impl("decode_blend", TORCH_BOX(&cuda::decode_blend));
  m.impl("decode_blend_backward", TORCH_BOX(&cuda::decode_blend_backward));
}
