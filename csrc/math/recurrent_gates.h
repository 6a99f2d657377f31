// The recurrent cells around the MotionGRU: LSTM memory, output gate with motion highway, blend.
#pragma once

#include "pointwise.h"

namespace motionrnn_ext::math {

// C' = s(f_x + f_h + b) C + s(i_x + i_h) tanh(g_x + g_h); the parameter is b
struct MemoryUpdate {
  static constexpr Operand inputs[] = {{Role::feature, 3}, {Role::feature, 3}, {Role::state}};  // (i,f,g) twice, C
  static constexpr Operand outputs[] = {{Role::state}};

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[7], T (&out)[1], const T (&parameters)[kParameters]) {
    const auto& [i_x, f_x, g_x, i_h, f_h, g_h, memory] = in;
    out[0] = sigmoid(f_x + f_h + parameters[0]) * memory + sigmoid(i_x + i_h) * tanh(g_x + g_h);
  }
};

// gates_x and gates_h are added, so they have the same gradient. It is written once.
struct MemoryUpdateBackward {
  static constexpr Operand inputs[] = {
      {Role::state}, {Role::feature, 3}, {Role::feature, 3}, {Role::state}};  // grad, (i,f,g) twice, C
  static constexpr Operand outputs[] = {{Role::feature, 3}, {Role::state}};   // grad of either (i,f,g), of C

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[8], T (&out)[4], const T (&parameters)[kParameters]) {
    const auto& [grad, i_x, f_x, g_x, i_h, f_h, g_h, memory] = in;
    const T i = sigmoid(i_x + i_h), f = sigmoid(f_x + f_h + parameters[0]), g = tanh(g_x + g_h);
    out[0] = grad * g * d_sigmoid(i);
    out[1] = grad * memory * d_sigmoid(f);
    out[2] = grad * i * d_tanh(g);
    out[3] = grad * f;
  }
};

// out = s(o) tanh(content)
struct GatedOutput {
  static constexpr Operand inputs[] = {{Role::feature}, {Role::feature}};  // o, content
  static constexpr Operand outputs[] = {{Role::feature}};

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[2], T (&out)[1], const T (&)[kParameters]) {
    const auto& [output_logit, content] = in;
    out[0] = sigmoid(output_logit) * tanh(content);
  }
};

struct GatedOutputBackward {
  static constexpr Operand inputs[] = {{Role::feature}, {Role::feature}, {Role::feature}};  // grad, o, content
  static constexpr Operand outputs[] = {{Role::feature}, {Role::feature}};                  // grad of o, content

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[3], T (&out)[2], const T (&)[kParameters]) {
    const auto& [grad, output_logit, content] = in;
    const T gate = sigmoid(output_logit), squashed = tanh(content);
    out[0] = grad * squashed * d_sigmoid(gate);
    out[1] = grad * gate * d_tanh(squashed);
  }
};

// out = s(g) a + (1 - s(g)) b
struct GatedBlend {
  static constexpr Operand inputs[] = {{Role::feature}, {Role::feature}, {Role::feature}};  // g, a, b
  static constexpr Operand outputs[] = {{Role::feature}};

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[3], T (&out)[1], const T (&)[kParameters]) {
    const auto& [gate_logit, a, b] = in;
    const T gate = sigmoid(gate_logit);
    out[0] = gate * a + (T(1) - gate) * b;
  }
};

struct GatedBlendBackward {
  static constexpr Operand inputs[] = {
      {Role::feature}, {Role::feature}, {Role::feature}, {Role::feature}};                   // grad, g, a, b
  static constexpr Operand outputs[] = {{Role::feature}, {Role::feature}, {Role::feature}};  // grad of g, a, b

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[4], T (&out)[3], const T (&)[kParameters]) {
    const auto& [grad, gate_logit, a, b] = in;
    const T gate = sigmoid(gate_logit);
    out[0] = grad * (a - b) * d_sigmoid(gate);
    out[1] = grad * gate;
    out[2] = grad * (T(1) - gate);
  }
};

// out = s(o) tanh(content) + (1 - s(o)) highway: the blend with its first operand squashed
struct HighwayOutput {
  static constexpr Operand inputs[] = {{Role::feature}, {Role::feature}, {Role::feature}};  // o, content, highway
  static constexpr Operand outputs[] = {{Role::feature}};

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[3], T (&out)[1], const T (&parameters)[kParameters]) {
    const auto& [output_logit, content, highway] = in;
    GatedBlend::apply<T>({output_logit, tanh(content), highway}, out, parameters);
  }
};

struct HighwayOutputBackward {
  static constexpr Operand inputs[] = {
      {Role::feature}, {Role::feature}, {Role::feature}, {Role::feature}};  // grad, o, content, highway
  static constexpr Operand outputs[] = {{Role::feature}, {Role::feature}, {Role::feature}};  // of o, content, highway

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[4], T (&out)[3], const T (&parameters)[kParameters]) {
    const auto& [grad, output_logit, content, highway] = in;
    const T squashed = tanh(content);
    GatedBlendBackward::apply<T>({grad, output_logit, squashed, highway}, out, parameters);
    out[1] *= d_tanh(squashed);
  }
};

}  // namespace motionrnn_ext::math
