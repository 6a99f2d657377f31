// The LSTM cells' joints: what a step computes between two of its convolutions, in one map each.
#pragma once

#include "recurrent_gates.h"

namespace motionrnn_ext::math {

// The spatiotemporal LSTM's two memories: C by (i,f,g), M by (i',f',g'). The parameter is b.
struct StLstmUpdate {
  static constexpr Operand inputs[] = {
      {Role::feature, 3}, {Role::feature, 3}, {Role::state}, {Role::state}};                // logits, C, M
  static constexpr Operand outputs[] = {{Role::feature, 2}, {Role::state}, {Role::state}};  // [C', M'], C', M'

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[8], T (&out)[4], const T (&parameters)[kParameters]) {
    const auto& [i, f, g, i2, f2, g2, cell, memory] = in;
    out[0] = out[2] = lstm_memory(i, f, g, cell, parameters[0]);
    out[1] = out[3] = lstm_memory(i2, f2, g2, memory, parameters[0]);
  }
};

// The gradient of [C', M'] is the sum of two convolutions' and, from the next step, that of C' and M'. That of the
// output gate's logits is written behind those of the other gates, where the convolutions' gradients read them.
struct StLstmUpdateBackward {
  // gradients of [C', M'] twice, of C', M' and o; (i,f,g), (i',f',g'), C, M
  static constexpr Operand inputs[] = {{Role::feature, 2}, {Role::feature, 2}, {Role::state},
                                       {Role::state},      {Role::feature},    {Role::feature, 3},
                                       {Role::feature, 3}, {Role::state},      {Role::state}};
  // gradients of (i,f,g,o), (i',f',g'), C, M
  static constexpr Operand outputs[] = {{Role::feature, 4}, {Role::feature, 3}, {Role::state}, {Role::state}};

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[15], T (&out)[9], const T (&parameters)[kParameters]) {
    const auto& [cell_by_o, memory_by_o, cell_by_last, memory_by_last, cell_by_next, memory_by_next, output, i, f, g,
                 i2, f2, g2, cell, memory] = in;
    lstm_memory_backward(cell_by_o + cell_by_last + cell_by_next, i, f, g, cell, parameters[0], out[0], out[1], out[2],
                         out[7]);
    out[3] = output;
    lstm_memory_backward(memory_by_o + memory_by_last + memory_by_next, i2, f2, g2, memory, parameters[0], out[4],
                         out[5], out[6], out[8]);
  }
};

// GatedOutput of the sum of the output gate's two addends, and the sum
struct SummedGatedOutput {
  static constexpr Operand inputs[] = {{Role::feature}, {Role::feature}, {Role::feature}};  // addends of o, content
  static constexpr Operand outputs[] = {{Role::feature}, {Role::feature}};                  // H', o

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[3], T (&out)[2], const T (&)[kParameters]) {
    const auto& [a, b, content] = in;
    out[1] = a + b;
    out[0] = sigmoid(out[1]) * tanh(content);
  }
};

// HighwayOutput of the sum of the output gate's two addends, and the sum
struct SummedHighwayOutput {
  static constexpr Operand inputs[] = {
      {Role::feature}, {Role::feature}, {Role::feature}, {Role::feature}};  // addends of o, content, highway
  static constexpr Operand outputs[] = {{Role::feature}, {Role::feature}};  // H', o

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[4], T (&out)[2], const T (&)[kParameters]) {
    const auto& [a, b, content, highway] = in;
    out[1] = a + b;
    const T gate = sigmoid(out[1]);
    out[0] = gate * tanh(content) + (T(1) - gate) * highway;
  }
};

// ConvLSTM: C' by (i,f,g), then GatedOutput of C' by o. The parameter is b.
struct ConvLstmUpdate {
  static constexpr Operand inputs[] = {{Role::feature, 4}, {Role::state}};  // (i,f,g,o), C
  static constexpr Operand outputs[] = {{Role::feature}, {Role::state}};    // H', C'

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[5], T (&out)[2], const T (&parameters)[kParameters]) {
    const auto& [i, f, g, o, cell] = in;
    out[1] = lstm_memory(i, f, g, cell, parameters[0]);
    out[0] = sigmoid(o) * tanh(out[1]);
  }
};

// ConvLSTM with HighwayOutput in the place of GatedOutput
struct ConvLstmHighwayUpdate {
  static constexpr Operand inputs[] = {{Role::feature, 4}, {Role::state}, {Role::feature}};  // (i,f,g,o), C, highway
  static constexpr Operand outputs[] = {{Role::feature}, {Role::state}};                     // H', C'

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[6], T (&out)[2], const T (&parameters)[kParameters]) {
    const auto& [i, f, g, o, cell, highway] = in;
    out[1] = lstm_memory(i, f, g, cell, parameters[0]);
    const T gate = sigmoid(o);
    out[0] = gate * tanh(out[1]) + (T(1) - gate) * highway;
  }
};

struct ConvLstmUpdateBackward {
  static constexpr Operand inputs[] = {{Role::feature},
                                       {Role::state},
                                       {Role::feature, 4},
                                       {Role::state},
                                       {Role::state}};                       // grad of H', C'; logits, C, C'
  static constexpr Operand outputs[] = {{Role::feature, 4}, {Role::state}};  // grad of (i,f,g,o), of C

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[8], T (&out)[5], const T (&parameters)[kParameters]) {
    const auto& [grad, grad_cell, i, f, g, o, cell, new_cell] = in;
    const T gate = sigmoid(o), squashed = tanh(new_cell);
    lstm_memory_backward(grad_cell + grad * gate * d_tanh(squashed), i, f, g, cell, parameters[0], out[0], out[1],
                         out[2], out[4]);
    out[3] = grad * squashed * d_sigmoid(gate);
  }
};

struct ConvLstmHighwayUpdateBackward {
  static constexpr Operand inputs[] = {{Role::feature}, {Role::state}, {Role::feature, 4},
                                       {Role::state},   {Role::state}, {Role::feature}};      // as above, and highway
  static constexpr Operand outputs[] = {{Role::feature, 4}, {Role::state}, {Role::feature}};  // and of highway

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[9], T (&out)[6], const T (&parameters)[kParameters]) {
    const auto& [grad, grad_cell, i, f, g, o, cell, new_cell, highway] = in;
    const T gate = sigmoid(o), squashed = tanh(new_cell);
    lstm_memory_backward(grad_cell + grad * gate * d_tanh(squashed), i, f, g, cell, parameters[0], out[0], out[1],
                         out[2], out[4]);
    out[3] = grad * (squashed - highway) * d_sigmoid(gate);
    out[5] = grad * (T(1) - gate);
  }
};

}  // namespace motionrnn_ext::math
