// The transformed weights U = G w G^T: (blocks of output channels, points, channels, channels of a block).
#pragma once

#include <cstring>

#include "cpu/kernels.h"
#include "cpu/winograd/multiply.h"

namespace motionrnn_ext::cpu {
namespace {

// The size, which does not depend on the instruction set: its fake in Python is backends/registration/winograd.py. A
// block has at most 14 channels, and at most one block is not full.
template <class Size>
int64_t packed_size(const WinogradArguments& a) {
  return Size::square * a.channels * (a.out_channels + 13);
}

// Transform the weights of some output channels of one block.
template <class Size>
void pack(const WinogradArguments& a, int64_t begin, int64_t end) {
  using F = typename Size::F;
  using T = typename Size::T;
  using Axis = typename Size::Axis;
  constexpr int kWide = 16, points = Size::points, k = Size::k;
  const Blocks blocks(a.out_channels);
  const int64_t size = blocks.size, taps = k * k, step = a.channels * size;
  const int64_t of_out = a.transposed ? taps : a.channels * taps, of_in = a.transposed ? a.out_channels * taps : taps;
  alignas(kAlignment) T w[k * k][kWide] = {}, half[points][k][kWide];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t outs = std::min(size, a.out_channels - block * size);
    std::memset(w, 0, sizeof(w));
    for (int64_t c = 0; c < a.channels; ++c) {
      const F* from = static_cast<const F*>(a.weight) + block * size * of_out + c * of_in;
      for (int64_t o = 0; o < outs; ++o)
        for (int t = 0; t < taps; ++t) w[a.transposed ? taps - 1 - t : t][o] = load(from[o * of_out + t]);
      T* to = static_cast<T*>(a.packed) + block * Size::square * step + c * size;
      for (int x = 0; x < k; ++x)
        for (int o = 0; o < kWide; ++o) {
          T g[k], u[points];
          for (int y = 0; y < k; ++y) g[y] = w[y * k + x][o];
          Axis::template transform_taps<T>(g, u);
          for (int p = 0; p < points; ++p) half[p][x][o] = u[p];
        }
      for (int p = 0; p < points; ++p)
        for (int o = 0; o < size; ++o) {
          T g[k], u[points];
          for (int x = 0; x < k; ++x) g[x] = half[p][x][o];
          Axis::template transform_taps<T>(g, u);
          for (int q = 0; q < points; ++q) to[(p * points + q) * step + o] = u[q];
        }
    }
  }
}

}  // namespace
}  // namespace motionrnn_ext::cpu
