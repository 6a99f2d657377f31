// Maps of a band in framed planes: what the convolutions of the motion gates read.
#pragma once

#include <cstring>
#include <vector>

#include "cpu/allocate.h"
#include "cpu/channels.h"
#include "cpu/convolution.h"

namespace motionrnn_ext::cpu {
namespace {

// Pixels of a tile, the rows that one call of convolve() makes: 45 channels of logits take 92 KB in float32, which the
// second-level cache holds.
constexpr int64_t kTilePixels = 512;

template <class T>
struct Geometry {
  int64_t channels, motion, masks, width, height;
  int64_t taps, radius, pitch;
  int64_t band_rows;        // the most rows that a band owns
  int64_t plane;            // elements of a plane, with room for a vector block that ends past the last row
  int64_t tile_rows, tile;  // rows of a tile, and elements of one channel of its results

  explicit Geometry(const GatesArguments& a)
      : channels(a.channels),
        motion(a.motion),
        masks(a.masks),
        width(a.width),
        height(a.height),
        taps(int64_t(a.k) * a.k),
        radius((a.k - 1) / 2),
        pitch(a.width + 2 * radius),
        band_rows((a.height + a.bands - 1) / a.bands),
        plane(round_up((band_rows + 4 * radius) * pitch + 2 * radius + kStep<T>, kLanes<T>)),
        tile_rows(kTilePixels > pitch ? kTilePixels / pitch : 1),
        tile(tile_rows * pitch + kStep<T>) {}

  int64_t logits() const { return 3 * motion + masks; }
};

// The rows [first, last) of one image.
struct Band {
  int64_t image, first, last;
};

Band band_of(const GatesArguments& a, int64_t item) {
  const int64_t band = item % a.bands;
  return {item / a.bands, a.height * band / a.bands, a.height * (band + 1) / a.bands};
}

struct Rows {
  int64_t first, last;
};

// Return the band's rows and `more` rows on each side, as far as the map goes.
template <class T>
Rows around(const Geometry<T>& g, const Band& band, int64_t more) {
  return {band.first > more ? band.first - more : 0, band.last + more < g.height ? band.last + more : g.height};
}

// ---- Rows of maps, and planes

template <class T, class F>
MOTIONRNN_EXT_INLINE void load_row(const Image& map, int64_t b, int64_t channel, int64_t y, int64_t width, T* to) {
  load_channel<T, F>(to, map, b, channel, y * width, width);
}

template <class T, class F>
MOTIONRNN_EXT_INLINE void store_row(const T* from, const Image& map, int64_t b, int64_t channel, int64_t y,
                                    int64_t width) {
  store_channel<T, F>(from, map, b, channel, y * width, width);
}

// Planes of the rows [band.first - 2r, band.last + 2r). A frame of zeros surrounds the map's pixels.
template <class T>
struct Planes {
  const Geometry<T>& g;
  T* data;

  T* plane(int64_t channel) const { return data + channel * g.plane; }
  Planes from(int64_t channel) const { return {g, plane(channel)}; }
  // Return the address of row y of the map, at its first pixel.
  T* row(int64_t channel, const Band& band, int64_t y) const {
    return plane(channel) + (y - band.first + 2 * g.radius) * g.pitch + g.radius;
  }
  // Set all rows but `rows` to zero. The frame beside the map is zero from the start and stays so.
  void clear_outside(int64_t channels, const Band& band, Rows rows) const {
    const int64_t first = (rows.first - band.first + 2 * g.radius) * g.pitch;
    const int64_t last = (rows.last - band.first + 2 * g.radius) * g.pitch;
    for (int64_t c = 0; c < channels; ++c) {
      std::memset(plane(c), 0, first * sizeof(T));
      std::memset(plane(c) + last, 0, (g.plane - last) * sizeof(T));
    }
  }
  // Append the address that tap (i, j) reads for pixel (band.first, 0), for each channel and tap.
  void append_taps(std::vector<const T*>& rows, int64_t channel, int64_t channels) const {
    const int64_t k = 2 * g.radius + 1;
    for (int64_t c = channel; c < channel + channels; ++c)
      for (int64_t i = 0; i < k; ++i)
        for (int64_t j = 0; j < k; ++j) rows.push_back(plane(c) + (g.radius + i) * g.pitch + j);
  }
  void append_centres(std::vector<const T*>& rows, int64_t channel, int64_t channels) const {
    for (int64_t c = channel; c < channel + channels; ++c) rows.push_back(plane(c) + 2 * g.radius * g.pitch + g.radius);
  }
};

// Return the distance of row y from pixel (band.first, 0), in elements of a plane.
template <class T>
int64_t distance_of(const Geometry<T>& g, const Band& band, int64_t y) {
  return (y - band.first) * g.pitch;
}

// The same for rows without anything between them: the maps of small images take few vectors then.
template <class T, class F>
MOTIONRNN_EXT_INLINE void load_rows(const Image& map, int64_t b, int64_t channel, Rows rows, int64_t width, T* to) {
  load_channel<T, F>(to, map, b, channel, rows.first * width, (rows.last - rows.first) * width);
}

template <class T, class F>
MOTIONRNN_EXT_INLINE void store_rows(const T* from, const Image& map, int64_t b, int64_t channel, Rows rows,
                                     int64_t width) {
  store_channel<T, F>(from, map, b, channel, rows.first * width, (rows.last - rows.first) * width);
}

template <class T, class F>
void load_planes(const Planes<T>& to, int64_t channel, const Image& map, int64_t channels, const Band& band,
                 Rows rows) {
  const Planes<T> own = to.from(channel);
  own.clear_outside(channels, band, rows);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t y = rows.first; y < rows.last; ++y)
      load_row<T, F>(map, band.image, c, y, to.g.width, own.row(c, band, y));
}

// Copy rows of `width` elements, which lie `from_pitch` apart, to ones that lie `to_pitch` apart.
template <class T>
void copy_rows(const T* from, int64_t from_pitch, T* to, int64_t to_pitch, int64_t rows, int64_t width) {
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t x = 0; x < width; ++x) to[y * to_pitch + x] = from[y * from_pitch + x];
}

// Call run(first, last) for each tile of rows.
template <class T, class Run>
void in_tiles(const Geometry<T>& g, Rows rows, Run run) {
  for (int64_t y = rows.first; y < rows.last; y += g.tile_rows)
    run(y, y + g.tile_rows < rows.last ? y + g.tile_rows : rows.last);
}

}  // namespace
}  // namespace motionrnn_ext::cpu
