// The convolution: transform the data of an item's tiles, multiply, transform the products.
#pragma once

#include "cpu/winograd/packing.h"
#include "cpu/winograd/tiles.h"

namespace motionrnn_ext::cpu {
namespace {

// The most tiles of an item, the channels whose data are transformed together, and the elements of the products that
// are held at once. Data and products are 0.9 MB in float32, within a second-level cache; twice as many tiles took 1.2
// ms in place of 0.7 for 448 -> 64 channels of 16x16.
constexpr int64_t kMostTiles = 32, kDepth = 64, kProducts = kSquare * 4096;

// Cut the work into items for this number of threads, and return their number. Items are whole tiles as long as there
// are enough; then each has a part of the output channels, and transforms its data for itself.
template <class T>
int64_t plan(WinogradArguments& a, int64_t threads) {
  const auto items = [&] { return Tiling<T>(a.batch, a.height, a.width, a.item_tiles).items; };
  a.item_tiles = kMostTiles;
  while (items() < threads && a.item_tiles > 2 * kLanes<T>) a.item_tiles /= 2;
  a.parts = std::clamp<int64_t>(threads / items(), 1, Blocks(a.out_channels).count);
  return items() * a.parts;
}

template <class T>
struct Forward {
  const WinogradArguments& a;
  const Tiling<T> g{a.batch, a.height, a.width, a.item_tiles};
  const Blocks blocks{a.out_channels};
  const int64_t tiles = g.item_tiles();
  // Blocks of output channels whose products are held at once.
  const int64_t in_part = (blocks.count + a.parts - 1) / a.parts;
  const int64_t group = std::clamp<int64_t>(kProducts / (kSquare * tiles * blocks.size), 1, in_part);
  const int64_t depths = (a.channels + kDepth - 1) / kDepth,
                depth = (a.channels + depths - 1) / std::max<int64_t>(depths, 1);
  // A point's data (blocks of two vectors of tiles, channels, tiles) and products (channels, tiles).
  const int64_t data_point = depth * tiles + kAlignment / sizeof(T), data_size = kSquare * data_point;
  const int64_t product_point = group * blocks.size * tiles + kAlignment / sizeof(T);
  const Buffer<T> data = allocate<T>(data_size * (group == in_part ? 1 : depths), false);
  const Buffer<T> products = allocate<T>(kSquare * product_point, false);
  const Buffer<T> results = allocate<T>(kResults * kResults * tiles + kLanes<T>, false);
  const Buffer<T> pair_row = allocate<T>(g.width + 2 * kLanes<T>, false);
  const TransformedTiles<T, kPoints> transformed_tiles{g};

  void transform(const TileRows& segment, int64_t first_tile, int64_t channel, int64_t in_depth, T* to) const {
    const int64_t wide = 2 * kLanes<T>;
    transformed_tiles.load(a.x, segment.image, channel, segment);
    for (int64_t t = 0; t < segment.rows * g.columns; t += kLanes<T>) {
      const int64_t tile = first_tile + t, block = tile / wide, width = std::min(wide, tiles - block * wide);
      transformed_tiles.store(t, to + block * wide * depth + in_depth * width + tile % wide, data_point);
    }
  }

  void multiply(const T* transformed, int64_t first_block, int64_t count, int64_t channel, int64_t channels) const {
    const int64_t wide = 2 * kLanes<T>, step = a.channels * blocks.size;
    const auto two = multiply_for<T, 1>(blocks.size, 2), one = multiply_for<T, 1>(blocks.size, 1);
    for (int point = 0; point < kSquare; ++point)
      for (int64_t tile = 0; tile < tiles; tile += wide)
        for (int64_t block = 0; block < count; ++block) {
          const T* u = static_cast<const T*>(a.packed) + ((first_block + block) * kSquare + point) * step +
                       channel * blocks.size;
          const T* v = transformed + point * data_point + tile * depth;
          T* m = products.get() + point * product_point + block * blocks.size * tiles + tile;
          const T* next = tile + wide < tiles || point + 1 == kSquare ? u : u + step;
          (tile + wide <= tiles ? two : one)(u, v, channels, m, tiles, channel > 0, next);
        }
  }

  void finish(int64_t first_segment, int64_t last_segment, int64_t first_block, int64_t count) const {
    using V = Vector<T, kLanes<T>>;
    const int64_t outs = std::min(count * blocks.size, a.out_channels - first_block * blocks.size);
    for (int64_t o = 0; o < outs; ++o) {
      const int64_t channel = first_block * blocks.size + o;
      const V bias = V{} + (a.bias == nullptr ? T(0) : static_cast<const T*>(a.bias)[channel]);
      for (int64_t t = 0; t < tiles; t += kLanes<T>) {
        const T* from = products.get() + o * tiles + t;
        V half[kResults][kPoints];
        for (int q = 0; q < kPoints; ++q) {
          V m[kPoints], y[kResults];
          for (int p = 0; p < kPoints; ++p) m[p] = at<T, kLanes<T>>(from + (p * kPoints + q) * product_point);
          transform_products<T>(m, y);
          for (int i = 0; i < kResults; ++i) half[i][q] = y[i];
        }
        for (int i = 0; i < kResults; ++i) {
          V y[kResults];
          transform_products<T>(half[i], y);
          for (int j = 0; j < kResults; ++j)
            at<T, kLanes<T>>(results.get() + (i * kResults + j) * tiles + t) = y[j] + bias;
        }
      }
      for (int64_t s = first_segment; s < last_segment; ++s) {
        const TileRows segment = tile_rows_of(g, s);
        for (int64_t y = 2 * segment.first; y < std::min(2 * (segment.first + segment.rows), g.height); ++y) {
          const T* left = results.get() + (y % 2) * kResults * tiles + (s - first_segment) * g.segment_tiles +
                          (y / 2 - segment.first) * g.columns;
          store_row(left, left + tiles, segment.image, channel, y);
        }
      }
    }
  }

  void store_row(const T* left, const T* right, int64_t image, int64_t channel, int64_t y) const {
    const Image& out = a.out;
    T* to = const_cast<T*>(static_cast<const T*>(out.data)) + image * out.batch + channel * out.channel +
            y * g.width * out.pixel;
    T* pairs = out.pixel == 1 ? to : pair_row.get();
    int64_t x = 0;
    for (; 2 * x + 2 * kLanes<T> <= g.width; x += kLanes<T>) join_pairs(left + x, right + x, pairs + 2 * x);
    if (2 * x == g.width && out.pixel == 1) return;
    // The last vectors would be written beyond the row.
    T* end = out.pixel == 1 ? pair_row.get() : pairs + 2 * x;
    join_pairs(left + x, right + x, end);
    if (out.pixel == 1) {
      T* rest = to + 2 * x;
      int64_t n = g.width - 2 * x, i = 0;
      for (; i + kLanes<T> <= n; i += kLanes<T>) store_vector(rest + i, load_vector(end + i));
      for (; i < n; ++i) rest[i] = end[i];
    } else {
      for (int64_t i = 0; i < g.width; ++i) to[i * out.pixel] = pairs[i];
    }
  }

  void run(int64_t item) const {
    const int64_t first = item / a.parts * g.in_item, last = std::min(g.segments, first + g.in_item);
    const int64_t first_block = item % a.parts * in_part, last_block = std::min(blocks.count, first_block + in_part);
    for (int64_t block = first_block; block < last_block; block += group) {
      const int64_t count = std::min(group, last_block - block);
      for (int64_t c = 0; c < a.channels; c += depth) {
        T* transformed = data.get() + (group == in_part ? 0 : c / depth * data_size);
        const int64_t channels = std::min(depth, a.channels - c);
        if (block == first_block)
          for (int64_t i = 0; i < channels; ++i)
            for (int64_t s = first; s < last; ++s)
              transform(tile_rows_of(g, s), (s - first) * g.segment_tiles, c + i, i, transformed);
        multiply(transformed, block, count, c, channels);
      }
      finish(first, last, block, count);
    }
  }
};

template <class T>
void forward(const WinogradArguments& a, int64_t begin, int64_t end) {
  const Forward<T> step{a};
  for (int64_t item = begin; item < end; ++item) step.run(item);
}

}  // namespace
}  // namespace motionrnn_ext::cpu
