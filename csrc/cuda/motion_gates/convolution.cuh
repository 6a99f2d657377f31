// "Same" convolutions of a MotionGRU's gates on the tensor cores.
//
// A block takes 16 pixels of one image, the rows of mma's first operand: 16 x 1, or 8 x 2 or 4 x 4 where the image is
// narrow. It stages what their taps reach in shared memory. Output channels are mma's columns, eight to a tile, and a
// warp has one or two tiles. The summation index runs over the taps, and over the channels of each by fours:
//
//   quad   four channels of one tap at one pixel, the part of a lane in a step
//   step   four quads, of the four lanes of a pixel: one product for halves, two for floats
//
// The weight comes in fragments: for each step and tile, the quads of the 32 lanes, as mma's second operand wants them
// (packing.cuh). A warp reads them from the first-level cache, where all blocks of a multiprocessor find the same ones.
#pragma once

#include <algorithm>

#include "cuda/images.cuh"
#include "cuda/tensor_cores.cuh"

namespace motionrnn_ext::cuda {
namespace {

constexpr int kGatesWarps = 4;
constexpr int kGatesThreads = kGatesWarps * kWarp;
// Those of a block whose columns are many: a warp for each tile of them, so that its chain of instructions is short.
constexpr int kWideWarps = 8;
constexpr int kWideThreads = kWideWarps * kWarp;
constexpr int kTilePixels = 16;
constexpr int kTileColumns = 8;

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  static constexpr int kWords = 4 / kPerWord<T>;
  static constexpr int kProducts = kWords / 2;  // mma takes two words of each lane
  uint32_t word[kWords];
};

// How a sum over taps and channels is cut into steps. Shared memory holds the quads of one chunk of channels at a time.
struct Steps {
  int32_t taps, channels;
  int32_t quads;   // quads of a pixel in a chunk
  int32_t chunks;  // chunks of all channels
  int32_t count;   // steps of a chunk

  // At most 64 channels to a chunk, so that a tile of 3x3 taps takes 14 KB of floats; fewer with more taps.
  Steps(int32_t size, int32_t channels_) : Steps(size, channels_, size <= 5 ? 16 : size <= 9 ? 8 : 4) {}
  Steps(int32_t size, int32_t channels_, int32_t most) : taps(size * size), channels(channels_) {
    const int32_t all = (channels + 3) / 4;
    chunks = all > 0 ? (all + most - 1) / most : 0;
    quads = chunks > 0 ? (all + chunks - 1) / chunks : 0;
    count = (taps * quads + 3) / 4;
  }
  int32_t in_all() const { return chunks * count; }
};

// The tiles of an image, and what one reaches: `reach` pixels in each direction.
struct TileShape {
  int32_t log_width, reach, across, per_image;

  TileShape(int32_t height, int32_t width, int32_t reach_)
      : log_width(width > 8   ? 4
                  : width > 4 ? 3
                              : 2),
        reach(reach_) {
    const int32_t w = 1 << log_width, h = kTilePixels / w;
    across = (width + w - 1) / w;
    per_image = across * ((height + h - 1) / h);
  }
  MOTIONRNN_EXT_MATH int32_t row(int32_t pixel) const { return pixel >> log_width; }
  MOTIONRNN_EXT_MATH int32_t col(int32_t pixel) const { return pixel & ((1 << log_width) - 1); }
  MOTIONRNN_EXT_MATH int32_t staged_width() const { return (1 << log_width) + 2 * reach; }
  MOTIONRNN_EXT_MATH int32_t staged_height() const { return (kTilePixels >> log_width) + 2 * reach; }
};

// One factor of a sum, with the other's fragments.
struct Operand {
  Image image;
  Steps steps;
  int32_t vector;         // adjacent channels that may be read together: 4, 2 or 1
  int32_t pixel;          // quads from one staged pixel to the next
  const void* fragments;  // [chunk][step][tile][lane]
  int32_t tiles;

  // Pixels at a multiple of 128 bytes would share the banks of shared memory: four quads lie between them.
  Operand(const Image& image_, const Steps& steps_, int32_t vector_, const void* fragments_, int32_t columns)
      : image(image_),
        steps(steps_),
        vector(vector_),
        pixel(steps_.quads % 8 == 0 ? steps_.quads + 4 : steps_.quads),
        fragments(fragments_),
        tiles((columns + kTileColumns - 1) / kTileColumns) {}

  MOTIONRNN_EXT_MATH int32_t staged_quads(const TileShape& shape) const {
    return shape.staged_width() * shape.staged_height() * pixel;
  }
  // A place for each quad of the steps, rounded up to 16 bytes.
  MOTIONRNN_EXT_MATH int32_t places() const { return 4 * steps.count; }
  template <class T>
  size_t shared_bytes(const TileShape& shape) const {
    return staged_quads(shape) * sizeof(Quad<T>) + places() * sizeof(int32_t);
  }
};

// A tile of the batch, by default that of this block.
struct Tile {
  int32_t b, row, col;

  __device__ __forceinline__ explicit Tile(const TileShape& shape) : Tile(shape, blockIdx.x) {}
  __device__ __forceinline__ Tile(const TileShape& shape, int32_t index) {
    b = index / shape.per_image;
    const int32_t in_image = index - b * shape.per_image, down = in_image / shape.across;
    row = down * (kTilePixels >> shape.log_width);
    col = (in_image - down * shape.across) << shape.log_width;
  }
};

// A pixel of the block's tile in its image.
struct Pixel {
  int32_t b, row, col;
  bool inside;
  int32_t index;

  __device__ __forceinline__ Pixel(const Tile& tile, const TileShape& shape, int32_t height, int32_t width, int in_tile)
      : b(tile.b),
        row(tile.row + shape.row(in_tile)),
        col(tile.col + shape.col(in_tile)),
        inside(row < height && col < width),
        index(row * width + col) {}
};

// ---- Staging

template <class T, class Stored, int vector>
__device__ __forceinline__ Quad<T> load_quad(const Stored* from, int32_t channel_stride, int left) {
  float value[4] = {};
#pragma unroll
  for (int i = 0; i < 4; i += vector) {
    if (i >= left) continue;
    float part[vector];
    load_floats<vector>(from + int64_t(i) * channel_stride, part);
#pragma unroll
    for (int j = 0; j < vector; ++j) value[i + j] = i + j < left ? part[j] : 0.0f;
  }
  Quad<T> quad;
#pragma unroll
  for (int i = 0; i < Quad<T>::kWords; ++i) quad.word[i] = pack<T>(value + i * kPerWord<T>);
  return quad;
}

// Stage a chunk of an operand's channels around the block's tile: 0 outside of the image and beyond the channels.
// Neighbouring threads read neighbouring addresses.
template <class T, class Stored>
__device__ __forceinline__ void stage(const Operand& operand, int chunk, const Tile& tile, const TileShape& shape,
                                      int32_t height, int32_t width, Quad<T>* staged) {
  const int quads = operand.steps.quads, across = shape.staged_width(), pixels = across * shape.staged_height();
  const bool by_pixel = operand.image.channel == 1;
  const Stored* image = static_cast<const Stored*>(operand.image.data) + tile.b * operand.image.batch;
  for (int i = threadIdx.x; i < pixels * quads; i += blockDim.x) {
    const int fast = by_pixel ? quads : pixels, slow = i / fast, rest = i - slow * fast;
    const int pixel = by_pixel ? slow : rest, quad = by_pixel ? rest : slow;
    const int down = pixel / across, row = tile.row + down - shape.reach;
    const int col = tile.col + pixel - down * across - shape.reach;
    const int channel = (chunk * quads + quad) * 4, left = operand.steps.channels - channel;
    Quad<T> value{};
    if (unsigned(row) < unsigned(height) && unsigned(col) < unsigned(width) && left > 0) {
      const Stored* from =
          image + int64_t(channel) * operand.image.channel + int64_t(row * width + col) * operand.image.pixel;
      if (operand.vector == 4)
        value = load_quad<T, Stored, 4>(from, 1, left);
      else if (operand.vector == 2)
        value = load_quad<T, Stored, 2>(from, 1, left);
      else
        value = load_quad<T, Stored, 1>(from, operand.image.channel, left);
    }
    staged[pixel * operand.pixel + quad] = value;
  }
}

// Find where the quads of the steps lie among a pixel's staged ones; -1 for those that fill up the last step. `origin`
// is the place of the first tap.
__device__ __forceinline__ void find_places(const Operand& operand, int32_t size, const TileShape& shape,
                                            int32_t* places, int32_t origin = 0) {
  const int quads = operand.steps.quads;
#pragma unroll 1
  for (int i = threadIdx.x; i < operand.places(); i += blockDim.x) {
    const int tap = i / quads, down = tap / size;
    places[i] = tap < operand.steps.taps
                    ? (origin + down * shape.staged_width() + tap - down * size) * operand.pixel + i - tap * quads
                    : -1;
  }
}

// ---- Products

// Where a lane reads the factors of its products: both pixels, the places of its quads, and the fragments of its tiles.
template <class T, int kTiles>
struct Factors {
  const char* pixel[2];
  const int32_t* place;
  const Quad<T>* fragment[kTiles];
  int32_t step;  // fragments from one step to the next

  // Add the products of `kSteps` steps, and go on to the next. All loads come first, so that one wait serves them, and
  // none depends on a condition, which would make a branch of each. `whole`: no place is -1.
  template <int kSteps, bool whole>
  __device__ __forceinline__ void add(float (&sum)[kTiles][4]) {
    Quad<T> a[kSteps][2], b[kSteps][kTiles];
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        load_words<Quad<T>::kWords>(fragment[n], b[j][n].word);
        fragment[n] += step;
      }
      const int at = place[4 * j], read = whole ? at : max(at, 0);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        a[j][h] = *reinterpret_cast<const Quad<T>*>(pixel[h] + read * int(sizeof(Quad<T>)));
#pragma unroll
        for (uint32_t& word : a[j][h].word) word = whole || at >= 0 ? word : 0;
      }
    }
    place += 4 * kSteps;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
      add_products<T>(sum[n], [&](float (&chain)[4]) {
#pragma unroll
        for (int j = 0; j < kSteps; ++j)
#pragma unroll
          for (int product = 0; product < Quad<T>::kProducts; ++product)
            multiply<T>(chain, a[j][0].word + 2 * product, a[j][1].word + 2 * product,
                        make_uint2(b[j][n].word[2 * product], b[j][n].word[2 * product + 1]));
      });
  }
};

// Add the products of a staged chunk to the sums of a warp's tiles: `first`, and kGatesWarps further. A tile that does
// not exist gets those of the first one, and is not read.
template <class T, int kTiles>
__device__ __forceinline__ void multiply_chunk(const Operand& operand, int chunk, const TileShape& shape,
                                               const Quad<T>* staged, const int32_t* places, int first,
                                               float (&sum)[kTiles][4]) {
  constexpr int kTogether = sizeof(T) == 2 ? 2 : 1;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, across = shape.staged_width();
  const Steps& steps = operand.steps;
  Factors<T, kTiles> factors;
  for (int h = 0; h < 2; ++h) {
    const int pixel = shape.row(g + 8 * h) * across + shape.col(g + 8 * h);
    factors.pixel[h] = reinterpret_cast<const char*>(staged + pixel * operand.pixel);
  }
  factors.place = places + t, factors.step = operand.tiles * kWarp;
  for (int n = 0; n < kTiles; ++n) {
    const int tile = first + n * kGatesWarps < operand.tiles ? first + n * kGatesWarps : first;
    factors.fragment[n] = static_cast<const Quad<T>*>(operand.fragments) +
                          (int64_t(chunk) * steps.count * operand.tiles + tile) * kWarp + lane;
  }
  int whole = steps.taps * steps.quads / 4;
  const bool rest = whole < steps.count;
#pragma unroll 1
  for (; whole >= kTogether; whole -= kTogether) factors.template add<kTogether, true>(sum);
  if (kTogether > 1 && whole > 0) factors.template add<1, true>(sum);
  if (rest) factors.template add<1, false>(sum);
}

// An operand in a block: its staged quads and their places in shared memory, which begins at `shared`.
template <class T, class Stored>
struct Factor {
  const Operand& operand;
  const TileShape& shape;
  const Tile& tile;
  int32_t height, width;
  Quad<T>* staged;
  int32_t* places;

  __device__ __forceinline__ Factor(const Operand& operand_, const TileShape& shape_, const Tile& tile_,
                                    int32_t height_, int32_t width_, unsigned char* shared)
      : operand(operand_),
        shape(shape_),
        tile(tile_),
        height(height_),
        width(width_),
        staged(reinterpret_cast<Quad<T>*>(shared)),
        places(reinterpret_cast<int32_t*>(staged + operand.staged_quads(shape))) {}

  __device__ __forceinline__ unsigned char* end() const {
    return reinterpret_cast<unsigned char*>(places + operand.places());
  }
  // Every thread of the block; a barrier has to follow.
  __device__ __forceinline__ void begin(int32_t size) const {
    find_places(operand, size, shape, places);
    stage<T, Stored>(operand, 0, tile, shape, height, width, staged);
  }
  // Add the products of the staged chunk, where there is one chunk.
  template <int kTiles>
  __device__ __forceinline__ void multiply_staged(int first, float (&sum)[kTiles][4]) const {
    if (first < operand.tiles) multiply_chunk<T>(operand, 0, shape, staged, places, first, sum);
  }
  // Add the products of all chunks. Every thread of the block takes part, for the barriers.
  template <int kTiles>
  __device__ __forceinline__ void multiply_all(int first, float (&sum)[kTiles][4]) const {
    for (int chunk = 0; chunk < operand.steps.chunks; ++chunk) {
      if (chunk > 0) {
        __syncthreads();
        stage<T, Stored>(operand, chunk, tile, shape, height, width, staged);
        __syncthreads();
      }
      if (first < operand.tiles) multiply_chunk<T>(operand, chunk, shape, staged, places, first, sum);
    }
  }
};

// The output channel of element `i` of a lane's sums in a tile, and its pixel among the 16.
__device__ __forceinline__ int column_of(int tile, int i) { return tile * kTileColumns + threadIdx.x % 4 * 2 + i % 2; }
__device__ __forceinline__ int pixel_of(int i) { return threadIdx.x % kWarp / 4 + i / 2 * 8; }

}  // namespace
}  // namespace motionrnn_ext::cuda
