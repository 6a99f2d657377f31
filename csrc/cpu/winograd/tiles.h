// Tiles: 2x2 results each, which read 6x6 pixels. How maps are cut into them, and how they are read and written.
//
// A segment is some rows of tiles of one image, and its tiles are padded to whole vectors. An item of work is some
// segments; its transformed data should fit the second-level cache.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/allocate.h"
#include "cpu/channels.h"
#include "cpu/convolution.h"
#include "cpu/winograd/transforms.h"

namespace motionrnn_ext::cpu {
namespace {

constexpr int64_t kRadius = kTaps / 2;

#if defined(MOTIONRNN_EXT_SHUFFLE)
template <class T, int... i>
MOTIONRNN_EXT_INLINE void split(const T* pairs, T* first, T* second, std::integer_sequence<int, i...>) {
  const Vector<T, kLanes<T>> a = load_vector(pairs), b = load_vector(pairs + kLanes<T>);
  store_vector(first, __builtin_shufflevector(a, b, (2 * i)...));
  store_vector(second, __builtin_shufflevector(a, b, (2 * i + 1)...));
}

template <class T, int... i>
MOTIONRNN_EXT_INLINE void join(const T* first, const T* second, T* pairs, std::integer_sequence<int, i...>) {
  constexpr int lanes = kLanes<T>;
  const Vector<T, lanes> a = load_vector(first), b = load_vector(second);
  store_vector(pairs, __builtin_shufflevector(a, b, (i / 2 + i % 2 * lanes)...));
  store_vector(pairs + lanes, __builtin_shufflevector(a, b, (lanes / 2 + i / 2 + i % 2 * lanes)...));
}
#endif

// Write a vector of pairs' first elements and one of their second elements.
template <class T>
MOTIONRNN_EXT_INLINE void split_pairs(const T* pairs, T* first, T* second) {
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

  Tiling(const WinogradArguments& a, int64_t tiles_of_item)
      : height(a.height), width(a.width), columns((a.width + 1) / 2), rows((a.height + 1) / 2) {
    const int64_t fit = std::max<int64_t>(1, tiles_of_item / columns);
    in_image = (rows + fit - 1) / fit;
    segment_rows = (rows + in_image - 1) / in_image;
    segments = a.batch * in_image;
    segment_tiles = round_up(segment_rows * columns, kLanes<T>);
    in_item = std::max<int64_t>(1, tiles_of_item / segment_tiles);
    items = (segments + in_item - 1) / in_item;
    in_item = (segments + items - 1) / items;
  }

  int64_t item_tiles() const { return in_item * segment_tiles; }
};

struct TileRows {
  int64_t image, first, rows;  // rows of tiles
};

template <class T>
TileRows segment_of(const Tiling<T>& g, int64_t segment) {
  const int64_t first = segment % g.in_image * g.segment_rows;
  return {segment / g.in_image, first, std::max<int64_t>(0, std::min(g.segment_rows, g.rows - first))};
}

// The pixels of one channel of a segment, by their place in a tile: column k of row i of all tiles is at
// of(i, k)[tile].
template <class T>
struct TilePixels {
  const Tiling<T>& g;
  // Rows of one parity follow one another, so that the tile below reads the same column of the next row.
  const int64_t parity = (g.segment_rows + 2) * g.columns + 2 * kLanes<T>;
  const Buffer<T> memory = allocate<T>(2 * kPoints * parity, true);
  // A row of the image between zeros.
  const Buffer<T> row = allocate<T>(2 * g.columns + 2 * kRadius + 4 * kLanes<T>, true);

  explicit TilePixels(const Tiling<T>& g_) : g(g_) {}

  T* column(int64_t y, int k) const { return memory.get() + ((y % 2) * kPoints + k) * parity + y / 2 * g.columns; }
  const T* of(int i, int k) const { return column(i, k); }

  void load_pixels(const Image& map, int64_t image, int64_t channel, int64_t y) const {
    const T* from =
        static_cast<const T*>(map.data) + image * map.batch + channel * map.channel + y * g.width * map.pixel;
    T* to = row.get() + kRadius;
    int64_t x = 0;
    if (map.pixel == 1)
      for (; x + kLanes<T> <= g.width; x += kLanes<T>) store_vector(to + x, load_vector(from + x));
    for (; x < g.width; ++x) to[x] = from[x * map.pixel];
  }

  void load(const Image& map, const TileRows& segment, int64_t channel) const {
    for (int64_t y = 0; y < 2 * segment.rows + 4; ++y) {
      const int64_t at = 2 * segment.first + y - kRadius;
      if (at < 0 || at >= g.height) {
        for (int k = 0; k < kPoints; ++k) std::fill_n(column(y, k), g.columns, T(0));
        continue;
      }
      load_pixels(map, segment.image, channel, at);
      for (int k = 0; k < kPoints; k += 2)
        for (int64_t x = 0; x < g.columns; x += kLanes<T>)
          split_pairs(row.get() + k + 2 * x, column(y, k) + x, column(y, k + 1) + x);
    }
  }
};

}  // namespace
}  // namespace motionrnn_ext::cpu
