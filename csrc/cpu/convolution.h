// Convolutions of stride 1 that keep the map's size, on framed planes: the forward sums, and the weights' gradients.
//
// A plane is one channel of some rows of a map, with r = (k-1)/2 zeros to the left and the right of each row. The row
// stride is `pitch` = W + 2r elements. Tap (i, j) of pixel p is the element p + i pitch + j in whichever row p lies, so
// that vectors run over pixels across the ends of rows. Results at the 2r elements between two rows are not used. In
// the gradients of the weights, the output's gradient is zero there. An inf in a border pixel of x meets these zeros,
// and so makes more taps nan than those that read it. A `row` is the flat plane that one (channel, tap) reads.
//
// On one core of an AMD EPYC with AVX-512, for 34 -> 36 channels of 64x64 in float32 with k = 3, this reaches
// 257 GFLOP/s, and oneDNN 105.
#pragma once

#include "cpu/vector.h"

namespace motionrnn_ext::cpu {
namespace {

// The accumulators of one block, channels by vectors of pixels (or of rows), are all in registers; AVX-512 has 32.
constexpr int kOuts = kVectorBytes >= 64 ? 9 : 6;  // 9 divides the channels of 3x3 taps
constexpr int kVectors = kVectorBytes >= 64 ? 3 : 2;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);
template <class T>
constexpr int kStep = kVectors * kLanes<T>;  // pixels of a block

// Vectors are not aligned, because pixels of different rows lie at any distance.
template <class T>
struct LooseVector {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <class T>
MOTIONRNN_EXT_INLINE Vector<T, kLanes<T>> load_vector(const T* p) {
  return *reinterpret_cast<const typename LooseVector<T>::type*>(p);
}
template <class T>
MOTIONRNN_EXT_INLINE void store_vector(T* p, Vector<T, kLanes<T>> v) {
  *reinterpret_cast<typename LooseVector<T>::type*>(p) = v;
}

inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// out[o][p] = start[o] + sum over d of weights[d][o] rows[d][p], for kOuts channels and some vectors of pixels from p
// on.
template <class T, int vectors>
void convolve_block(const T* const* rows, int64_t depth, const T* weights, const T* start, T* out, int64_t out_stride,
                    int64_t p) {
  Vector<T, kLanes<T>> sums[kOuts][vectors];
  for (int o = 0; o < kOuts; ++o)
    for (int v = 0; v < vectors; ++v) sums[o][v] = Vector<T, kLanes<T>>{} + start[o];
  for (int64_t d = 0; d < depth; ++d, weights += kOuts) {
    const T* row = rows[d] + p;
    Vector<T, kLanes<T>> in[vectors];
    for (int v = 0; v < vectors; ++v) in[v] = load_vector(row + v * kLanes<T>);
    for (int o = 0; o < kOuts; ++o)
      for (int v = 0; v < vectors; ++v) sums[o][v] += weights[o] * in[v];
  }
  for (int o = 0; o < kOuts; ++o)
    for (int v = 0; v < vectors; ++v) store_vector(out + o * out_stride + v * kLanes<T>, sums[o][v]);
}

// Compute pixels [begin, end) of `outs` channels, a multiple of kOuts, to out[o][p - begin]; up to kStep more are
// written. weights is (outs / kOuts, depth, kOuts).
template <class T>
void convolve(const T* const* rows, int64_t depth, const T* weights, const T* start, int64_t outs, T* out,
              int64_t out_stride, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; p += kStep<T>) {
    // Small maps end within a block.
    const auto block = end - p <= kLanes<T>       ? convolve_block<T, 1>
                       : end - p <= 2 * kLanes<T> ? convolve_block<T, 2>
                                                  : convolve_block<T, kVectors>;
    for (int64_t o = 0; o < outs; o += kOuts)
      block(rows, depth, weights + o * depth, start + o, out + o * out_stride + (p - begin), out_stride, p);
  }
}

// Keep a vector in a register. GCC would read it from memory again at each use, and the products below would wait for
// these unaligned reads: 181 GFLOP/s with the register, 93 without (machine and shape as above).
template <class V>
MOTIONRNN_EXT_INLINE void keep_in_register(V& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#else
  static_cast<void>(v);
#endif
}

// Pixels [begin, end) of one of several equal parts of the planes.
struct Segment {
  int64_t begin, end;
};

// sums[o][v] += sum over all segments' pixels of grads[o][p] rows[v][p], for kOuts channels and kVectors rows.
template <class T>
void correlate_block(const T* const* grads, const T* const* rows, const Segment* segments, int64_t count, T* sums,
                     int64_t stride) {
  Vector<T, kLanes<T>> partial[kOuts][kVectors] = {};
  for (const Segment* segment = segments; segment < segments + count; ++segment) {
    int64_t p = segment->begin;
    for (; p + kLanes<T> <= segment->end; p += kLanes<T>) {
      Vector<T, kLanes<T>> in[kVectors];
      for (int v = 0; v < kVectors; ++v) in[v] = load_vector(rows[v] + p);
      for (int o = 0; o < kOuts; ++o) {
        Vector<T, kLanes<T>> grad = load_vector(grads[o] + p);
        keep_in_register(grad);
        for (int v = 0; v < kVectors; ++v) partial[o][v] += grad * in[v];
      }
    }
    for (; p < segment->end; ++p)
      for (int o = 0; o < kOuts; ++o)
        for (int v = 0; v < kVectors; ++v) sums[o * stride + v] += grads[o][p] * rows[v][p];
  }
  Vector<T, kLanes<T>> flat[(kOuts * kVectors + 3) / 4 * 4] = {};
  for (int o = 0; o < kOuts; ++o)
    for (int v = 0; v < kVectors; ++v) flat[o * kVectors + v] = partial[o][v];
  for (int i = 0; i < kOuts * kVectors; i += 4) {
    const Vector<T, 4> four = sum_lanes<T, kLanes<T>>(flat[i], flat[i + 1], flat[i + 2], flat[i + 3]);
    for (int j = i; j < i + 4 && j < kOuts * kVectors; ++j) sums[j / kVectors * stride + j % kVectors] += four[j - i];
  }
}

// sums (outs, depth) += the product of all grads and rows; outs a multiple of kOuts, depth one of kVectors.
template <class T>
void correlate(const T* const* grads, int64_t outs, const T* const* rows, int64_t depth, const Segment* segments,
               int64_t count, T* sums) {
  for (int64_t o = 0; o < outs; o += kOuts)
    for (int64_t d = 0; d < depth; d += kVectors)
      correlate_block(grads + o, rows + d, segments, count, sums + o * depth + d, depth);
}

}  // namespace
}  // namespace motionrnn_ext::cpu
