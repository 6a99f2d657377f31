// The gradient of the weight, summed over steps: dU = dM V^T for each point, over the tiles of all images of all steps,
// and then dw = G^T dU G. The sums are taken in the order of the tiles, whatever the number of threads.
#pragma once

#include "cpu/winograd/packing.h"
#include "cpu/winograd/tiles.h"

namespace motionrnn_ext::cpu {
namespace {

#if defined(MOTIONRNN_EXT_SHUFFLE)
// Exchange the blocks of `half` x `half` elements beside the diagonal, and then the smaller ones.
template <class T, int half, int... i>
MOTIONRNN_EXT_INLINE void exchange(Vector<T, kLanes<T>> (&rows)[kLanes<T>], std::integer_sequence<int, i...> lanes) {
  for (int r = 0; r < kLanes<T>; ++r) {
    if ((r & half) != 0) continue;
    const Vector<T, kLanes<T>> a = rows[r], b = rows[r + half];
    rows[r] = __builtin_shufflevector(a, b, ((i & half) == 0 ? i : kLanes<T> + i - half)...);
    rows[r + half] = __builtin_shufflevector(a, b, ((i & half) == 0 ? i + half : kLanes<T> + i)...);
  }
  if constexpr (half > 1) exchange<T, half / 2>(rows, lanes);
}
#endif

template <class T>
MOTIONRNN_EXT_INLINE void transpose(Vector<T, kLanes<T>> (&rows)[kLanes<T>]) {
#if defined(MOTIONRNN_EXT_SHUFFLE)
  exchange<T, kLanes<T> / 2>(rows, std::make_integer_sequence<int, kLanes<T>>());
#else
  for (int r = 0; r < kLanes<T>; ++r)
    for (int i = 0; i < r; ++i) {
      const T element = rows[r][i];
      rows[r][i] = rows[i][r], rows[i][r] = element;
    }
#endif
}

// The most tiles of an item, and the distance of the rows of gradients.
constexpr int64_t kItemTiles = 64;

// Blocks of output channels whose gradients are transformed together.
constexpr int64_t kGroup = 2;

// The blocks [begin, end) of output channels.
template <class Size>
struct WeightGradient {
  using T = typename Size::T;
  using Axis = typename Size::Axis;
  static constexpr int points = Size::points, square = Size::square, k = Size::k;
  static constexpr int64_t lanes = kLanes<T>, wide = 2 * lanes;
  const WinogradArguments& a;
  const int64_t begin, end;
  const Tiling<Size> g{a.steps * a.batch, a.height, a.width, kItemTiles};
  const Blocks blocks{a.out_channels};
  const int64_t tiles = g.in_item * g.segment_rows * g.columns;
  const int64_t in = round_up(a.channels, lanes);
  // A point's data: (pairs of vectors of channels, tiles, channels).
  const int64_t data_point = tiles * in + kAlignment / sizeof(T);
  const Buffer<T> data = allocate<T>(square * data_point, false);
  // The data of a vector of channels, before it is transposed: (points, channels, tiles).
  const int64_t row = round_up(tiles + lanes, lanes);
  const Buffer<T> rows = allocate<T>(square * lanes * row, false);
  // A point's gradients: (parts of kItemTiles tiles, channels, tiles).
  const int64_t parts = (tiles + kItemTiles - 1) / kItemTiles;
  const int64_t grad_point = (parts * kGroup * blocks.size + 1) * kItemTiles;
  const Buffer<T> grads = allocate<T>(square * grad_point, true);
  // The sums: (blocks, points, pairs of vectors of channels, output channels, channels).
  const int64_t sums_point = blocks.size * in;
  const Buffer<T> sums = allocate<T>((end - begin) * square * sums_point, false);
  const TransformedTiles<Size, points> data_tiles{g};
  const TransformedTiles<Size, Size::results> grad_tiles{g};

  // Call f(segment, the step, the image in it, the first of its tiles) for the segments of an item, and return the
  // number of their tiles.
  template <class Call>
  int64_t for_segments(int64_t item, Call f) const {
    int64_t tile = 0;
    for (int64_t s = item * g.in_item; s < std::min(g.segments, (item + 1) * g.in_item); ++s) {
      const TileRows segment = tile_rows_of(g, s);
      f(segment, segment.image / a.batch, segment.image % a.batch, tile);
      tile += segment.rows * g.columns;
    }
    return tile;
  }

  // Transform the data of a vector of channels, and write it with a row of channels for each tile.
  void transform_channels(int64_t item, int64_t first) const {
    int64_t count = 0;
    for (int64_t c = 0; c < lanes; ++c) {
      T* to = rows.get() + c * row;
      if (first + c >= a.channels) {
        for (int point = 0; point < square; ++point) std::fill_n(to + point * lanes * row, row, T(0));
        continue;
      }
      count = for_segments(item, [&](const TileRows& segment, int64_t step, int64_t image, int64_t tile) {
        data_tiles.load(a.xs[step], image, first + c, segment);
        for (int64_t t = 0; t < segment.rows * g.columns; t += lanes) data_tiles.store(t, to + tile + t, lanes * row);
      });
    }
    const int64_t pair = first / wide * wide, width = std::min(wide, in - pair);
    for (int point = 0; point < square; ++point)
      for (int64_t t = 0; t < count; t += lanes) {
        Vector<T, lanes> rows_of_square[lanes];
        for (int64_t c = 0; c < lanes; ++c)
          rows_of_square[c] = at<T, lanes>(rows.get() + (point * lanes + c) * row + t);
        transpose<T>(rows_of_square);
        T* to = data.get() + point * data_point + pair * tiles + t * width + (first - pair);
        for (int64_t i = 0; i < std::min(lanes, count - t); ++i) at<T, lanes>(to + i * width) = rows_of_square[i];
      }
  }

  void transform_grads(int64_t item, int64_t block, int64_t count) const {
    const int64_t first = block * blocks.size, outs = std::min(count * blocks.size, a.out_channels - first);
    for (int64_t o = 0; o < outs; ++o)
      for_segments(item, [&](const TileRows& segment, int64_t step, int64_t image, int64_t tile) {
        grad_tiles.load(a.grads[step], image, first + o, segment);
        // Vectors end in the next channel, which is written later.
        for (int64_t t = 0; t < segment.rows * g.columns; t += lanes) {
          const int64_t part = (tile + t) / kItemTiles, in_part = (tile + t) % kItemTiles;
          T* to = grads.get() + (part * kGroup * blocks.size + o) * kItemTiles + in_part;
          grad_tiles.store(t, to, grad_point);
        }
      });
  }

  void multiply(int64_t block, int64_t count, int64_t depth, bool accumulate) const {
    const auto two = multiply_for<T, kItemTiles>(blocks.size, 2), one = multiply_for<T, kItemTiles>(blocks.size, 1);
    for (int point = 0; point < square; ++point)
      for (int64_t pair = 0; pair < in; pair += wide)
        for (int64_t i = 0; i < count; ++i) {
          const int64_t width = std::min(wide, in - pair);
          T* to = sums.get() + ((block + i - begin) * square + point) * sums_point + pair * blocks.size;
          for (int64_t part = 0; part * kItemTiles < depth; ++part) {
            const int64_t tile = part * kItemTiles;
            (width == wide ? two : one)(
                grads.get() + point * grad_point + (part * kGroup + i) * blocks.size * kItemTiles,
                data.get() + point * data_point + pair * tiles + tile * width, std::min(kItemTiles, depth - tile), to,
                width, accumulate || part > 0, to + width * blocks.size);
          }
        }
  }

  void finish() const {
    constexpr int taps = k * k;
    using V = Vector<T, lanes>;
    alignas(kAlignment) T w[taps][lanes];
    for (int64_t o = begin * blocks.size; o < std::min(end * blocks.size, a.out_channels); ++o)
      for (int64_t c = 0; c < a.channels; c += lanes) {
        const int64_t pair = c / wide * wide, width = std::min(wide, in - pair);
        const T* from = sums.get() + (o / blocks.size - begin) * square * sums_point + pair * blocks.size +
                        o % blocks.size * width + (c - pair);
        V half[k][points];
        for (int q = 0; q < points; ++q) {
          V u[points], t[k];
          for (int p = 0; p < points; ++p) u[p] = at<T, lanes>(from + (p * points + q) * sums_point);
          Axis::template tap_gradients<T>(u, t);
          for (int y = 0; y < k; ++y) half[y][q] = t[y];
        }
        for (int y = 0; y < k; ++y) {
          V t[k];
          Axis::template tap_gradients<T>(half[y], t);
          for (int x = 0; x < k; ++x) at<T, lanes>(w[y * k + x]) = t[x];
        }
        T* to = static_cast<T*>(a.grad_weight) + (o * a.channels + c) * taps;
        for (int64_t i = 0; i < std::min(lanes, a.channels - c); ++i)
          for (int tap = 0; tap < taps; ++tap) to[i * taps + tap] = w[tap][i];
      }
  }

  void run() const {
    for (int64_t item = 0; item < g.items; ++item) {
      for (int64_t c = 0; c < in; c += lanes) transform_channels(item, c);
      const int64_t depth = for_segments(item, [](const TileRows&, int64_t, int64_t, int64_t) {});
      for (int64_t block = begin; block < end; block += kGroup) {
        const int64_t count = std::min(kGroup, end - block);
        transform_grads(item, block, count);
        multiply(block, count, depth, item > 0);
      }
    }
    finish();
  }
};

template <class Size>
void weight_gradient(const WinogradArguments& a, int64_t begin, int64_t end) {
  WeightGradient<Size>{a, begin, end}.run();
}

}  // namespace
}  // namespace motionrnn_ext::cpu
