// The products of the transformed data and weights: for each of the points, out (outs x tiles) += U (outs x
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

// out[r][lane] (+)= sum over d of factors[d][r] in[d][lane], for `rows` rows and `vectors` vectors. Factor r of d is at
// d * of_depth + r * of_row. `next` points to the factors or sums of the next call, which are prefetched in the steps
// in which this call reads its own factors.
template <class T, int rows, int vectors, int of_depth, int of_row>
void multiply_block(const T* factors, const T* in, int64_t depth, T* out, int64_t out_stride, bool accumulate,
                    const T* next) {
  constexpr int lanes = kLanes<T>;
  Vector<T, lanes> sums[rows][vectors];
#pragma GCC unroll 14
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) sums[r][j] = Vector<T, lanes>{};
  for (int64_t d = 0; d < depth; ++d, factors += of_depth, in += vectors * lanes, next += rows) {
    __builtin_prefetch(next);
    Vector<T, lanes> row[vectors];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) row[j] = at<T, lanes>(in + j * lanes);
#pragma GCC unroll 14
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) sums[r][j] += factors[r * of_row] * row[j];
  }
  // These sums are rounded on their own before they are added, which keeps the error small.
#pragma GCC unroll 14
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) {
      Vector<T, lanes>& to = at<T, lanes>(out + r * out_stride + j * lanes);
      to = accumulate ? to + sums[r][j] : sums[r][j];
    }
}

template <class T>
using Multiply = void (*)(const T*, const T*, int64_t, T*, int64_t, bool, const T*);

// Return multiply_block for `rows` rows, of factors that are packed (of_row == 1), or that lie `of_row` apart.
template <class T, int of_row>
Multiply<T> multiply_for(int64_t rows, int64_t vectors) {
  constexpr bool packed = of_row == 1;
  constexpr int full = kBlock, less = kBlock - 1;
  if (rows == full)
    return vectors == 2 ? multiply_block < T, full, 2, packed ? full : 1, of_row > : multiply_block < T, full, 1,
           packed ? full : 1, of_row > ;
  return vectors == 2 ? multiply_block < T, less, 2, packed ? less : 1, of_row > : multiply_block < T, less, 1,
         packed ? less : 1, of_row > ;
}

}  // namespace
}  // namespace motionrnn_ext::cpu
