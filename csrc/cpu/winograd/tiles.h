// Tiles: 2x2 or 4x4 results each, which read 4x4, 6x6 or 8x8 pixels. How maps are cut into them, and how they are read
// and written.
//
// A segment is some rows of tiles of one image, and its tiles are padded to whole vectors. An item of work is some
// segments; its transformed data should fit the second-level cache.
#pragma once

#include <algorithm>

#include "cpu/allocate.h"
#include "cpu/channels.h"
#include "cpu/convolution.h"
#include "cpu/winograd/transforms.h"

namespace motionrnn_ext::cpu {
namespace {

#if defined(MOTIONRNN_EXT_SHUFFLE)
template <class T, int... i>
MOTIONRNN_EXT_INLINE void split(Vector<T, kLanes<T>>& a, Vector<T, kLanes<T>>& b, std::integer_sequence<int, i...>) {
  const Vector<T, kLanes<T>> first = __builtin_shufflevector(a, b, (2 * i)...);
  b = __builtin_shufflevector(a, b, (2 * i + 1)...), a = first;
}

template <class T, int... i>
MOTIONRNN_EXT_INLINE void join(Vector<T, kLanes<T>>& a, Vector<T, kLanes<T>>& b, std::integer_sequence<int, i...>) {
  constexpr int lanes = kLanes<T>;
  const Vector<T, lanes> first = __builtin_shufflevector(a, b, (i / 2 + i % 2 * lanes)...);
  b = __builtin_shufflevector(a, b, (lanes / 2 + i / 2 + i % 2 * lanes)...), a = first;
}
#endif

// Turn two vectors of pairs into a vector of their first elements and one of their second.
template <class T>
MOTIONRNN_EXT_INLINE void split_pairs(Vector<T, kLanes<T>>& a, Vector<T, kLanes<T>>& b) {
#if defined(MOTIONRNN_EXT_SHUFFLE)
  split<T>(a, b, std::make_integer_sequence<int, kLanes<T>>());
#else
  T pairs[2 * kLanes<T>];
  store_vector(pairs, a), store_vector(pairs + kLanes<T>, b);
  for (int i = 0; i < kLanes<T>; ++i) a[i] = pairs[2 * i], b[i] = pairs[2 * i + 1];
#endif
}

// Turn a vector of first elements and one of second into two vectors of pairs.
template <class T>
MOTIONRNN_EXT_INLINE void join_pairs(Vector<T, kLanes<T>>& a, Vector<T, kLanes<T>>& b) {
#if defined(MOTIONRNN_EXT_SHUFFLE)
  join<T>(a, b, std::make_integer_sequence<int, kLanes<T>>());
#else
  T pairs[2 * kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) pairs[2 * i] = a[i], pairs[2 * i + 1] = b[i];
  a = load_vector(pairs), b = load_vector(pairs + kLanes<T>);
#endif
}

// Turn vectors of pixels, in groups of 2 or 4, into vector j of pixel j of each group.
template <class T, int size>
MOTIONRNN_EXT_INLINE void split_groups(Vector<T, kLanes<T>>* v) {
  for (int j = 0; j < size; j += 2) split_pairs<T>(v[j], v[j + 1]);
  // The even pixels are in vectors 0 and 2, the odd ones in 1 and 3.
  if constexpr (size == 4) split_pairs<T>(v[0], v[2]), split_pairs<T>(v[1], v[3]);
}

// Write groups of pixels, of which vector j has pixel j.
template <class T, int size>
MOTIONRNN_EXT_INLINE void store_groups(Vector<T, kLanes<T>>* from, T* to) {
  if constexpr (size == 4) join_pairs<T>(from[0], from[2]), join_pairs<T>(from[1], from[3]);
  for (int j = 0; j < size; j += 2) join_pairs<T>(from[j], from[j + 1]);
  for (int j = 0; j < size; ++j) store_vector(to + j * kLanes<T>, from[j]);
}

template <class Size>
struct Tiling {
  static constexpr int64_t size = Size::results, lanes = kLanes<typename Size::T>;
  int64_t height, width;
  int64_t columns, rows;           // tiles of an image
  int64_t segment_rows, in_image;  // rows of tiles of a segment, segments of an image
  int64_t segments, segment_tiles, in_item, items;

  // An item has at most `most_tiles`, as far as whole rows of tiles fit.
  Tiling(int64_t images, int64_t height_, int64_t width_, int64_t most_tiles)
      : height(height_), width(width_), columns((width + size - 1) / size), rows((height + size - 1) / size) {
    const int64_t fit = std::max<int64_t>(1, most_tiles / columns);
    in_image = (rows + fit - 1) / fit;
    segment_rows = (rows + in_image - 1) / in_image;
    segments = images * in_image;
    segment_tiles = round_up(segment_rows * columns, lanes);
    in_item = std::max<int64_t>(1, most_tiles / segment_tiles);
    items = (segments + in_item - 1) / in_item;
    in_item = (segments + items - 1) / items;
  }

  int64_t item_tiles() const { return in_item * segment_tiles; }
};

// Some rows of tiles of an image.
struct TileRows {
  int64_t image, first, rows;
};

template <class Size>
TileRows tile_rows_of(const Tiling<Size>& g, int64_t index) {
  const int64_t first = index % g.in_image * g.segment_rows;
  return {index / g.in_image, first, std::clamp<int64_t>(g.rows - first, 0, g.segment_rows)};
}

// The tiles of one channel of a segment, which are `size` x `size` pixels each, transformed to points: data, whose
// tiles overlap and reach into a frame of zeros, or gradients, whose tiles do neither.
template <class Size, int size>
struct TransformedTiles {
  using F = typename Size::F;
  using T = typename Size::T;
  using V = Vector<T, kLanes<T>>;
  static constexpr int results = Size::results, points = Size::points;
  // Tiles are read in groups of `results` pixels; the last group may reach beyond the tile.
  static constexpr int read = (size + results - 1) / results * results;
  static constexpr int64_t kFrame = (size - results) / 2;
  const Tiling<Size>& g;
  // The rows of the image in their frame. All are copied before the first is transformed, because a read has to wait
  // for a recent write that it overlaps.
  const int64_t pitch = results * round_up(g.columns, kLanes<T>) + 2 * kFrame,
                frame_rows = results * g.segment_rows + 2 * kFrame;
  const Buffer<T> image_rows = allocate<T>(frame_rows * pitch + read - size, true);
  // The rows, transformed along themselves: point q of row i of all tiles is at of(i, q)[tile]. Every
  // `results`-th row follows the one before it, so that the tile below reads the same place of the next row.
  const int64_t phase_pitch = (frame_rows + results - 1) / results * g.columns + 2 * kLanes<T>;
  const Buffer<T> transformed_rows = allocate<T>(results * points * phase_pitch, true);

  explicit TransformedTiles(const Tiling<Size>& g_) : g(g_) {}

  T* of(int64_t row, int q) const {
    return transformed_rows.get() + ((row % results) * points + q) * phase_pitch + row / results * g.columns;
  }

  static MOTIONRNN_EXT_INLINE void transform(const V* in, V (&out)[points]) {
    if constexpr (size == points)
      Size::Axis::template data<T>(in, out);
    else
      Size::Axis::template gradients<T>(in, out);
  }

  void load(const Image& map, int64_t image, int64_t channel, const TileRows& segment) const {
    const int64_t count = results * segment.rows + 2 * kFrame;
    for (int64_t row = 0; row < count; ++row)
      copy_row(map, image, channel, results * segment.first + row - kFrame, row);
    for (int phase = 0; phase < results; ++phase) {
      const int64_t rows = (count - phase + results - 1) / results;
      // Where no vector of pixels ends in another row, a vector of tiles goes on in the row of tiles below.
      if (g.columns % kStep == 0)
        transform_rows(phase, 0, rows, rows * g.columns);
      else
        for (int64_t row = 0; row < rows; ++row) transform_rows(phase, row, row + 1, g.columns);
    }
  }

  // The tiles of a vector of pixels.
  static constexpr int64_t kStep = kLanes<T> / results;

  // Transform `tiles` tiles of every `results`-th row from row `phase` on: rows [row, end) of these. Vectors end beyond
  // them, in the next row, which is written later.
  void transform_rows(int phase, int64_t row, int64_t end, int64_t tiles) const {
    const int64_t first = row, width = round_up(g.columns, kStep);
    int64_t column = 0;
    for (int64_t t = 0; t < tiles; t += kLanes<T>) {
      V in[read], out[points];
      for (int j = 0; j < results; ++j) {
        const T* from = image_rows.get() + (row * results + phase) * pitch + column * results;
        for (int k = 0; k < read; k += results) in[k + j] = load_vector(from + k);
        column += kStep;
        if (column == width) column = 0, row = row + 1 < end ? row + 1 : first;
      }
      for (int k = 0; k < read; k += results) split_groups<T, results>(in + k);
      transform(in, out);
      for (int q = 0; q < points; ++q) store_vector(of(first * results + phase, q) + t, out[q]);
    }
  }

  // Write the vector of tiles from t on: point p to to[p * stride].
  MOTIONRNN_EXT_INLINE void store(int64_t t, T* to, int64_t stride) const {
    for (int q = 0; q < points; ++q) {
      V in[size], out[points];
      for (int i = 0; i < size; ++i) in[i] = load_vector(of(i, q) + t);
      transform(in, out);
      for (int p = 0; p < points; ++p) store_vector(to + (p * points + q) * stride, out[p]);
    }
  }

  void copy_row(const Image& map, int64_t image, int64_t channel, int64_t y, int64_t row) const {
    T* to = image_rows.get() + row * pitch + kFrame;
    if (y < 0 || y >= g.height) {
      std::fill_n(to, g.width, T(0));
      return;
    }
    const F* from =
        static_cast<const F*>(map.data) + image * map.batch + channel * map.channel + y * g.width * map.pixel;
    if (map.pixel == 1)
      for (int64_t x = 0; x < g.width; ++x) to[x] = cpu::load(from[x]);
    else
      for (int64_t x = 0; x < g.width; ++x) to[x] = cpu::load(from[x * map.pixel]);
  }
};

}  // namespace
}  // namespace motionrnn_ext::cpu
