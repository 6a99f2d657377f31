// The products of the transformed data and weights: for each of the 36 points, out (outs x tiles) += U (outs x
// channels) V (channels x tiles). Vectors run over tiles.
#pragma once

#include <algorithm>

#include "cpu/convolution.h"
#include "cpu/winograd/transforms.h"

namespace motionrnn_ext::cpu {
namespace {

// The output channels of a block, whose sums for two vectors of tiles are all in registers. One less than kBlock is
// offered, too, where it leaves fewer channels over: 64 = 5 * 13 - 1, 448 = 32 * 14.
constexpr int kBlock = kVectorBytes >= 64 ? 14 : 6;

struct Blocks {
  int64_t count, size;
  explicit Blocks(int64_t outs)
      : count((outs + kBlock - 1) / kBlock), size(count * (kBlock - 1) >= outs ? kBlock - 1 : kBlock) {}
};

// m[r][tile] (+)= sum over d of u[d][r] v[d][tile], for `rows` channels and `vectors` vectors of tiles.
template <class T, int rows, int vectors>
void multiply_tiles(const T* u, const T* next_u, const T* v, int64_t depth, T* m, int64_t stride, bool accumulate) {
  constexpr int lanes = kLanes<T>;
  Vector<T, lanes> sums[rows][vectors];
#pragma GCC unroll 14
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) sums[r][j] = Vector<T, lanes>{};
  for (int64_t d = 0; d < depth; ++d, u += rows, next_u += rows, v += vectors * lanes) {
    __builtin_prefetch(next_u);
    Vector<T, lanes> in[vectors];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) in[j] = at<T, lanes>(v + j * lanes);
#pragma GCC unroll 14
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) sums[r][j] += u[r] * in[j];
  }
  // The sum of a block of channels is rounded on its own, which keeps the error small.
#pragma GCC unroll 14
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) {
      Vector<T, lanes>& to = at<T, lanes>(m + r * stride + j * lanes);
      to = accumulate ? to + sums[r][j] : sums[r][j];
    }
}

template <class T>
using MultiplyTiles = void (*)(const T* u, const T* next_u, const T* v, int64_t depth, T* m, int64_t stride,
                               bool accumulate);

template <class T>
MultiplyTiles<T> multiply_tiles_of(int64_t rows, int vectors) {
  if (rows == kBlock) return vectors == 2 ? multiply_tiles<T, kBlock, 2> : multiply_tiles<T, kBlock, 1>;
  return vectors == 2 ? multiply_tiles<T, kBlock - 1, 2> : multiply_tiles<T, kBlock - 1, 1>;
}

}  // namespace
}  // namespace motionrnn_ext::cpu
