// The convolution: transform the data of an item's tiles, multiply, transform the products.
#pragma once

#include "cpu/winograd/packing.h"
#include "cpu/winograd/tiles.h"

namespace motionrnn_ext::cpu {
namespace {

// The most tiles of an item, the channels whose data are transformed together, and the elements of the products that
// are held at once. Data and products are 0.9 MB in float32, within a second-level cache; twice as many tiles took 1.2
// ms in place of 0.7 for 448 -> 64 channels of 16x16.
constexpr int64_t kMostTiles = 32, kDepth = 64, kProducts = 36 * 4096;

// Cut the work into items for this number of threads, and return their number. Items are whole tiles as long as there
// are enough; then each has a part of the output channels, and transforms its data for itself.
template <class Size>
int64_t plan(WinogradArguments& a, int64_t threads) {
  const auto items = [&] { return Tiling<Size>(a.batch, a.height, a.width, a.item_tiles).items; };
  a.item_tiles = kMostTiles;
  while (items() < threads && a.item_tiles > 2 * Tiling<Size>::lanes) a.item_tiles /= 2;
  a.parts = std::clamp<int64_t>(threads / items(), 1, Blocks(a.out_channels).count);
  return items() * a.parts;
}

template <class Size>
struct Forward {
  using F = typename Size::F;
  using T = typename Size::T;
  using Axis = typename Size::Axis;
  static constexpr int results = Size::results, points = Size::points, square = Size::square;
  const WinogradArguments& a;
  const Tiling<Size> g{a.batch, a.height, a.width, a.item_tiles};
  const Blocks blocks{a.out_channels};
  const int64_t tiles = g.item_tiles();
  // Blocks of output channels whose products are held at once.
  const int64_t in_part = (blocks.count + a.parts - 1) / a.parts;
  const int64_t group = std::clamp<int64_t>(kProducts / (square * tiles * blocks.size), 1, in_part);
  const int64_t depths = (a.channels + kDepth - 1) / kDepth,
                depth = (a.channels + depths - 1) / std::max<int64_t>(depths, 1);
  // A point's data (blocks of two vectors of tiles, channels, tiles) and products (channels, tiles).
  const int64_t data_point = depth * tiles + kAlignment / sizeof(T), data_size = square * data_point;
  const int64_t product_point = group * blocks.size * tiles + kAlignment / sizeof(T);
  const Buffer<T> data = allocate<T>(data_size * (group == in_part ? 1 : depths), false);
  const Buffer<T> products = allocate<T>(square * product_point, false);
  const Buffer<T> finished = allocate<T>(results * results * tiles + kLanes<T>, false);
  const Buffer<T> row = allocate<T>(results * round_up(g.columns, kLanes<T>), false);
  const TransformedTiles<Size, points> transformed_tiles{g};

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
    for (int point = 0; point < square; ++point)
      for (int64_t tile = 0; tile < tiles; tile += wide)
        for (int64_t block = 0; block < count; ++block) {
          const T* u =
              static_cast<const T*>(a.packed) + ((first_block + block) * square + point) * step + channel * blocks.size;
          const T* v = transformed + point * data_point + tile * depth;
          T* m = products.get() + point * product_point + block * blocks.size * tiles + tile;
          const T* next = tile + wide < tiles || point + 1 == square ? u : u + step;
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
        V half[results][points];
        for (int q = 0; q < points; ++q) {
          V m[points], y[results];
          for (int p = 0; p < points; ++p) m[p] = at<T, kLanes<T>>(from + (p * points + q) * product_point);
          Axis::template products<T>(m, y);
          for (int i = 0; i < results; ++i) half[i][q] = y[i];
        }
        for (int i = 0; i < results; ++i) {
          V y[results];
          Axis::template products<T>(half[i], y);
          for (int j = 0; j < results; ++j)
            at<T, kLanes<T>>(finished.get() + (i * results + j) * tiles + t) = y[j] + bias;
        }
      }
      for (int64_t s = first_segment; s < last_segment; ++s) {
        const TileRows segment = tile_rows_of(g, s);
        const int64_t first_row = results * segment.first;
        for (int64_t y = first_row; y < std::min(first_row + results * segment.rows, g.height); ++y)
          store_row(finished.get() + (y % results) * results * tiles + (s - first_segment) * g.segment_tiles +
                        (y / results - segment.first) * g.columns,
                    segment.image, channel, y);
      }
    }
  }

  // Write a row of results: column j of each tile is at columns[j * tiles].
  void store_row(const T* columns, int64_t image, int64_t channel, int64_t y) const {
    for (int64_t x = 0; x < g.columns; x += kLanes<T>) {
      Vector<T, kLanes<T>> groups[results];
      for (int j = 0; j < results; ++j) groups[j] = load_vector(columns + j * tiles + x);
      store_groups<T, results>(groups, row.get() + results * x);
    }
    F* to = const_cast<F*>(static_cast<const F*>(a.out.data)) + image * a.out.batch + channel * a.out.channel +
            y * g.width * a.out.pixel;
    if (a.out.pixel == 1) {
      MOTIONRNN_EXT_INDEPENDENT
      for (int64_t x = 0; x < g.width; ++x) store(to + x, row[x]);
    } else {
      for (int64_t x = 0; x < g.width; ++x) store(to + x * a.out.pixel, row[x]);
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

template <class Size>
void forward(const WinogradArguments& a, int64_t begin, int64_t end) {
  const Forward<Size> step{a};
  for (int64_t item = begin; item < end; ++item) step.run(item);
}

}  // namespace
}  // namespace motionrnn_ext::cpu
