// Tiles: 2x2 results each, which read 6x6 pixels. How maps are cut into them, and how they are read and written.
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
MOTIONRNN_EXT_INLINE void split(const T* pairs, Vector<T, kLanes<T>>& first, Vector<T, kLanes<T>>& second,
                                std::integer_sequence<int, i...>) {
  const Vector<T, kLanes<T>> a = load_vector(pairs), b = load_vector(pairs + kLanes<T>);
  first = __builtin_shufflevector(a, b, (2 * i)...);
  second = __builtin_shufflevector(a, b, (2 * i + 1)...);
}

template <class T, int... i>
MOTIONRNN_EXT_INLINE void join(const T* first, const T* second, T* pairs, std::integer_sequence<int, i...>) {
  constexpr int lanes = kLanes<T>;
  const Vector<T, lanes> a = load_vector(first), b = load_vector(second);
  store_vector(pairs, __builtin_shufflevector(a, b, (i / 2 + i % 2 * lanes)...));
  store_vector(pairs + lanes, __builtin_shufflevector(a, b, (lanes / 2 + i / 2 + i % 2 * lanes)...));
}
#endif

// Read two vectors of pairs as a vector of their first elements and one of their second.
template <class T>
MOTIONRNN_EXT_INLINE void split_pairs(const T* pairs, Vector<T, kLanes<T>>& first, Vector<T, kLanes<T>>& second) {
#if defined(MOTIONRNN_EXT_SHUFFLE)
  split(pairs, first, second, std::make_integer_sequence<int, kLanes<T>>());
#else
  for (int i = 0; i < kLanes<T>; ++i) first[i] = pairs[2 * i], second[i] = pairs[2 * i + 1];
#endif
}

// Write two vectors of pairs.
template <class T>
MOTIONRNN_EXT_INLINE void join_pairs(const T* first, const T* second, T* pairs) {
#if defined(MOTIONRNN_EXT_SHUFFLE)
  join(first, second, pairs, std::make_integer_sequence<int, kLanes<T>>());
#else
  for (int i = 0; i < kLanes<T>; ++i) pairs[2 * i] = first[i], pairs[2 * i + 1] = second[i];
#endif
}

template <class T>
struct Tiling {
  int64_t height, width;
  int64_t columns, rows;           // tiles of an image
  int64_t segment_rows, in_image;  // rows of tiles of a segment, segments of an image
  int64_t segments, segment_tiles, in_item, items;

  // An item has at most `most_tiles`, as far as whole rows of tiles fit.
  Tiling(int64_t images, int64_t height_, int64_t width_, int64_t most_tiles)
      : height(height_), width(width_), columns((width + 1) / 2), rows((height + 1) / 2) {
    const int64_t fit = std::max<int64_t>(1, most_tiles / columns);
    in_image = (rows + fit - 1) / fit;
    segment_rows = (rows + in_image - 1) / in_image;
    segments = images * in_image;
    segment_tiles = round_up(segment_rows * columns, kLanes<T>);
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

template <class T>
TileRows tile_rows_of(const Tiling<T>& g, int64_t index) {
  const int64_t first = index % g.in_image * g.segment_rows;
  return {index / g.in_image, first, std::clamp<int64_t>(g.rows - first, 0, g.segment_rows)};
}

// The tiles of one channel of a segment, which are `size` x `size` pixels each, transformed to 6x6 points: data, whose
// tiles of 6x6 overlap and reach into a frame of zeros, or gradients, whose tiles of 2x2 do neither.
template <class T, int size>
struct TransformedTiles {
  using V = Vector<T, kLanes<T>>;
  static constexpr int64_t kFrame = (size - kResults) / 2;
  const Tiling<T>& g;
  // The rows of the image in their frame. All are copied before the first is transformed, because a read has to wait
  // for a recent write that it overlaps.
  const int64_t pitch = 2 * round_up(g.columns, kLanes<T>) + 2 * kFrame, frame_rows = 2 * (g.segment_rows + kFrame);
  const Buffer<T> image_rows = allocate<T>(frame_rows * pitch, true);
  // The rows, transformed along themselves: point q of row i of all tiles is at of(i, q)[tile]. Rows of one parity
  // follow one another, so that the tile below reads the same place of the next row.
  const int64_t parity = (g.segment_rows + kFrame) * g.columns + 2 * kLanes<T>;
  const Buffer<T> transformed_rows = allocate<T>(2 * kPoints * parity, true);

  explicit TransformedTiles(const Tiling<T>& g_) : g(g_) {}

  T* of(int64_t row, int q) const {
    return transformed_rows.get() + ((row % 2) * kPoints + q) * parity + row / 2 * g.columns;
  }

  static MOTIONRNN_EXT_INLINE void transform(const V (&in)[size], V (&out)[kPoints]) {
    if constexpr (size == kPoints)
      transform_data<T>(in, out);
    else
      transform_gradients<T>(in, out);
  }

  void load(const Image& map, int64_t image, int64_t channel, const TileRows& segment) const {
    const int64_t count = 2 * (segment.rows + kFrame);
    for (int64_t row = 0; row < count; ++row) copy_row(map, image, channel, 2 * segment.first + row - kFrame, row);
    // Vectors end in the next row, which is written later.
    for (int64_t row = 0; row < count; ++row)
      for (int64_t x = 0; x < g.columns; x += kLanes<T>) {
        V in[size], out[kPoints];
        for (int k = 0; k < size; k += 2) split_pairs(image_rows.get() + row * pitch + k + 2 * x, in[k], in[k + 1]);
        transform(in, out);
        for (int q = 0; q < kPoints; ++q) store_vector(of(row, q) + x, out[q]);
      }
  }

  // Write the vector of tiles from t on: point p to to[p * stride].
  MOTIONRNN_EXT_INLINE void store(int64_t t, T* to, int64_t stride) const {
    for (int q = 0; q < kPoints; ++q) {
      V in[size], out[kPoints];
      for (int i = 0; i < size; ++i) in[i] = load_vector(of(i, q) + t);
      transform(in, out);
      for (int p = 0; p < kPoints; ++p) store_vector(to + (p * kPoints + q) * stride, out[p]);
    }
  }

  void copy_row(const Image& map, int64_t image, int64_t channel, int64_t y, int64_t row) const {
    T* to = image_rows.get() + row * pitch + kFrame;
    if (y < 0 || y >= g.height) {
      std::fill_n(to, g.width, T(0));
      return;
    }
    const T* from =
        static_cast<const T*>(map.data) + image * map.batch + channel * map.channel + y * g.width * map.pixel;
    int64_t x = 0;
    if (map.pixel == 1)
      for (; x + kLanes<T> <= g.width; x += kLanes<T>) store_vector(to + x, load_vector(from + x));
    for (; x < g.width; ++x) to[x] = from[x * map.pixel];
  }
};

}  // namespace
}  // namespace motionrnn_ext::cpu
