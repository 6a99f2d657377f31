// The convolutional gates of a MotionGRU step and the motion they make, forward and backward, band by band of rows:
//
//   [u, r] = W_s * [x, F],  m = W_m * x      over the band and r rows around it
//   z = W_z * [x, s(r) F]                    over the band; then F_t and D' where z was made
//
// and backward in the opposite order. Whatever is convolved lies in framed planes (convolution.h), a band's with 2r
// rows around it: what a band needs of its neighbours it computes again, so that no band waits for another. What maps
// do to one element is math/motion_gru.h's. Compiled once per instruction set.
#include <algorithm>
#include <vector>

#include "cpu/allocate.h"
#include "cpu/channels.h"
#include "cpu/convolution.h"
#include "math/motion_gru.h"

namespace motionrnn_ext::cpu {
namespace {

constexpr int64_t kWavePixels = 2048;  // of the bands that give to the weights together: the fewer, the more ends cost
constexpr int64_t kTilePixels = 512;  // of one go: 45 channels of logits take 92 KB in float32, within the second cache

template <class T>
struct Geometry {
  int64_t channels, motion, masks, width, height;
  int64_t taps, radius, pitch;
  int64_t band_rows;        // at most, the own rows of a band
  int64_t plane;            // elements, with room for a block that ends past the last row
  int64_t tile_rows, tile;  // rows of a go, and elements of a channel of its results

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

struct Band {
  int64_t image, first, last;  // rows
};

Band band_of(const GatesArguments& a, int64_t item) {
  const int64_t band = item % a.bands;
  return {item / a.bands, a.height * band / a.bands, a.height * (band + 1) / a.bands};
}

struct Rows {
  int64_t first, last;
};

// The band's rows and `more` on each side, as far as the map goes.
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

// Planes of the rows [band.first - 2r, band.last + 2r): zero beside the map's, above and below.
template <class T>
struct Planes {
  const Geometry<T>& g;
  T* data;

  T* plane(int64_t channel) const { return data + channel * g.plane; }
  Planes from(int64_t channel) const { return {g, plane(channel)}; }
  // Row y of the map, at its first pixel.
  T* row(int64_t channel, const Band& band, int64_t y) const {
    return plane(channel) + (y - band.first + 2 * g.radius) * g.pitch + g.radius;
  }
  // All rows but `rows` to zero; frames are zero from the start and stay so.
  void clear_outside(int64_t channels, const Band& band, Rows rows) const {
    const int64_t first = (rows.first - band.first + 2 * g.radius) * g.pitch;
    const int64_t last = (rows.last - band.first + 2 * g.radius) * g.pitch;
    for (int64_t c = 0; c < channels; ++c) {
      std::memset(plane(c), 0, first * sizeof(T));
      std::memset(plane(c) + last, 0, (g.plane - last) * sizeof(T));
    }
  }
  // What tap (i, j) reads, for each channel and tap, from the place of pixel (band.first, 0) on.
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

// Row y in elements from the place of pixel (band.first, 0).
template <class T>
int64_t place(const Geometry<T>& g, const Band& band, int64_t y) {
  return (y - band.first) * g.pitch;
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

// Calls run(first, last) for tiles of rows.
template <class T, class Run>
void in_tiles(const Geometry<T>& g, Rows rows, Run run) {
  for (int64_t y = rows.first; y < rows.last; y += g.tile_rows)
    run(y, y + g.tile_rows < rows.last ? y + g.tile_rows : rows.last);
}

// ---- Weights, as convolve() reads them

// One convolution: its depth, its channels in whole blocks, and where its weights stand among the packed.
struct Convolution {
  int64_t depth, outs, weights, biases;
};

// Every convolution of a direction, and how much their weights take together.
template <class T>
struct Plan {
  Convolution gates, mask, candidate;     // forward
  Convolution to_reset, to_offset, to_x;  // backward: of r F, F and x
  int64_t size = 0;

  explicit Plan(const Geometry<T>& g) {
    const auto add = [&](int64_t in, int64_t out) {
      const Convolution c{in * g.taps, round_up(out, kOuts), size, size + in * g.taps * round_up(out, kOuts)};
      size = c.biases + c.outs;
      return c;
    };
    gates = add(g.channels + g.motion, 2 * g.motion);
    mask = add(g.channels, g.masks);
    candidate = add(g.channels + g.motion, g.motion);
    to_reset = add(g.motion, g.motion);
    to_offset = add(2 * g.motion, g.motion);
    to_x = add(g.logits(), g.channels);
  }
};

// A weight (out, in, k, k), part of it: weight[o + first_out][i] for `in` channels, at channel `at` of the depth.
template <class T, class F>
void pack_weight(const Geometry<T>& g, T* packed, const Convolution& c, const F* weight, int64_t first_out,
                 int64_t outs, int64_t in, int64_t at) {
  for (int64_t o = 0; o < outs; ++o) {
    T* to = packed + c.weights + o / kOuts * c.depth * kOuts + at * g.taps * kOuts + o % kOuts;
    const F* from = weight + (first_out + o) * in * g.taps;
    for (int64_t i = 0; i < in * g.taps; ++i) to[i * kOuts] = load(from[i]);
  }
}

// The transpose, for gradients of inputs: channels swapped, taps turned round.
template <class T, class F>
void pack_transposed(const Geometry<T>& g, T* packed, const Convolution& c, const F* weight, int64_t outs, int64_t in) {
  for (int64_t i = 0; i < in; ++i) {
    T* to = packed + c.weights + i / kOuts * c.depth * kOuts + i % kOuts;
    for (int64_t o = 0; o < outs; ++o)
      for (int64_t tap = 0; tap < g.taps; ++tap)
        to[(o * g.taps + g.taps - 1 - tap) * kOuts] = load(weight[(o * in + i) * g.taps + tap]);
  }
}

template <class T, class F>
void pack(const GatesArguments& a, bool backward) {
  const Geometry<T> g(a);
  const Plan<T> plan(g);
  T* packed = static_cast<T*>(a.packed);
  std::memset(packed, 0, plan.size * sizeof(T));
  const F *x_weight = static_cast<const F*>(a.x_weight), *x_bias = static_cast<const F*>(a.x_bias);
  const F *state_weight = static_cast<const F*>(a.state_weight), *candidate = static_cast<const F*>(a.candidate_weight);
  if (backward) {
    pack_transposed(g, packed, plan.to_reset, candidate, g.motion, g.motion);
    pack_transposed(g, packed, plan.to_offset, state_weight, 2 * g.motion, g.motion);
    pack_transposed(g, packed, plan.to_x, x_weight, g.logits(), g.channels);
    return;
  }
  const auto add = [&](const Convolution& c, int64_t first_out, int64_t outs) {
    pack_weight(g, packed, c, x_weight, first_out, outs, g.channels, 0);
    for (int64_t o = 0; o < outs; ++o) packed[c.biases + o] = load(x_bias[first_out + o]);
  };
  add(plan.gates, 0, 2 * g.motion);
  add(plan.candidate, 2 * g.motion, g.motion);
  add(plan.mask, 3 * g.motion, g.masks);
  pack_weight(g, packed, plan.gates, state_weight, 0, 2 * g.motion, g.motion, g.channels);
  pack_weight(g, packed, plan.candidate, candidate, 0, g.motion, g.motion, g.channels);
}

// ---- Forward

template <class T, class F>
void forward(const GatesArguments& a, int64_t begin, int64_t end) {
  const Geometry<T> g(a);
  const Plan<T> plan(g);
  const T* packed = static_cast<const T*>(a.packed);
  const auto memory = allocate<T>((g.channels + 2 * g.motion) * g.plane, true);
  const auto logits = allocate<T>((plan.gates.outs + plan.mask.outs) * g.tile, false);
  const auto buffer = allocate<T>(4 * g.width, false);
  const Planes<T> planes{g, memory.get()};  // x, F, s(r) F
  const int64_t offset_plane = g.channels, reset_plane = g.channels + g.motion;
  std::vector<const T*> state_rows, candidate_rows;
  planes.append_taps(state_rows, 0, g.channels + g.motion);
  planes.append_taps(candidate_rows, 0, g.channels);
  planes.append_taps(candidate_rows, reset_plane, g.motion);
  const auto run = [&](const Convolution& c, const std::vector<const T*>& rows, T* to, int64_t first, int64_t last) {
    convolve(rows.data(), c.depth, packed + c.weights, packed + c.biases, c.outs, to, g.tile, first, last);
  };
  for (int64_t item = begin; item < end; ++item) {
    const Band band = band_of(a, item);
    const Rows read = around(g, band, 2 * g.radius), reset = around(g, band, g.radius);
    load_planes<T, F>(planes, 0, a.x, g.channels, band, read);
    load_planes<T, T>(planes, offset_plane, a.offset, g.motion, band, read);
    planes.from(reset_plane).clear_outside(g.motion, band, reset);

    in_tiles(g, reset, [&](int64_t first, int64_t last) {
      T* masks = logits.get() + plan.gates.outs * g.tile;
      run(plan.gates, state_rows, logits.get(), place(g, band, first), place(g, band, last));
      run(plan.mask, state_rows, masks, place(g, band, first), place(g, band, last));
      for (int64_t y = first; y < last; ++y) {
        const bool own = y >= band.first && y < band.last;
        const int64_t at = (y - first) * g.pitch;
        for (int64_t m = 0; m < g.motion; ++m) {
          const T* reset_logits = logits.get() + (g.motion + m) * g.tile + at;
          const T* offset = planes.row(offset_plane + m, band, y);
          T* to = planes.row(reset_plane + m, band, y);
#pragma GCC ivdep
          for (int64_t x = 0; x < g.width; ++x) {
            const T in[] = {reset_logits[x], offset[x]};
            T out[1];
            math::MotionReset::apply(in, out, {});
            to[x] = out[0];
          }
          if (!own) continue;
          store_row<T, F>(reset_logits, a.reset, band.image, m, y, g.width);
          store_row<T, F>(logits.get() + m * g.tile + at, a.update, band.image, m, y, g.width);
        }
        for (int64_t m = 0; own && m < g.masks; ++m)
          store_row<T, F>(masks + m * g.tile + at, a.mask, band.image, m, y, g.width);
      }
    });

    in_tiles(g, {band.first, band.last}, [&](int64_t first, int64_t last) {
      run(plan.candidate, candidate_rows, logits.get(), place(g, band, first), place(g, band, last));
      T *update = buffer.get(), *trend = update + g.width, *new_offset = trend + g.width,
        *new_trend = new_offset + g.width;
      for (int64_t y = first; y < last; ++y)
        for (int64_t m = 0; m < g.motion; ++m) {
          const T* candidate = logits.get() + m * g.tile + (y - first) * g.pitch;
          const T* offset = planes.row(offset_plane + m, band, y);
          load_row<T, F>(a.update, band.image, m, y, g.width, update);
          load_row<T, T>(a.trend, band.image, m, y, g.width, trend);
#pragma GCC ivdep
          for (int64_t x = 0; x < g.width; ++x) {
            const T in[] = {update[x], candidate[x], offset[x], trend[x]};
            T out[2];
            math::MotionUpdate::apply(in, out, {static_cast<T>(a.alpha), static_cast<T>(a.max_offset)});
            new_offset[x] = out[0];
            new_trend[x] = out[1];
          }
          store_row<T, F>(candidate, a.candidate, band.image, m, y, g.width);
          store_row<T, T>(new_offset, a.new_offset, band.image, m, y, g.width);
          store_row<T, T>(new_trend, a.new_trend, band.image, m, y, g.width);
        }
    });
  }
}

// ---- Backward

// Products of gradients of logits with what their convolutions read, a constant 1 for the bias last.
template <class T>
struct WeightGradients {
  struct Part {
    int64_t first, outs, depth, sums;  // logits, in whole blocks; place of the sums (outs, depth)
  };
  Part gates, candidate, mask;
  int64_t size = 0;

  explicit WeightGradients(const Geometry<T>& g) {
    const auto add = [&](int64_t first, int64_t outs, int64_t in) {
      const Part part{first, round_up(outs, kOuts), round_up(in * g.taps + 1, kVectors), size};
      size += part.outs * part.depth;
      return part;
    };
    gates = add(0, 2 * g.motion, g.channels + g.motion);
    candidate = add(2 * g.motion, g.motion, g.channels + g.motion);
    mask = add(3 * g.motion, g.masks, g.channels);
  }
};

template <class T, class F>
struct Backward {
  const GatesArguments& a;
  const Geometry<T> g;
  const Plan<T> plan{g};
  const WeightGradients<T> weights{g};
  // Planes of a band: x, F, s(r) F; gradients of u, r, z, m; ones. Bands of a wave lie one after the other.
  const int64_t offset_plane = g.channels, reset_plane = g.channels + g.motion, grad_planes = g.channels + 2 * g.motion;
  const int64_t of_update = grad_planes, of_reset = of_update + g.motion, of_candidate = of_reset + g.motion;
  const int64_t of_mask = of_candidate + g.motion, ones = of_mask + g.masks;
  const int64_t band_size = (ones + 1) * g.plane;
  const int64_t in_group = a.grad_x_weight == nullptr ? 1 : (a.batch * a.bands + a.groups - 1) / a.groups;
  const int64_t wave = std::min(in_group, std::max<int64_t>(1, kWavePixels / (g.band_rows * g.pitch)));
  const Buffer<T> memory = allocate<T>(wave * band_size, true);
  const Buffer<T> results = allocate<T>(std::max(plan.to_x.outs, plan.to_offset.outs) * g.tile, false);
  const Buffer<T> direct = allocate<T>(g.motion * g.band_rows * g.width, false);  // F's gradient past the convolutions
  const Buffer<T> buffer = allocate<T>(7 * g.width, false);
  // What convolutions of gradients read, and what those of the forward pass read, and the gradients of their results.
  std::vector<const T*> candidate_taps, state_taps, all_taps, state_rows, candidate_rows, mask_rows, centres;
  std::vector<Segment> segments;
  Planes<T> planes{g, memory.get()};  // of the band at hand
  Band band{};
  Rows own{}, near{}, read{};  // the band's, and with r and 2r around them

  explicit Backward(const GatesArguments& a_) : a(a_), g(a_) {
    planes.append_taps(candidate_taps, of_candidate, g.motion);
    planes.append_taps(state_taps, of_update, 2 * g.motion);
    planes.append_taps(all_taps, of_update, g.logits());
    planes.append_taps(mask_rows, 0, g.channels);
    state_rows = candidate_rows = mask_rows;
    planes.append_taps(state_rows, offset_plane, g.motion);
    planes.append_taps(candidate_rows, reset_plane, g.motion);
    planes.append_centres(centres, of_update, g.logits());
    // The bias reads 1; a last block of rows or of channels may end past them.
    for (std::vector<const T*>* rows : {&state_rows, &candidate_rows, &mask_rows, &centres})
      for (int i = 0; i < kOuts; ++i) planes.append_centres(*rows, ones, 1);
    for (int64_t i = 0; i < wave; ++i) std::fill_n(memory.get() + i * band_size + ones * g.plane, g.plane, T(1));
  }

  void start(int64_t item, int64_t in_wave) {
    band = band_of(a, item);
    own = {band.first, band.last}, near = around(g, band, g.radius), read = around(g, band, 2 * g.radius);
    planes.data = memory.get() + in_wave * band_size;
    if (in_wave == 0) segments.clear();
    segments.push_back({in_wave * band_size, in_wave * band_size + place(g, band, own.last)});
  }

  void load() {
    load_planes<T, T>(planes, offset_plane, a.offset, g.motion, band, read);
    if (a.grad_x_weight != nullptr) load_planes<T, F>(planes, 0, a.x, g.channels, band, near);
    load_planes<T, F>(planes, of_mask, a.grad_mask, g.masks, band, near);
    for (const int64_t part : {of_update, of_reset, reset_plane}) planes.from(part).clear_outside(g.motion, band, near);
    planes.from(of_candidate).clear_outside(g.motion, band, read);
  }

  bool is_own(int64_t y) const { return y >= own.first && y < own.last; }
  T* direct_row(int64_t m, int64_t y) const { return direct.get() + (m * g.band_rows + y - band.first) * g.width; }

  // To u, z, D, and directly to F.
  void differentiate_update() {
    T *grad_offset = buffer.get(), *grad_trend = grad_offset + g.width, *update = grad_trend + g.width;
    T *candidate = update + g.width, *new_offset = candidate + g.width, *unused = new_offset + g.width;
    T* to_trend = unused + g.width;
    for (int64_t m = 0; m < g.motion; ++m)
      for (int64_t y = read.first; y < read.last; ++y) {
        load_row<T, T>(a.grad_new_offset, band.image, m, y, g.width, grad_offset);
        load_row<T, T>(a.grad_new_trend, band.image, m, y, g.width, grad_trend);
        load_row<T, F>(a.update, band.image, m, y, g.width, update);
        load_row<T, F>(a.candidate, band.image, m, y, g.width, candidate);
        load_row<T, T>(a.new_offset, band.image, m, y, g.width, new_offset);
        const T* offset = planes.row(offset_plane + m, band, y);
        T* to_update = y >= near.first && y < near.last ? planes.row(of_update + m, band, y) : unused;
        T* to_candidate = planes.row(of_candidate + m, band, y);
        T* to_offset = is_own(y) ? direct_row(m, y) : unused;
#pragma GCC ivdep
        for (int64_t x = 0; x < g.width; ++x) {
          const T in[] = {grad_offset[x], grad_trend[x], update[x], candidate[x], offset[x], new_offset[x]};
          T out[4];
          math::MotionUpdateBackward::apply(in, out, {static_cast<T>(a.alpha), static_cast<T>(a.max_offset)});
          to_update[x] = out[0];
          to_candidate[x] = out[1];
          to_offset[x] = out[2];
          to_trend[x] = out[3];
        }
        if (is_own(y) && a.grad_trend.data != nullptr)
          store_row<T, T>(to_trend, a.grad_trend, band.image, m, y, g.width);
      }
  }

  void convolve_rows(const Convolution& c, const std::vector<const T*>& rows, int64_t first, int64_t last) {
    const T* packed = static_cast<const T*>(a.packed);
    const int64_t at = planes.data - memory.get();
    convolve(rows.data(), c.depth, packed + c.weights, packed + c.biases, c.outs, results.get(), g.tile,
             at + place(g, band, first), at + place(g, band, last));
  }

  // By s(r) F, which is made again: to r, and to F.
  void differentiate_reset() {
    T *reset = buffer.get(), *through = reset + g.width;
    in_tiles(g, near, [&](int64_t first, int64_t last) {
      convolve_rows(plan.to_reset, candidate_taps, first, last);
      for (int64_t m = 0; m < g.motion; ++m)
        for (int64_t y = first; y < last; ++y) {
          load_row<T, F>(a.reset, band.image, m, y, g.width, reset);
          const T* grad = results.get() + m * g.tile + (y - first) * g.pitch;
          const T* offset = planes.row(offset_plane + m, band, y);
          T *to_reset = planes.row(of_reset + m, band, y), *moved = planes.row(reset_plane + m, band, y);
#pragma GCC ivdep
          for (int64_t x = 0; x < g.width; ++x) {
            const T in[] = {grad[x], reset[x], offset[x]}, again[] = {reset[x], offset[x]};
            T out[2], value[1];
            math::MotionResetBackward::apply(in, out, {});
            math::MotionReset::apply(again, value, {});
            to_reset[x] = out[0];
            through[x] = out[1];
            moved[x] = value[0];
          }
          if (!is_own(y)) continue;
          T* to_offset = direct_row(m, y);
          for (int64_t x = 0; x < g.width; ++x) to_offset[x] += through[x];
        }
    });
  }

  // To F and x, by the convolutions that read them.
  void differentiate_inputs() {
    in_tiles(g, own, [&](int64_t first, int64_t last) {
      const auto result = [&](int64_t channel, int64_t y) {
        return results.get() + channel * g.tile + (y - first) * g.pitch;
      };
      if (a.grad_offset.data != nullptr) {
        convolve_rows(plan.to_offset, state_taps, first, last);
        for (int64_t m = 0; m < g.motion; ++m)
          for (int64_t y = first; y < last; ++y) {
            T *sum = result(m, y), *more = direct_row(m, y);
            for (int64_t x = 0; x < g.width; ++x) sum[x] += more[x];
            store_row<T, T>(sum, a.grad_offset, band.image, m, y, g.width);
          }
      }
      if (a.grad_x.data != nullptr) {
        convolve_rows(plan.to_x, all_taps, first, last);
        for (int64_t c = 0; c < g.channels; ++c)
          for (int64_t y = first; y < last; ++y) store_row<T, F>(result(c, y), a.grad_x, band.image, c, y, g.width);
      }
    });
  }

  // To the weights, by all bands of the wave.
  void sum_wave(T* sums) {
    const auto sum = [&](const typename WeightGradients<T>::Part& part, const std::vector<const T*>& rows) {
      correlate(centres.data() + part.first, part.outs, rows.data(), part.depth, segments.data(),
                static_cast<int64_t>(segments.size()), sums + part.sums);
    };
    sum(weights.gates, state_rows);
    sum(weights.candidate, candidate_rows);
    sum(weights.mask, mask_rows);
  }
};

// Groups [begin, end) of items, each with sums of its own for the weights.
template <class T, class F>
void backward(const GatesArguments& a, int64_t begin, int64_t end) {
  Backward<T, F> step(a);
  const int64_t items = a.batch * a.bands;
  for (int64_t group = begin; group < end; ++group) {
    T* sums = a.sums == nullptr ? nullptr : static_cast<T*>(a.sums) + group * step.weights.size;
    if (sums != nullptr) std::memset(sums, 0, step.weights.size * sizeof(T));
    const int64_t first = items * group / a.groups, last = items * (group + 1) / a.groups;
    for (int64_t item = first; item < last; ++item) {
      const int64_t in_wave = (item - first) % step.wave;
      step.start(item, in_wave);
      step.load();
      step.differentiate_update();
      step.differentiate_reset();
      step.differentiate_inputs();
      if (sums != nullptr && (in_wave + 1 == step.wave || item + 1 == last)) step.sum_wave(sums);
    }
  }
}

// The sums of all groups in a fixed order: with one number of threads results do not depend on timing.
template <class T, class F>
void sum_weights(const GatesArguments& a) {
  const Geometry<T> g(a);
  const WeightGradients<T> weights(g);
  T* sums = static_cast<T*>(a.sums);
  for (int64_t group = 1; group < a.groups; ++group)
    for (int64_t i = 0; i < weights.size; ++i) sums[i] += sums[group * weights.size + i];
  F *x_weight = static_cast<F*>(a.grad_x_weight), *x_bias = static_cast<F*>(a.grad_x_bias);
  const auto write = [&](const typename WeightGradients<T>::Part& part, int64_t outs, F* state_weight) {
    const int64_t from_x = g.channels * g.taps, from_state = g.motion * g.taps;
    for (int64_t o = 0; o < outs; ++o) {
      const T* row = sums + part.sums + o * part.depth;
      for (int64_t i = 0; i < from_x; ++i) store(x_weight + (part.first + o) * from_x + i, row[i]);
      row += from_x;
      if (state_weight != nullptr) {
        for (int64_t i = 0; i < from_state; ++i) store(state_weight + o * from_state + i, row[i]);
        row += from_state;
      }
      store(x_bias + part.first + o, row[0]);
    }
  };
  write(weights.gates, 2 * g.motion, static_cast<F*>(a.grad_state_weight));
  write(weights.candidate, g.motion, static_cast<F*>(a.grad_candidate_weight));
  write(weights.mask, g.masks, nullptr);
}

template <class T>
GatesSizes sizes(const GatesArguments& a) {
  const Geometry<T> g(a);
  return {Plan<T>(g).size * static_cast<int64_t>(sizeof(T)),
          WeightGradients<T>(g).size * static_cast<int64_t>(sizeof(T))};
}

template <class F>
GatesKernels kernels_for() {
  using T = typename arithmetic<F>::type;
  return {sizes<T>, pack<T, F>, forward<T, F>, backward<T, F>, sum_weights<T, F>};
}

}  // namespace

GatesKernels MOTIONRNN_EXT_ISA::gates_kernels(Types types) {
  return for_features(types, []<class F>() { return kernels_for<F>(); });
}

}  // namespace motionrnn_ext::cpu
