// Convolutions of stride 2 that halve a map, and their transposes, which double it:
//
//   halve   half[m](y, x) = b[m] + sum of w[m][c][i][j] whole[c](2y + i - p, 2x + j - p),  p = (k-1)/2
//   twice   whole[c](2y + i - p, 2x + j - p) += w[m][c][i][j] half[m](y, x),  from b[c]
//
// Each is the other's gradient by the data. The whole map is taken as four maps of half its size, by the parities of
// row and column: tap i of a row reads or writes parity s mod 2 of the row y + s div 2, s = i - p. So both are
// convolutions of stride 1 on framed planes, which convolution.h computes. Compiled once per instruction set.
#include <algorithm>
#include <vector>

#include "cpu/allocate.h"
#include "cpu/channels.h"
#include "cpu/convolution.h"

namespace motionrnn_ext::cpu {
namespace {

// Along one axis, tap i is at this parity of the whole map, and at this distance in maps of half its size.
int64_t parity_of(int64_t k, int64_t tap) { return (tap - (k - 1) / 2) & 1; }
int64_t shift_of(int64_t k, int64_t tap) { return (tap - (k - 1) / 2) >> 1; }

template <class T>
struct Geometry {
  int64_t k, radius, pitch, band_rows, plane;
  int64_t depth;    // addends of a result of halve: channels of the whole map times taps
  int64_t results;  // elements of one channel of a band's results

  explicit Geometry(const StridedArguments& a)
      : k(a.k),
        radius(std::max((k - 1) / 2 + 1, k / 2) / 2),
        pitch(a.width + 2 * radius),
        band_rows((a.height + a.bands - 1) / a.bands),
        plane(round_up((band_rows + 2 * radius) * pitch + 2 * radius + kStep<T>, kLanes<T>)),
        depth(a.channels * k * k),
        results(band_rows * pitch + kStep<T>) {}

  // Return the address in a plane that a tap at these distances reads for the first pixel of a band.
  const T* tap(const T* plane, int64_t down, int64_t right) const {
    return plane + (radius + down) * pitch + radius + right;
  }
};

struct Band {
  int64_t image, first, last;
};

Band band_of(const StridedArguments& a, int64_t item) {
  const int64_t band = item % a.bands;
  return {item / a.bands, a.height * band / a.bands, a.height * (band + 1) / a.bands};
}

// Call f(row, the address of its first pixel) for the rows of the plane that lie in the map; the others become zero.
template <class T, class F>
void for_rows(const StridedArguments& a, const Geometry<T>& g, const Band& band, T* plane, F f) {
  for (int64_t y = band.first - g.radius; y < band.last + g.radius; ++y) {
    T* row = plane + (y - band.first + g.radius) * g.pitch;
    if (y >= 0 && y < a.height)
      f(y, row + g.radius);
    else
      std::fill_n(row, g.pitch, T(0));
  }
}

// ---- Packed weights: (parities, blocks of kOuts outputs, depth, kOuts), then the outputs' biases

template <class T>
struct Packed {
  int64_t outs, size;
  Packed(const StridedArguments& a, bool to_half)
      : outs(round_up(to_half ? a.half_channels : a.channels, kOuts)),
        size(outs * a.k * a.k * (to_half ? a.channels : a.half_channels) + outs) {}
  T* biases(T* packed) const { return packed + size - outs; }
};

template <class T>
int64_t packed_size(const StridedArguments& a) {
  return std::max(Packed<T>(a, true).size, Packed<T>(a, false).size) * static_cast<int64_t>(sizeof(T));
}

template <class T, class F>
void pack(const StridedArguments& a, bool to_half) {
  const Packed<T> layout(a, to_half);
  const int64_t k = a.k, taps = k * k;
  const F* weight = static_cast<const F*>(a.weight);
  T* packed = static_cast<T*>(a.packed);
  std::fill_n(packed, layout.size, T(0));
  const int64_t outs = to_half ? a.half_channels : a.channels;
  if (a.bias != nullptr)
    for (int64_t o = 0; o < outs; ++o) layout.biases(packed)[o] = load(static_cast<const F*>(a.bias)[o]);
  if (to_half) {
    const int64_t depth = a.channels * taps;
    for (int64_t o = 0; o < outs; ++o) {
      T* to = packed + o / kOuts * depth * kOuts + o % kOuts;
      for (int64_t d = 0; d < depth; ++d) to[d * kOuts] = load(weight[o * depth + d]);
    }
    return;
  }
  for (int parity = 0; parity < 4; ++parity) {
    std::vector<int64_t> of_parity;
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < k; ++j)
        if (2 * parity_of(k, i) + parity_of(k, j) == parity) of_parity.push_back(i * k + j);
    const int64_t count = static_cast<int64_t>(of_parity.size()), depth = a.half_channels * count;
    for (int64_t m = 0; m < a.half_channels; ++m)
      for (int64_t o = 0; o < outs; ++o) {
        T* to = packed + (o / kOuts * depth + m * count) * kOuts + o % kOuts;
        for (int64_t t = 0; t < count; ++t) to[t * kOuts] = load(weight[(m * outs + o) * taps + of_parity[t]]);
      }
    packed += layout.outs * depth;
  }
}

// ---- Items

template <class T, class F>
void halve(const StridedArguments& a, int64_t begin, int64_t end) {
  const Geometry<T> g(a);
  const Packed<T> layout(a, true);
  T* packed = static_cast<T*>(a.packed);
  const auto planes = allocate<T>(4 * a.channels * g.plane, true);
  const auto results = allocate<T>(layout.outs * g.results, false);
  const auto row = allocate<T>(2 * a.width, false);
  std::vector<const T*> rows;
  rows.reserve(g.depth);
  for (int64_t c = 0; c < a.channels; ++c)
    for (int64_t i = 0; i < g.k; ++i)
      for (int64_t j = 0; j < g.k; ++j) {
        const int64_t parity = 2 * parity_of(g.k, i) + parity_of(g.k, j);
        rows.push_back(g.tap(planes.get() + (4 * c + parity) * g.plane, shift_of(g.k, i), shift_of(g.k, j)));
      }
  for (int64_t item = begin; item < end; ++item) {
    const Band band = band_of(a, item);
    for (int64_t c = 0; c < a.channels; ++c)
      for (int64_t odd = 0; odd < 2; ++odd) {
        T* even_columns = planes.get() + (4 * c + 2 * odd) * g.plane;
        for_rows(a, g, band, even_columns, [&](int64_t y, T* even) {
          load_channel<T, F>(row.get(), a.whole, band.image, c, (2 * y + odd) * 2 * a.width, 2 * a.width);
          for (int64_t x = 0; x < a.width; ++x) even[x] = row[2 * x], even[g.plane + x] = row[2 * x + 1];
        });
        for_rows(a, g, band, even_columns + g.plane, [](int64_t, T*) {});
      }
    convolve(rows.data(), g.depth, packed, layout.biases(packed), layout.outs, results.get(), g.results, 0,
             (band.last - band.first) * g.pitch);
    for (int64_t m = 0; m < a.half_channels; ++m)
      for (int64_t y = band.first; y < band.last; ++y)
        store_channel<T, F>(results.get() + m * g.results + (y - band.first) * g.pitch, a.half, band.image, m,
                            y * a.width, a.width);
  }
}

template <class T, class F>
void twice(const StridedArguments& a, int64_t begin, int64_t end) {
  const Geometry<T> g(a);
  const Packed<T> layout(a, false);
  T* packed = static_cast<T*>(a.packed);
  const auto planes = allocate<T>(a.half_channels * g.plane, true);
  // The results at even and at odd columns.
  const int64_t size = layout.outs * g.results;
  const auto results = allocate<T>(2 * size, false);
  const auto row = allocate<T>(4 * a.width, false);
  std::vector<const T*> rows[4];
  for (int64_t m = 0; m < a.half_channels; ++m)
    for (int64_t i = 0; i < g.k; ++i)
      for (int64_t j = 0; j < g.k; ++j)
        rows[2 * parity_of(g.k, i) + parity_of(g.k, j)].push_back(
            g.tap(planes.get() + m * g.plane, -shift_of(g.k, i), -shift_of(g.k, j)));
  for (int64_t item = begin; item < end; ++item) {
    const Band band = band_of(a, item);
    for (int64_t m = 0; m < a.half_channels; ++m)
      for_rows(a, g, band, planes.get() + m * g.plane,
               [&](int64_t y, T* to) { load_channel<T, F>(to, a.half, band.image, m, y * a.width, a.width); });
    const T* weights = packed;
    for (int64_t odd = 0; odd < 2; ++odd) {
      for (int64_t column = 0; column < 2; ++column) {
        const std::vector<const T*>& of_parity = rows[2 * odd + column];
        const int64_t depth = static_cast<int64_t>(of_parity.size());
        convolve(of_parity.data(), depth, weights, layout.biases(packed), layout.outs, results.get() + column * size,
                 g.results, 0, (band.last - band.first) * g.pitch);
        weights += layout.outs * depth;
      }
      for (int64_t c = 0; c < a.channels; ++c)
        for (int64_t y = band.first; y < band.last; ++y) {
          const T* even = results.get() + c * g.results + (y - band.first) * g.pitch;
          const int64_t first = (2 * y + odd) * 2 * a.width;
          for (int64_t x = 0; x < a.width; ++x) row[2 * x] = even[x], row[2 * x + 1] = even[size + x];
          if (a.addend.data != nullptr) {
            T* more = row.get() + 2 * a.width;
            load_channel<T, F>(more, a.addend, band.image, c, first, 2 * a.width);
            for (int64_t x = 0; x < 2 * a.width; ++x) row[x] += more[x];
          }
          store_channel<T, F>(row.get(), a.whole, band.image, c, first, 2 * a.width);
        }
    }
  }
}

template <class F>
StridedKernels kernels_for() {
  using T = typename arithmetic<F>::type;
  return {packed_size<T>, pack<T, F>, halve<T, F>, twice<T, F>};
}

}  // namespace

StridedKernels MOTIONRNN_EXT_ISA::strided_kernels(Types types) {
  return for_features(types, []<class F>() { return kernels_for<F>(); });
}

}  // namespace motionrnn_ext::cpu
