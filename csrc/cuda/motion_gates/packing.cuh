// The weights of the gates' convolutions as fragments: the second operands of mma, in the order in which lanes read
// them.
#pragma once

#include "cuda/motion_gates/convolution.cuh"

namespace motionrnn_ext::cuda {
namespace {

// The taps of a weight, size x size of them, by their places in memory.
struct Taps {
  int32_t size, first, row, col;  // col and row: strides

  static Taps of(int32_t size) { return {size, 0, size, 1}; }
  // Backwards: the gradient of a convolution's input is a convolution of the output's gradient with the flipped weight.
  static Taps flipped(int32_t size) { return {size, size * size - 1, -size, -1}; }
  MOTIONRNN_EXT_MATH int32_t place(int32_t tap) const {
    const int32_t down = tap / size;
    return first + down * row + (tap - down * size) * col;
  }
};

// A weight as (columns, channels, taps), joined of two along the columns.
struct Weight {
  struct Source {
    const void* first;
    int32_t column, channel;  // strides
  } source[2];
  int32_t split;  // columns of the first source
  int32_t columns;
  Taps taps;

  Weight(const Source& only, int32_t columns_, const Taps& taps_) : Weight(only, columns_, only, columns_, taps_) {}
  Weight(const Source& first, int32_t split_, const Source& second, int32_t columns_, const Taps& taps_)
      : source{first, second}, split(split_), columns(columns_), taps(taps_) {}
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

template <int count>
struct PackList {
  Fragments fragments[count];

  // Return the list in one buffer, one after the other, 16-byte aligned; the buffer may be null.
  template <class T>
  PackList placed(void* to) const {
    PackList list = *this;
    char* at = static_cast<char*>(to);
    for (Fragments& f : list.fragments) {
      f.out = at;
      if (at != nullptr) at += f.count * sizeof(Quad<T>);
    }
    return list;
  }
  template <class T>
  size_t bytes() const {
    size_t sum = 0;
    for (const Fragments& f : fragments) sum += f.count * sizeof(Quad<T>);
    return sum;
  }
};
using PackArguments = PackList<3>;

// blockIdx.y is the place of the fragments in the list.
template <class T, int count>
__global__ void __launch_bounds__(kGatesThreads) gates_pack(const PackList<count> a) {
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
                int64_t(channel + j) * source.channel + weight.taps.place(tap));
    }
  }
  Quad<T> packed;
  memcpy(packed.word, value, sizeof(packed));
  store_words<Quad<T>::kWords>(static_cast<Quad<T>*>(fragments.out) + i, packed.word);
}

template <class T, int count>
void launch_pack(const PackList<count>& a, Stream stream) {
  int64_t most = 0;
  for (const Fragments& f : a.fragments) most = std::max(most, f.count);
  if (most == 0) return;
  launch(gates_pack<T, count>, dim3(static_cast<unsigned>((most + kGatesThreads - 1) / kGatesThreads), count),
         kGatesThreads, 0, stream, a);
}

// ---- The fragments of each direction

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
      return Fragments({source, columns, Taps::of(a.size)}, steps(channels), nullptr);
    };
    return PackArguments{{of(a.x_weight, rows, a.channels), of(a.state_weight, 2 * a.motion, a.motion),
                          of(a.candidate_weight, a.motion, a.motion)}}
        .template placed<T>(to);
  }
  // Backward: the weights' inputs are columns.
  //   g_z -> s(r) F;  [g_u, g_r] -> [x, F];  [g_z, g_m] -> x
  PackArguments backward(void* to) const {
    const T* x = static_cast<const T*>(a.x_weight);
    const int32_t x_row = a.channels * taps, state_row = a.motion * taps;
    const Weight::Source of_x{x, taps, x_row}, of_state{a.state_weight, taps, state_row};
    const Weight::Source of_rest{x + int64_t(2) * a.motion * x_row, taps, x_row};
    const Weight::Source of_candidate{a.candidate_weight, taps, state_row};
    const Taps flipped = Taps::flipped(a.size);
    return PackArguments{
        {Fragments({of_candidate, a.motion, flipped}, steps(a.motion), nullptr),
         Fragments({of_x, a.channels, of_state, a.channels + a.motion, flipped}, steps(2 * a.motion), nullptr),
         Fragments({of_rest, a.channels, flipped}, steps(rows - 2 * a.motion), nullptr)}}
        .template placed<T>(to);
  }
};

}  // namespace
}  // namespace motionrnn_ext::cuda
