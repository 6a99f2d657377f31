// MotionGRU: the reset of the motion filter and the update of transient variation and trend.
#pragma once

#include "pointwise.h"

namespace motionrnn_ext::math {

// out = s(r) F
struct MotionReset {
  static constexpr Operand inputs[] = {{Role::feature}, {Role::state}};  // r, F
  static constexpr Operand outputs[] = {{Role::feature}};

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[2], T (&out)[1], const T (&)[kParameters]) {
    const auto& [reset_logit, offset] = in;
    out[0] = sigmoid(reset_logit) * offset;
  }
};

struct MotionResetBackward {
  static constexpr Operand inputs[] = {{Role::feature}, {Role::feature}, {Role::state}};  // grad, r, F
  static constexpr Operand outputs[] = {{Role::feature}, {Role::state}};                  // grad of r, F

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[3], T (&out)[2], const T (&)[kParameters]) {
    const auto& [grad, reset_logit, offset] = in;
    const T reset = sigmoid(reset_logit);
    out[0] = grad * offset * d_sigmoid(reset);
    out[1] = grad * reset;
  }
};

// Clamp value to [-limit, limit]. nan stays nan, because no comparison with it is true.
template <class T>
MOTIONRNN_EXT_MATH T bounded(T value, T limit) {
  value = value > limit ? limit : value;
  return value < -limit ? -limit : value;
}

// Return whether a bounded result is at its limit, where it is constant. A limit of inf bounds nothing, not even inf.
template <class T>
MOTIONRNN_EXT_MATH bool is_at_limit(T result, T limit) {
  return (std::fabs(result) >= limit) & (limit < T(INFINITY));
}

// F' = F + s(u) (tanh(z) - F);  D' = D + alpha (F - D);  F_t = F' + D' within max_offset.
// Parameters: alpha, max_offset.
struct MotionUpdate {
  static constexpr Operand inputs[] = {{Role::feature}, {Role::feature}, {Role::state}, {Role::state}};  // u, z, F, D
  static constexpr Operand outputs[] = {{Role::state}, {Role::state}};                                   // F_t, D'

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[4], T (&out)[2], const T (&parameters)[kParameters]) {
    const auto& [update_logit, candidate_logit, offset, trend] = in;
    const auto& [alpha, max_offset] = parameters;
    const T transient = offset + sigmoid(update_logit) * (tanh(candidate_logit) - offset);
    const T new_trend = trend + alpha * (offset - trend);
    out[0] = bounded(transient + new_trend, max_offset);
    out[1] = new_trend;
  }
};

// The update is linear in D, so its gradient does not read D. F_t itself shows where it was bounded; it has no gradient
// there.
struct MotionUpdateBackward {
  static constexpr Operand inputs[] = {{Role::state}, {Role::state}, {Role::feature}, {Role::feature},
                                       {Role::state}, {Role::state}};  // grads of F_t, D'; u, z, F, F_t
  static constexpr Operand outputs[] = {
      {Role::feature}, {Role::feature}, {Role::state}, {Role::state}};  // grad of u, z, F, D

  template <class T>
  MOTIONRNN_EXT_MATH static void apply(const T (&in)[6], T (&out)[4], const T (&parameters)[kParameters]) {
    const auto& [grad_new_offset, grad_trend, update_logit, candidate_logit, offset, new_offset] = in;
    const auto& [alpha, max_offset] = parameters;
    const T update = sigmoid(update_logit), candidate = tanh(candidate_logit);
    const T grad_offset = is_at_limit(new_offset, max_offset) ? T(0) : grad_new_offset;
    const T grad_new_trend = grad_offset + grad_trend;  // D' feeds F_t as well
    out[0] = grad_offset * (candidate - offset) * d_sigmoid(update);
    out[1] = grad_offset * update * d_tanh(candidate);
    out[2] = grad_offset * (T(1) - update) + alpha * grad_new_trend;
    out[3] = (T(1) - alpha) * grad_new_trend;
  }
};

}  // namespace motionrnn_ext::math
