// The weights of the motion gates' convolutions, packed as convolve() reads them.
#pragma once

#include "cpu/motion_gates/planes.h"

namespace motionrnn_ext::cpu {
namespace {

// One convolution: its depth (input channels times taps), its output channels in whole blocks, and where its weights
// and biases start in the packed weights.
struct Convolution {
  int64_t depth, outs, weights, biases;
};

// Every convolution of the forward and of the backward pass, and the elements of all packed weights.
template <class T>
struct Plan {
  // Forward: logits of u and r, of m, and of z.
  Convolution gates, mask, candidate;
  // Backward: gradients of s(r) F, of F and of x.
  Convolution to_reset, to_offset, to_x;
  int64_t size = 0;

  explicit Plan(const Geometry<T>& g) {
    const auto add = [&](int64_t in, int64_t out) {
      const Convolution c{in * g.taps, round_up(out, kOuts), size, size + in * g.taps * round_up(out, kOuts)};
      size = c.biases + c.outs;
      return c;
    };
    gates = add(g.channels + g.motion, 2 * g.motion);
    mask = add(g.channels, g.masks);
    candidate = add(g.channels + g.motion, g.motion);
    to_reset = add(g.motion, g.motion);
    to_offset = add(2 * g.motion, g.motion);
    to_x = add(g.logits(), g.channels);
  }
};

// Pack weight[first_out + o] of a weight (out, in, k, k), for o < outs, at input channel `at` of the convolution.
template <class T, class F>
void pack_weight(const Geometry<T>& g, T* packed, const Convolution& c, const F* weight, int64_t first_out,
                 int64_t outs, int64_t in, int64_t at) {
  for (int64_t o = 0; o < outs; ++o) {
    T* to = packed + c.weights + o / kOuts * c.depth * kOuts + at * g.taps * kOuts + o % kOuts;
    const F* from = weight + (first_out + o) * in * g.taps;
    for (int64_t i = 0; i < in * g.taps; ++i) to[i * kOuts] = load(from[i]);
  }
}

// Pack the transposed weight, for the gradient of an input: channels swapped, taps reversed.
template <class T, class F>
void pack_transposed(const Geometry<T>& g, T* packed, const Convolution& c, const F* weight, int64_t outs, int64_t in) {
  for (int64_t i = 0; i < in; ++i) {
    T* to = packed + c.weights + i / kOuts * c.depth * kOuts + i % kOuts;
    for (int64_t o = 0; o < outs; ++o)
      for (int64_t tap = 0; tap < g.taps; ++tap)
        to[(o * g.taps + g.taps - 1 - tap) * kOuts] = load(weight[(o * in + i) * g.taps + tap]);
  }
}

template <class T, class F>
void pack(const GatesArguments& a, bool backward) {
  const Geometry<T> g(a);
  const Plan<T> plan(g);
  T* packed = static_cast<T*>(a.packed);
  std::memset(packed, 0, plan.size * sizeof(T));
  const F *x_weight = static_cast<const F*>(a.x_weight), *x_bias = static_cast<const F*>(a.x_bias);
  const F *state_weight = static_cast<const F*>(a.state_weight), *candidate = static_cast<const F*>(a.candidate_weight);
  if (backward) {
    pack_transposed(g, packed, plan.to_reset, candidate, g.motion, g.motion);
    pack_transposed(g, packed, plan.to_offset, state_weight, 2 * g.motion, g.motion);
    pack_transposed(g, packed, plan.to_x, x_weight, g.logits(), g.channels);
    return;
  }
  const auto add = [&](const Convolution& c, int64_t first_out, int64_t outs) {
    pack_weight(g, packed, c, x_weight, first_out, outs, g.channels, 0);
    for (int64_t o = 0; o < outs; ++o) packed[c.biases + o] = load(x_bias[first_out + o]);
  };
  add(plan.gates, 0, 2 * g.motion);
  add(plan.candidate, 2 * g.motion, g.motion);
  add(plan.mask, 3 * g.motion, g.masks);
  pack_weight(g, packed, plan.gates, state_weight, 0, 2 * g.motion, g.motion, g.channels);
  pack_weight(g, packed, plan.candidate, candidate, 0, g.motion, g.motion, g.channels);
}

}  // namespace
}  // namespace motionrnn_ext::cpu
