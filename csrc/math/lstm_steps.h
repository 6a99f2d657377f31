// The LSTM cells' joints: what a step computes between two of its convolutions, in one map each.
#pragma once

#include "recurrent_gates.h"

namespace motionrnn_ext::math {

// The spatiotemporal LSTM's two memories: C and M, each by its summed gates as in MemoryUpdate. The parameter is b.
struct StLstmUpdate {
  // (i,f,g,i',f',g') of X; (i,f,g) of H; (i',f',g') of M; C, M
  static constexpr Operand inputs[] = {
      {Role::feature, 6}, {Role::feature, 3}, {Role::feature, 3}, {Role::state}, {Role::state}};
  // [C', M']; C', M'; the summed (i,f,g,i',f',g')
  static constexpr Operand outputs[] = {
      {Role::feature, 2}, {Role::state}, {Role::state}, {Role::feature, 6, kOptional}};

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[14], T (&out)[10], const T (&parameters)[kParameters]) {
    const auto& [i_x, f_x, g_x, i_x2, f_x2, g_x2, i_h, f_h, g_h, i_m, f_m, g_m, cell, memory] = in;
    auto& [cell_copy, memory_copy, new_cell, new_memory, i, f, g, i2, f2, g2] = out;
    i = i_x + i_h, f = f_x + f_h, g = g_x + g_h;
    i2 = i_x2 + i_m, f2 = f_x2 + f_m, g2 = g_x2 + g_m;
    cell_copy = new_cell = lstm_memory(i, f, g, cell, parameters[0]);
    memory_copy = new_memory = lstm_memory(i2, f2, g2, memory, parameters[0]);
  }
};

// The gradient of [C', M'] is the sum of two convolutions' and, from the next step, that of C' and M'. That of the
// output gate's logits is written beside those of the other gates, where the convolutions' gradients read them.
struct StLstmUpdateBackward {
  // gradients of [C', M'] twice, of C', M' and o; (i,f,g,i',f',g'), C, M
  static constexpr Operand inputs[] = {{Role::feature, 2}, {Role::feature, 2}, {Role::state}, {Role::state},
                                       {Role::feature},    {Role::feature, 6}, {Role::state}, {Role::state}};
  // gradients of (i,f,g,i',f',g',o) of X, (i,f,g,o) of H, (i',f',g') of M; of C, M
  static constexpr Operand outputs[] = {
      {Role::feature, 7}, {Role::feature, 4}, {Role::feature, 3}, {Role::state}, {Role::state}};

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[15], T (&out)[16], const T (&parameters)[kParameters]) {
    const auto& [cell_by_o, memory_by_o, cell_by_last, memory_by_last, cell_by_next, memory_by_next, output, i, f, g,
                 i2, f2, g2, cell, memory] = in;
    auto& [i_x, f_x, g_x, i_x2, f_x2, g_x2, o_x, i_h, f_h, g_h, o_h, i_m, f_m, g_m, old_cell, old_memory] = out;
    lstm_memory_backward(cell_by_o + cell_by_last + cell_by_next, i, f, g, cell, parameters[0], i_h, f_h, g_h,
                         old_cell);
    lstm_memory_backward(memory_by_o + memory_by_last + memory_by_next, i2, f2, g2, memory, parameters[0], i_m, f_m,
                         g_m, old_memory);
    i_x = i_h, f_x = f_h, g_x = g_h, i_x2 = i_m, f_x2 = f_m, g_x2 = g_m;
    o_x = o_h = output;
  }
};

// GatedOutput of the sum of the output gate's three addends, and the sum
struct SummedGatedOutput {
  static constexpr Operand inputs[] = {
      {Role::feature}, {Role::feature}, {Role::feature}, {Role::feature}};  // three addends of o, content
  static constexpr Operand outputs[] = {{Role::feature}, {Role::feature}};  // H', o

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[4], T (&out)[2], const T (&)[kParameters]) {
    const auto& [a, b, c, content] = in;
    out[1] = a + b + c;
    out[0] = sigmoid(out[1]) * tanh(content);
  }
};

// HighwayOutput of the sum of the output gate's three addends, and the sum
struct SummedHighwayOutput {
  static constexpr Operand inputs[] = {{Role::feature},
                                       {Role::feature},
                                       {Role::feature},
                                       {Role::feature},
                                       {Role::feature}};                    // three addends of o, content, highway
  static constexpr Operand outputs[] = {{Role::feature}, {Role::feature}};  // H', o

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[5], T (&out)[2], const T (&)[kParameters]) {
    const auto& [a, b, c, content, highway] = in;
    out[1] = a + b + c;
    const T gate = sigmoid(out[1]);
    out[0] = gate * tanh(content) + (T(1) - gate) * highway;
  }
};

// ConvLSTM: MemoryUpdate by the summed gates (i,f,g), then GatedOutput of C' by the summed o. The parameter is b.
struct ConvLstmUpdate {
  static constexpr Operand inputs[] = {{Role::feature, 4}, {Role::feature, 4}, {Role::state}};  // (i,f,g,o) twice, C
  static constexpr Operand outputs[] = {
      {Role::feature}, {Role::state}, {Role::feature, 4, kOptional}};  // H', C', the summed (i,f,g,o)

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[9], T (&out)[6], const T (&parameters)[kParameters]) {
    const auto& [i_x, f_x, g_x, o_x, i_h, f_h, g_h, o_h, cell] = in;
    auto& [hidden, new_cell, i, f, g, o] = out;
    i = i_x + i_h, f = f_x + f_h, g = g_x + g_h, o = o_x + o_h;
    new_cell = lstm_memory(i, f, g, cell, parameters[0]);
    hidden = sigmoid(o) * tanh(new_cell);
  }
};

// ConvLSTM with HighwayOutput in the place of GatedOutput
struct ConvLstmHighwayUpdate {
  static constexpr Operand inputs[] = {
      {Role::feature, 4}, {Role::feature, 4}, {Role::state}, {Role::feature}};  // (i,f,g,o) twice, C, highway
  static constexpr Operand outputs[] = {
      {Role::feature}, {Role::state}, {Role::feature, 4, kOptional}};  // H', C', the summed (i,f,g,o)

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[10], T (&out)[6], const T (&parameters)[kParameters]) {
    const auto& [i_x, f_x, g_x, o_x, i_h, f_h, g_h, o_h, cell, highway] = in;
    auto& [hidden, new_cell, i, f, g, o] = out;
    i = i_x + i_h, f = f_x + f_h, g = g_x + g_h, o = o_x + o_h;
    new_cell = lstm_memory(i, f, g, cell, parameters[0]);
    const T gate = sigmoid(o);
    hidden = gate * tanh(new_cell) + (T(1) - gate) * highway;
  }
};

struct ConvLstmUpdateBackward {
  static constexpr Operand inputs[] = {{Role::feature},
                                       {Role::state},
                                       {Role::feature, 4},
                                       {Role::state},
                                       {Role::state}};                       // grad of H', C'; logits, C, C'
  static constexpr Operand outputs[] = {{Role::feature, 4}, {Role::state}};  // grad of either (i,f,g,o), of C

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
