// The pointwise ops in terms of math/'s maps, for the bindings of every native backend. A Backend has
//   is_here(tensor)               whether the tensor is on its device
//   run(map, types, arguments, tensor)   run a map; `tensor` tells the device
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "layouts.h"

namespace motionrnn_ext {

template <class Backend>
struct PointwiseOps {
  static Tensor motion_reset(Tensor reset_logits, Tensor offset) {
    return run<math::MotionReset>({reset_logits, offset}, 0)[0];
  }

  static std::tuple<Tensor, Tensor> motion_reset_backward(Tensor grad, Tensor reset_logits, Tensor offset) {
    return std::tuple_cat(run<math::MotionResetBackward>({grad, reset_logits, offset}, 1));
  }

  static std::tuple<Tensor, Tensor> motion_update(Tensor update_logits, Tensor candidate_logits, Tensor offset,
                                                  Tensor trend, double alpha, double max_offset) {
    return std::tuple_cat(
        run<math::MotionUpdate>({update_logits, candidate_logits, offset, trend}, 0, {alpha, max_offset}));
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> motion_update_backward(Tensor grad_offset, Tensor grad_trend,
                                                                           Tensor update_logits,
                                                                           Tensor candidate_logits, Tensor offset,
                                                                           Tensor new_offset, double alpha,
                                                                           double max_offset) {
    return std::tuple_cat(run<math::MotionUpdateBackward>(
        {grad_offset, grad_trend, update_logits, candidate_logits, offset, new_offset}, 2, {alpha, max_offset}));
  }

  static Tensor memory_update(Tensor gates_x, Tensor gates_h, Tensor memory, double forget_bias) {
    return run<math::MemoryUpdate>({gates_x, gates_h, memory}, 0, {forget_bias})[0];
  }

  static std::tuple<Tensor, Tensor> memory_update_backward(Tensor grad, Tensor gates_x, Tensor gates_h, Tensor memory,
                                                           double forget_bias) {
    return std::tuple_cat(run<math::MemoryUpdateBackward>({grad, gates_x, gates_h, memory}, 1, {forget_bias}));
  }

  static Tensor highway_output(Tensor output_logits, Tensor content, std::optional<Tensor> highway) {
    if (!highway) return run<math::GatedOutput>({output_logits, content}, 0)[0];
    return run<math::HighwayOutput>({output_logits, content, *highway}, 0)[0];
  }

  static std::tuple<Tensor, Tensor, Tensor> highway_output_backward(Tensor grad, Tensor output_logits, Tensor content,
                                                                    std::optional<Tensor> highway) {
    if (highway) return std::tuple_cat(run<math::HighwayOutputBackward>({grad, output_logits, content, *highway}, 1));
    const auto grads = run<math::GatedOutputBackward>({grad, output_logits, content}, 1);
    return {grads[0], grads[1], nothing(grad)};
  }

  static Tensor gated_blend(Tensor gate_logits, Tensor a, Tensor b) {
    return run<math::GatedBlend>({gate_logits, a, b}, 0)[0];
  }

  static std::tuple<Tensor, Tensor, Tensor> gated_blend_backward(Tensor grad, Tensor gate_logits, Tensor a, Tensor b) {
    return std::tuple_cat(run<math::GatedBlendBackward>({grad, gate_logits, a, b}, 1));
  }

  static std::tuple<Tensor, Tensor, Tensor> st_lstm_update(Tensor cell_gates, Tensor memory_gates, Tensor cell,
                                                           Tensor memory, double forget_bias) {
    return std::tuple_cat(run<math::StLstmUpdate>({cell_gates, memory_gates, cell, memory}, 0, {forget_bias}));
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> st_lstm_update_backward(Tensor grad_memories, Tensor grad_content,
                                                                            Tensor grad_cell, Tensor grad_memory,
                                                                            Tensor grad_output, Tensor cell_gates,
                                                                            Tensor memory_gates, Tensor cell,
                                                                            Tensor memory, double forget_bias) {
    return std::tuple_cat(run<math::StLstmUpdateBackward>(
        {grad_memories, grad_content, grad_cell, grad_memory, grad_output, cell_gates, memory_gates, cell, memory}, 5,
        {forget_bias}));
  }

  static std::tuple<Tensor, Tensor> summed_output(Tensor output_o, Tensor output_x, Tensor content,
                                                  std::optional<Tensor> highway) {
    if (!highway) return std::tuple_cat(run<math::SummedGatedOutput>({output_o, output_x, content}, 0));
    return std::tuple_cat(run<math::SummedHighwayOutput>({output_o, output_x, content, *highway}, 0));
  }

  static std::tuple<Tensor, Tensor> conv_lstm_update(Tensor gates, Tensor cell, std::optional<Tensor> highway,
                                                     double forget_bias) {
    if (!highway) return std::tuple_cat(run<math::ConvLstmUpdate>({gates, cell}, 0, {forget_bias}));
    return std::tuple_cat(run<math::ConvLstmHighwayUpdate>({gates, cell, *highway}, 0, {forget_bias}));
  }

  static std::tuple<Tensor, Tensor, Tensor> conv_lstm_update_backward(Tensor grad_hidden, Tensor grad_cell,
                                                                      Tensor gates, Tensor cell, Tensor new_cell,
                                                                      std::optional<Tensor> highway,
                                                                      double forget_bias) {
    if (highway)
      return std::tuple_cat(run<math::ConvLstmHighwayUpdateBackward>(
          {grad_hidden, grad_cell, gates, cell, new_cell, *highway}, 2, {forget_bias}));
    const auto grads =
        run<math::ConvLstmUpdateBackward>({grad_hidden, grad_cell, gates, cell, new_cell}, 2, {forget_bias});
    return {grads[0], grads[1], nothing(grad_hidden)};
  }

 private:
  template <class MapOf>
  using Inputs = std::array<Tensor, std::size(MapOf::inputs)>;
  template <class MapOf>
  using Outputs = std::array<Tensor, std::size(MapOf::outputs)>;
  using Parameters = std::array<double, math::kParameters>;

  // The leader is the input whose memory format the outputs follow: the op's first.
  template <class MapOf>
  static Outputs<MapOf> run(Inputs<MapOf> in, size_t leader, Parameters parameters = {}) {
    const bool channels_last = wants_channels_last(in[leader]);
    std::optional<ScalarType> feature, state;
    for (size_t i = 0; i < in.size(); ++i) {
      auto& role_type = MapOf::inputs[i].role == math::Role::feature ? feature : state;
      if (!role_type) role_type = in[i].scalar_type();
      STD_TORCH_CHECK(Backend::is_here(in[i]) && in[i].scalar_type() == *role_type,
                      "motionrnn_ext: mixed devices or dtypes");
      STD_TORCH_CHECK(in[i].dim() >= 2 && in[i].dim() == in[leader].dim(), "motionrnn_ext: mismatched sizes");
      if (channels_last && !is_pixel_rows(in[i]))
        in[i] = torch::stable::contiguous(in[i], torch::headeronly::MemoryFormat::ChannelsLast);
      if (!channels_last) in[i] = dense_planes(in[i]);
    }
    if (!state) state = feature;

    std::vector<int64_t> shape(in[0].sizes().begin(), in[0].sizes().end());
    const int64_t channels = shape[1] / MapOf::inputs[0].streams;
    int64_t pixels = 1;
    for (size_t d = 2; d < shape.size(); ++d) pixels *= shape[d];
    math::PointwiseArguments a{};
    a.rows = channels_last ? shape[0] * pixels : shape[0];
    a.inner = channels_last ? channels : channels * pixels;
    std::copy(parameters.begin(), parameters.end(), a.parameters);
    // Operands without gaps are one long row.
    bool dense = true;
    const auto add = [&](auto* pointers, int64_t* strides, auto* data, const Tensor& t, int streams, size_t& stream) {
      for (int s = 0; s < streams; ++s, ++stream) {
        pointers[stream] = data + s * a.inner * bytes_of(t.scalar_type());
        strides[stream] = channels_last ? pixel_distance(t) : t.stride(0);
        dense = dense && strides[stream] == a.inner;
      }
    };
    for (size_t i = 0, stream = 0; i < in.size(); ++i) {
      const int streams = MapOf::inputs[i].streams;
      bool fits = in[i].size(0) == shape[0] && in[i].size(1) == channels * streams;
      for (size_t d = 2; d < shape.size(); ++d) fits = fits && in[i].size(d) == shape[d];
      STD_TORCH_CHECK(fits, "motionrnn_ext: mismatched sizes");
      add(a.in, a.in_stride, static_cast<const char*>(in[i].const_data_ptr()), in[i], streams, stream);
    }
    Outputs<MapOf> out;
    for (size_t o = 0, stream = 0; o < out.size(); ++o) {
      const math::Operand operand = MapOf::outputs[o];
      shape[1] = channels * operand.streams;
      out[o] = new_tensor(in[0], shape, operand.role == math::Role::feature ? *feature : *state, channels_last);
      add(a.out, a.out_stride, static_cast<char*>(out[o].mutable_data_ptr()), out[o], operand.streams, stream);
    }
    if (a.rows * a.inner == 0) return out;
    if (dense) a.inner *= a.rows, a.rows = 1;
    Backend::run(math::kMap<MapOf>, types_of(*feature, *state), a, in[0]);
    return out;
  }
};

#define MOTIONRNN_EXT_IMPLEMENT_POINTWISE_OPS(m, Ops)                          \
  m.impl("motion_reset", TORCH_BOX(&Ops::motion_reset));                       \
  m.impl("motion_reset_backward", TORCH_BOX(&Ops::motion_reset_backward));     \
  m.impl("motion_update", TORCH_BOX(&Ops::motion_update));                     \
  m.impl("motion_update_backward", TORCH_BOX(&Ops::motion_update_backward));   \
  m.impl("memory_update", TORCH_BOX(&Ops::memory_update));                     \
  m.impl("memory_update_backward", TORCH_BOX(&Ops::memory_update_backward));   \
  m.impl("highway_output", TORCH_BOX(&Ops::highway_output));                   \
  m.impl("highway_output_backward", TORCH_BOX(&Ops::highway_output_backward)); \
  m.impl("gated_blend", TORCH_BOX(&Ops::gated_blend));                         \
  m.impl("gated_blend_backward", TORCH_BOX(&Ops::gated_blend_backward));       \
  m.impl("st_lstm_update", TORCH_BOX(&Ops::st_lstm_update));                   \
  m.impl("st_lstm_update_backward", TORCH_BOX(&Ops::st_lstm_update_backward)); \
  m.impl("summed_output", TORCH_BOX(&Ops::summed_output));                     \
  m.impl("conv_lstm_update", TORCH_BOX(&Ops::conv_lstm_update));               \
  m.impl("conv_lstm_update_backward", TORCH_BOX(&Ops::conv_lstm_update_backward))

}  // namespace motionrnn_ext
