// Vectors of T in GCC's and Clang's vector extension, and the one matrix product built on them. Compiled once per
// instruction set, so everything here has internal linkage or is always inlined.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/storage.h"

namespace motionrnn_ext::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T, int lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * lanes), may_alias));
};
template <class T, int lanes>
using Vector = typename VectorOf<T, lanes>::type;

template <class T, int lanes>
MOTIONRNN_EXT_INLINE Vector<T, lanes>& at(T* p) {
  return *reinterpret_cast<Vector<T, lanes>*>(p);
}
template <class T, int lanes>
MOTIONRNN_EXT_INLINE const Vector<T, lanes>& at(const T* p) {
  return *reinterpret_cast<const Vector<T, lanes>*>(p);
}

// Return the lanes per vector that hold `count` channels in the fewest vectors, and of these the fewest lanes.
template <class T>
int64_t lanes_for(int64_t count) {
  int64_t best = kVectorBytes / static_cast<int64_t>(sizeof(T));
  for (int64_t lanes = best / 2; lanes * static_cast<int64_t>(sizeof(T)) >= 16; lanes /= 2)
    if ((count + lanes - 1) / lanes <= (count + best - 1) / best) best = lanes;
  return best;
}

template <class T>
int64_t padded(int64_t count) {
  const int64_t lanes = lanes_for<T>(count);
  return count < lanes ? lanes : (count + lanes - 1) / lanes * lanes;
}

// Call f.template operator()<lanes>() with the compile-time lanes for `count`.
template <class T, class F>
void with_lanes(int64_t count, F f) {
  const int64_t bytes = lanes_for<T>(count) * static_cast<int64_t>(sizeof(T));
  if constexpr (kVectorBytes >= 64)
    if (bytes == 64) return f.template operator()<64 / sizeof(T)>();
  if constexpr (kVectorBytes >= 32)
    if (bytes == 32) return f.template operator()<32 / sizeof(T)>();
  f.template operator()<16 / sizeof(T)>();
}

// A (rows x depth), read at a[row * row_stride + d * depth_stride].
template <class T>
struct Strided {
  const T* data;
  int64_t row, depth;
};

// C[rows x (vectors * lanes)] (+)= A B with all accumulators in registers.
template <class T, int lanes, int rows, int vectors>
MOTIONRNN_EXT_INLINE void multiply_block(Strided<T> a, const T* b, int64_t ldb, T* c, int64_t ldc, int64_t depth,
                                         bool accumulate) {
  Vector<T, lanes> sums[rows][vectors];
  for (int i = 0; i < rows; ++i)
    for (int v = 0; v < vectors; ++v)
      sums[i][v] = accumulate ? at<T, lanes>(c + i * ldc + v * lanes) : Vector<T, lanes>{};
  for (int64_t d = 0; d < depth; ++d) {
    Vector<T, lanes> row[vectors];
    for (int v = 0; v < vectors; ++v) row[v] = at<T, lanes>(b + d * ldb + v * lanes);
    for (int i = 0; i < rows; ++i)
      for (int v = 0; v < vectors; ++v) sums[i][v] += a.data[i * a.row + d * a.depth] * row[v];
  }
  for (int i = 0; i < rows; ++i)
    for (int v = 0; v < vectors; ++v) at<T, lanes>(c + i * ldc + v * lanes) = sums[i][v];
}

// 12 accumulators: enough to hide the latency of a multiply-add, few enough for 16 registers.
constexpr int kRows = 12;

template <class T, int lanes, int vectors>
void multiply_columns(Strided<T> a, const T* b, int64_t ldb, T* c, int64_t ldc, int64_t rows, int64_t depth,
                      bool accumulate) {
  constexpr int kBlock = kRows / vectors;
  int64_t i = 0;
  for (; i + kBlock <= rows; i += kBlock)
    multiply_block<T, lanes, kBlock, vectors>({a.data + i * a.row, a.row, a.depth}, b, ldb, c + i * ldc, ldc, depth,
                                              accumulate);
  for (; i < rows; ++i)
    multiply_block<T, lanes, 1, vectors>({a.data + i * a.row, a.row, a.depth}, b, ldb, c + i * ldc, ldc, depth,
                                         accumulate);
}

// C (rows x columns, leading dimension ldc) (+)= A (rows x depth) B (depth x columns); columns a multiple of lanes.
template <class T, int lanes>
void multiply(Strided<T> a, const T* b, int64_t ldb, T* c, int64_t ldc, int64_t rows, int64_t columns, int64_t depth,
              bool accumulate) {
  int64_t j = 0;
  for (; j + 2 * lanes <= columns; j += 2 * lanes)
    multiply_columns<T, lanes, 2>(a, b + j, ldb, c + j, ldc, rows, depth, accumulate);
  if (j < columns) multiply_columns<T, lanes, 1>(a, b + j, ldb, c + j, ldc, rows, depth, accumulate);
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define MOTIONRNN_EXT_SHUFFLE 1
#endif
#endif

// Return the sums over the lanes of four vectors, as one vector of four.
#if defined(MOTIONRNN_EXT_SHUFFLE)
template <class T, int lanes, int... i>
MOTIONRNN_EXT_INLINE auto fold(Vector<T, lanes> v, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(v, v, i...) + __builtin_shufflevector(v, v, (i + lanes / 2)...);
}

template <class T, int lanes>
MOTIONRNN_EXT_INLINE Vector<T, 4> sum_lanes(Vector<T, lanes> a, Vector<T, lanes> b, Vector<T, lanes> c,
                                            Vector<T, lanes> d) {
  if constexpr (lanes > 4) {
    constexpr auto half = std::make_integer_sequence<int, lanes / 2>();
    return sum_lanes<T, lanes / 2>(fold<T, lanes>(a, half), fold<T, lanes>(b, half), fold<T, lanes>(c, half),
                                   fold<T, lanes>(d, half));
  } else if constexpr (lanes == 4) {
    const auto ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const auto cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  } else {
    return Vector<T, 4>{a[0] + a[1], b[0] + b[1], c[0] + c[1], d[0] + d[1]};
  }
}
#else  // GCC before 12
template <class T, int lanes>
MOTIONRNN_EXT_INLINE Vector<T, 4> sum_lanes(Vector<T, lanes> a, Vector<T, lanes> b, Vector<T, lanes> c,
                                            Vector<T, lanes> d) {
  Vector<T, 4> sums{};
  for (int lane = 0; lane < lanes; ++lane) sums += Vector<T, 4>{a[lane], b[lane], c[lane], d[lane]};
  return sums;
}
#endif

}  // namespace
}  // namespace motionrnn_ext::cpu
