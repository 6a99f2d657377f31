// The weights of the gates' convolutions as fragments: the second operands of mma, in the order in which lanes read
// them.
#pragma once

#include "cuda/motion_gates/convolution.cuh"

namespace motionrnn_ext::cuda {
namespace {

// A weight as (columns, channels, taps), joined of two along the columns, where `flipped` reads the taps backwards: the
// gradient of a convolution's input is a convolution of the output's gradient with the flipped weight.
struct Weight {
  struct Source {
    const void* first;
    int32_t column, channel;  // strides
  } source[2];
  int32_t split;  // columns of the first source
  int32_t columns;
  bool flipped;
};

struct Fragments {
  Weight weight;
  Steps steps;
  void* out;
  int32_t tiles;
  int64_t count;  // quads

  Fragments(const Weight& weight_, const Steps& steps_, void* out_)
      : weight(weight_),
        steps(steps_),
        out(out_),
        tiles((weight.columns + kTileColumns - 1) / kTileColumns),
        count(int64_t(steps.in_all()) * tiles * kWarp) {}
};

constexpr int kPacked = 3;
struct PackArguments {
  Fragments fragments[kPacked];
};

// blockIdx.y is the place of the fragments in the list.
template <class T>
__global__ void __launch_bounds__(kGatesThreads) gates_pack(const PackArguments a) {
  const Fragments& fragments = a.fragments[blockIdx.y];
  const Weight& weight = fragments.weight;
  const Steps& steps = fragments.steps;
  const int64_t i = int64_t(blockIdx.x) * kGatesThreads + threadIdx.x;
  if (i >= fragments.count) return;
  const int lane = i % kWarp;
  const int64_t of_tile = i / kWarp;
  const int step = of_tile / fragments.tiles,
            column = int(of_tile - int64_t(step) * fragments.tiles) * kTileColumns + lane / 4;
  const int chunk = step / steps.count, quad = (step - chunk * steps.count) * 4 + lane % 4, tap = quad / steps.quads;
  const int channel = (chunk * steps.quads + quad - tap * steps.quads) * 4;
  T value[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    value[j] = from_float<T>(0.0f);
    if (column < weight.columns && tap < steps.taps && channel + j < steps.channels) {
      const bool second = column >= weight.split;
      const Weight::Source& source = weight.source[second];
      value[j] =
          __ldg(static_cast<const T*>(source.first) + int64_t(second ? column - weight.split : column) * source.column +
                int64_t(channel + j) * source.channel + (weight.flipped ? steps.taps - 1 - tap : tap));
    }
  }
  Quad<T> packed;
  memcpy(packed.word, value, sizeof(packed));
  store_words<Quad<T>::kWords>(static_cast<Quad<T>*>(fragments.out) + i, packed.word);
}

template <class T>
void launch_pack(const PackArguments& a, Stream stream) {
  int64_t most = 0;
  for (const Fragments& f : a.fragments) most = std::max(most, f.count);
  if (most == 0) return;
  launch(gates_pack<T>, dim3(static_cast<unsigned>((most + kGatesThreads - 1) / kGatesThreads), kPacked), kGatesThreads,
         0, stream, a);
}

// ---- The fragments of each direction, one after the other in one buffer, 16-byte aligned

template <class T>
struct Packed {
  const GatesArguments& a;
  int32_t rows = 3 * a.motion + a.masks, taps = a.size * a.size;

  Steps steps(int32_t channels) const { return {a.size, channels}; }

  // Forward: rows of the weights are columns.
  //   x -> [u, r, z_x, m];  F -> [u, r];  s(r) F -> z
  PackArguments forward(void* to) const {
    const auto of = [&](const void* weight, int32_t columns, int32_t channels) {
      const Weight::Source source{weight, channels * taps, taps};
      return Fragments({{source, source}, columns, columns, false}, steps(channels), nullptr);
    };
    return placed({{of(a.x_weight, rows, a.channels), of(a.state_weight, 2 * a.motion, a.motion),
                    of(a.candidate_weight, a.motion, a.motion)}},
                  to);
  }
  // Backward: the weights' inputs are columns.
  //   g_z -> s(r) F;  [g_u, g_r] -> [x, F];  [g_z, g_m] -> x
  PackArguments backward(void* to) const {
    const T* x = static_cast<const T*>(a.x_weight);
    const int32_t x_row = a.channels * taps, state_row = a.motion * taps;
    const Weight::Source of_x{x, taps, x_row}, of_state{a.state_weight, taps, state_row};
    const Weight::Source of_rest{x + int64_t(2) * a.motion * x_row, taps, x_row};
    const Weight::Source of_candidate{a.candidate_weight, taps, state_row};
    return placed(
        {{Fragments({{of_candidate, of_candidate}, a.motion, a.motion, true}, steps(a.motion), nullptr),
          Fragments({{of_x, of_state}, a.channels, a.channels + a.motion, true}, steps(2 * a.motion), nullptr),
          Fragments({{of_rest, of_rest}, a.channels, a.channels, true}, steps(rows - 2 * a.motion), nullptr)}},
        to);
  }

  static size_t bytes(const PackArguments& packed) {
    size_t sum = 0;
    for (const Fragments& f : packed.fragments) sum += f.count * sizeof(Quad<T>);
    return sum;
  }

 private:
  static PackArguments placed(PackArguments packed, void* to) {
    char* at = static_cast<char*>(to);
    for (Fragments& f : packed.fragments) {
      f.out = at;
      if (at != nullptr) at += f.count * sizeof(Quad<T>);
    }
    return packed;
  }
};

}  // namespace
}  // namespace motionrnn_ext::cuda
