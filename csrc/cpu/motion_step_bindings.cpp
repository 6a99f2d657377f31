// A MotionGRU step from its encoder to its decoder as one op: E = Enc(H), the motion gates, the warp, Q = Dec(...).
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <vector>

#include "cpu/bindings.h"
#include "operand_checks.h"

namespace motionrnn_ext::cpu {
namespace {

// Pixels of a band of half rows: the planes of 64 channels of the whole map take 512 KB, which the second-level cache
// holds.
constexpr int64_t kBandPixels = 512;

// The parts of the list of weights.
struct Weights {
  Tensor encoder, x_weight, x_bias, state_weight, candidate_weight, warp, decoder, encoder_bias, decoder_bias;

  explicit Weights(const std::array<const Tensor*, 9>& given) {
    Tensor* parts[] = {&encoder, &x_weight, &x_bias,       &state_weight, &candidate_weight,
                       &warp,    &decoder,  &encoder_bias, &decoder_bias};
    for (size_t i = 0; i < given.size(); ++i) {
      STD_TORCH_CHECK(given[i]->scalar_type() == given[0]->scalar_type(), "motionrnn_ext: mixed dtypes");
      *parts[i] = dense(*given[i]);
    }
    for (const Tensor* t : {&encoder, &x_weight, &state_weight, &candidate_weight, &warp, &decoder})
      STD_TORCH_CHECK(t->dim() == 4, "motionrnn_ext: mismatched ranks");
    for (const Tensor* t : {&encoder, &warp, &decoder})
      STD_TORCH_CHECK(t->size(2) == t->size(3) && t->size(0) == encoder.size(0), "motionrnn_ext: mismatched sizes");
    STD_TORCH_CHECK(x_weight.size(1) == encoder.size(0) && warp.size(1) == encoder.size(0) &&
                        decoder.size(1) == encoder.size(1) && encoder_bias.numel() == encoder.size(0) &&
                        decoder_bias.numel() == decoder.size(1) && x_bias.numel() == x_weight.size(0),
                    "motionrnn_ext: mismatched sizes");
  }

  GatesWeights gates() const { return {x_weight, x_bias, state_weight, candidate_weight}; }
  Types types() const { return types_of(encoder.scalar_type(), state_type(encoder.scalar_type())); }

  StridedArguments strided(const Tensor& weight, const Tensor* bias) const {
    StridedArguments a{};
    a.half_channels = weight.size(0), a.channels = weight.size(1), a.k = static_cast<int>(weight.size(2));
    a.weight = weight.const_data_ptr();
    if (bias != nullptr) a.bias = bias->const_data_ptr();
    return a;
  }
};

// Where each part's packed weights start, in bytes.
struct Packing {
  int64_t encoder, decoder, gates, warp, size = 0;

  explicit Packing(const Weights& w) {
    const InstructionSet& set = instruction_set();
    const auto add = [&](int64_t bytes) {
      const int64_t start = size;
      size += (bytes + kAlignment - 1) / kAlignment * kAlignment;
      return start;
    };
    const StridedKernels strided = set.strided(w.types());
    encoder = add(strided.packed_size(w.strided(w.encoder, nullptr)));
    decoder = add(strided.packed_size(w.strided(w.decoder, nullptr)));
    gates = add(set.gates(w.types()).packed_size(gates_arguments(w)));
    warp = add(set.warp(w.types()).sizes(warp_arguments(w)).packed_weight);
  }

  static GatesArguments gates_arguments(const Weights& w) {
    GatesArguments a{};
    a.batch = a.height = a.width = a.bands = 1;
    a.channels = w.x_weight.size(1), a.motion = w.candidate_weight.size(0);
    a.masks = w.x_weight.size(0) - 3 * a.motion, a.k = static_cast<int>(w.x_weight.size(2));
    a.x_weight = w.x_weight.const_data_ptr(), a.x_bias = w.x_bias.const_data_ptr();
    a.state_weight = w.state_weight.const_data_ptr(), a.candidate_weight = w.candidate_weight.const_data_ptr();
    const auto is_weight = [&](const Tensor& t, int64_t out) {
      return t.size(0) == out && t.size(1) == a.motion && t.size(2) == a.k && t.size(3) == a.k;
    };
    STD_TORCH_CHECK(a.masks >= 0 && is_weight(w.state_weight, 2 * a.motion) && is_weight(w.candidate_weight, a.motion),
                    "motionrnn_ext: mismatched sizes");
    return a;
  }

  static WarpArguments warp_arguments(const Weights& w) {
    WarpArguments a{};
    a.batch = a.height = a.width = a.bands = 1;
    a.out_channels = w.warp.size(0), a.channels = w.warp.size(1), a.k = static_cast<int>(w.warp.size(2));
    a.weight = w.warp.const_data_ptr();
    return a;
  }
};

// Aligned, as the vectors of the kernels are: an allocation of torch is.
char* at(const Tensor& packed, int64_t start) {
  return static_cast<char*>(const_cast<void*>(packed.const_data_ptr())) + start;
}

Tensor motion_step_pack(std::vector<Tensor> all, bool backward) {
  STD_TORCH_CHECK(all.size() == 9, "motionrnn_ext: mismatched numbers of tensors");
  std::array<const Tensor*, 9> given;
  for (size_t i = 0; i < given.size(); ++i) given[i] = &all[i];
  const Weights w(given);
  const Packing parts(w);
  const InstructionSet& set = instruction_set();
  Tensor packed = workspace(w.encoder, parts.size);
  // The encoder halves the map, and so does the decoder's gradient.
  const StridedKernels strided = set.strided(w.types());
  StridedArguments encoder = w.strided(w.encoder, backward ? nullptr : &w.encoder_bias);
  StridedArguments decoder = w.strided(w.decoder, backward ? nullptr : &w.decoder_bias);
  encoder.packed = at(packed, parts.encoder), decoder.packed = at(packed, parts.decoder);
  strided.pack(encoder, !backward), strided.pack(decoder, backward);
  GatesArguments gates = Packing::gates_arguments(w);
  gates.packed = at(packed, parts.gates);
  set.gates(w.types()).pack(gates, backward);
  WarpArguments warp = Packing::warp_arguments(w);
  warp.packed_weight = at(packed, parts.warp);
  set.warp(w.types()).pack(warp);
  return packed;
}

struct Step {
  const Weights w;
  const Packing parts{w};
  const Tensor& packed;
  const StridedKernels strided = instruction_set().strided(w.types());

  Step(const std::array<const Tensor*, 9>& weights, const Tensor& packed_) : w(weights), packed(packed_) {
    STD_TORCH_CHECK(packed.dim() == 1 && packed.numel() == parts.size && packed.scalar_type() == ScalarType::Byte,
                    "motionrnn_ext: mismatched packed weight");
    STD_TORCH_CHECK(is_dense_from(packed, 0) && reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % kAlignment == 0,
                    "motionrnn_ext: the packed weight should be contiguous and begin at a multiple of 64 bytes");
  }

  StridedArguments sized(const Tensor& weight, int64_t start, const Tensor& half) const {
    StridedArguments a = w.strided(weight, nullptr);
    a.batch = half.size(0), a.height = half.size(2), a.width = half.size(3);
    a.packed = at(packed, start);
    a.half = image_of(half);
    const int64_t for_cache = (a.height * a.width + kBandPixels - 1) / kBandPixels;
    a.bands = static_cast<int>(std::min(a.height, std::max(bands_for_threads(a.batch), for_cache)));
    return a;
  }

  void halve(const Tensor& weight, int64_t start, const Tensor& whole, const Tensor& half) const {
    if (half.numel() == 0) return;
    StridedArguments a = sized(weight, start, half);
    a.whole = image_of(whole);
    torch::stable::parallel_for(0, a.batch * a.bands, 1,
                                [&](int64_t begin, int64_t end) { strided.halve(a, begin, end); });
  }

  void twice(const Tensor& weight, int64_t start, const Tensor& half, const Tensor& whole, const Tensor* addend) const {
    if (half.numel() == 0) return;
    StridedArguments a = sized(weight, start, half);
    a.whole = image_of(whole);
    if (addend != nullptr) a.addend = image_of(*addend);
    torch::stable::parallel_for(0, a.batch * a.bands, 1,
                                [&](int64_t begin, int64_t end) { strided.twice(a, begin, end); });
  }

  void check_whole(const Tensor& maps) const {
    STD_TORCH_CHECK(maps.scalar_type() == w.encoder.scalar_type(), "motionrnn_ext: mixed dtypes");
    STD_TORCH_CHECK(
        maps.dim() == 4 && maps.size(1) == w.encoder.size(1) && maps.size(2) % 2 == 0 && maps.size(3) % 2 == 0,
        "motionrnn_ext: mismatched sizes");
  }
};

using NineTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

NineTensors motion_step(Tensor maps_, Tensor offset, Tensor trend, Tensor encoder_weight, Tensor x_weight,
                        Tensor x_bias, Tensor state_weight, Tensor candidate_weight, Tensor warp_weight,
                        Tensor decoder_weight, Tensor encoder_bias, Tensor decoder_bias, Tensor packed, double alpha,
                        double max_offset) {
  const Step step({&encoder_weight, &x_weight, &x_bias, &state_weight, &candidate_weight, &warp_weight, &decoder_weight,
                   &encoder_bias, &decoder_bias},
                  packed);
  const Weights& w = step.w;
  step.check_whole(maps_);
  const Tensor maps = readable_image(maps_);
  Tensor features = new_tensor(maps, {maps.size(0), w.encoder.size(0), maps.size(2) / 2, maps.size(3) / 2},
                               maps.scalar_type(), follows_channels_last(maps));
  step.halve(w.encoder, step.parts.encoder, maps, features);
  const auto [new_offset, new_trend, mask, update, reset, candidate] =
      run_gates(features, offset, trend, w.gates(), at(packed, step.parts.gates), alpha, max_offset);
  Tensor warped = run_warp(features, new_offset, mask, w.warp, at(packed, step.parts.warp));
  Tensor decoded = new_image(maps, w.decoder.size(1));
  step.twice(w.decoder, step.parts.decoder, warped, decoded, nullptr);
  return {decoded, new_offset, new_trend, features, mask, update, reset, candidate, warped};
}

SixTensors motion_step_backward(Tensor grad_decoded_, Tensor grad_maps_, Tensor grad_offset, Tensor grad_trend,
                                Tensor offset, Tensor features, Tensor mask, Tensor update, Tensor reset,
                                Tensor candidate, Tensor new_offset, Tensor encoder_weight, Tensor x_weight,
                                Tensor x_bias, Tensor state_weight, Tensor candidate_weight, Tensor warp_weight,
                                Tensor decoder_weight, Tensor encoder_bias, Tensor decoder_bias, Tensor packed,
                                double alpha, double max_offset, int64_t wanted) {
  const Step step({&encoder_weight, &x_weight, &x_bias, &state_weight, &candidate_weight, &warp_weight, &decoder_weight,
                   &encoder_bias, &decoder_bias},
                  packed);
  const Weights& w = step.w;
  step.check_whole(grad_decoded_), step.check_whole(grad_maps_);
  const Tensor grad_decoded = readable_image(grad_decoded_), grad_maps = readable_image(grad_maps_);
  STD_TORCH_CHECK(
      features.dim() == 4 && features.scalar_type() == w.encoder.scalar_type() && features.size(1) == w.encoder.size(0),
      "motionrnn_ext: mismatched features");
  Tensor grad_warped = new_image(features, w.warp.size(0));
  STD_TORCH_CHECK(grad_warped.size(0) == grad_maps.size(0) && 2 * grad_warped.size(2) == grad_maps.size(2) &&
                      2 * grad_warped.size(3) == grad_maps.size(3) && grad_decoded.size(0) == grad_maps.size(0) &&
                      grad_decoded.size(2) == grad_maps.size(2) && grad_decoded.size(3) == grad_maps.size(3),
                  "motionrnn_ext: mismatched gradient");
  step.halve(w.decoder, step.parts.decoder, grad_decoded, grad_warped);
  const int64_t of_maps = kWantedX | kWantedMotion | kWantedMask, of_weights = wanted & kWantedWeights;
  auto [grad_features, by_warp, grad_mask, grad_warp] = run_warp_backward(
      grad_warped, features, new_offset, mask, w.warp, at(packed, step.parts.warp), of_maps | of_weights);
  auto [sum, grad_old_offset, grad_old_trend, grad_logits] =
      run_gates_backward({by_warp, grad_trend, grad_mask, &grad_offset, &grad_features},
                         {features, offset, update, reset, candidate, new_offset}, w.gates(),
                         at(packed, step.parts.gates), alpha, max_offset, wanted | kWantedX);
  Tensor grad_of_maps = new_image(grad_maps, w.encoder.size(1));
  step.twice(w.encoder, step.parts.encoder, grad_features, grad_of_maps, &grad_maps);
  return {grad_of_maps, grad_old_offset, grad_old_trend, grad_features, grad_logits, grad_warp};
}

}  // namespace
}  // namespace motionrnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(MOTIONRNN_EXT_NAMESPACE, CPU, m) {
  namespace cpu = motionrnn_ext::cpu;
  m.impl("motion_step_pack", TORCH_BOX(&cpu::motion_step_pack));
  m.impl("motion_step", TORCH_BOX(&cpu::motion_step));
  m.impl("motion_step_backward", TORCH_BOX(&cpu::motion_step_backward));
}
