// The recurrent cells around the MotionGRU: LSTM memory, output gate with motion highway, blend.
#pragma once

#include "pointwise.h"

namespace motionrnn_ext::math {

// C' = s(f + b) C + s(i) tanh(g)
template <class T>
MOTIONRNN_EXT_MATH T lstm_memory(T i, T f, T g, T memory, T forget_bias) {
  return sigmoid(f + forget_bias) * memory + sigmoid(i) * tanh(g);
}

// Write the gradients by i, f, g and C, from that of C'.
template <class T>
MOTIONRNN_EXT_MATH void lstm_memory_backward(T grad, T i_logit, T f_logit, T g_logit, T memory, T forget_bias,
                                             T& grad_i, T& grad_f, T& grad_g, T& grad_memory) {
  const T i = sigmoid(i_logit), f = sigmoid(f_logit + forget_bias), g = tanh(g_logit);
  grad_i = grad * g * d_sigmoid(i);
  grad_f = grad * memory * d_sigmoid(f);
  grad_g = grad * i * d_tanh(g);
  grad_memory = grad * f;
}

// C' of gates (i,f,g) that are sums of two addends; the parameter is b
struct MemoryUpdate {
  static constexpr Operand inputs[] = {{Role::feature, 3}, {Role::feature, 3}, {Role::state}};  // (i,f,g) twice, C
  static constexpr Operand outputs[] = {{Role::state}};

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[7], T (&out)[1], const T (&parameters)[kParameters]) {
    const auto& [i_x, f_x, g_x, i_h, f_h, g_h, memory] = in;
    out[0] = lstm_memory(i_x + i_h, f_x + f_h, g_x + g_h, memory, parameters[0]);
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
    lstm_memory_backward(grad, i_x + i_h, f_x + f_h, g_x + g_h, memory, parameters[0], out[0], out[1], out[2], out[3]);
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
