// The gradients of the motion gates' weights and bias: three products of the logits' gradients with
// the maps that their convolutions read. All logits read x, u and r read F, and z reads s(r) F.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/motion_gates/planes.h"
#include "math/motion_gru.h"

namespace motionrnn_ext::cpu {
namespace {

// Pixels of a wave, the bands that are summed together. Small waves spend more on vector tails.
constexpr int64_t kWavePixels = 2048;

// A part of a product: its logits, the planes that they read, and where the gradients of these are.
struct Product {
  int64_t first, logits, plane, channels;
  void* grad;  // (logits, taps of a logit)
  int64_t taps_of_logit, first_tap;
  bool with_bias;

  int64_t blocks() const { return (logits + kOuts - 1) / kOuts; }
};

// Products are cut in two by the channels that are read, so that there are enough blocks for some threads.
std::vector<Product> products_of(const GatesArguments& a) {
  const int64_t taps = int64_t(a.k) * a.k;
  std::vector<Product> products;
  const auto add = [&](int64_t first, int64_t logits, int64_t plane, int64_t channels, void* grad) {
    const int64_t half = channels / 2;
    for (const auto& [from, to] : {std::pair{int64_t{0}, half}, std::pair{half, channels}})
      products.push_back({first, logits, plane + from, to - from, grad, channels * taps, from * taps, false});
  };
  add(0, 3 * a.motion + a.masks, 0, a.channels, a.grad_x_weight);
  products.back().with_bias = true;
  add(0, 2 * a.motion, a.channels, a.motion, a.grad_state_weight);
  add(2 * a.motion, a.motion, a.channels + a.motion, a.motion, a.grad_candidate_weight);
  return products;
}

int64_t blocks_of_weights(const GatesArguments& a) {
  int64_t count = 0;
  for (const Product& p : products_of(a)) count += p.blocks();
  return count;
}

// The blocks [begin, end) of logits of the products, one product after the other. Sums are taken in the order of the
// images, whatever the number of threads.
template <class T, class F>
struct WeightGradients {
  struct Block {
    const Product* product;
    // The first logit, the addends of a logit in whole vectors, and where the sums start.
    int64_t first, depth, sums;
  };
  const GatesArguments& a;
  const Geometry<T> g{a};
  const std::vector<Product> products = products_of(a);
  // Planes of a band: x, F, s(r) F; gradients of the logits; ones, by which the bias's gradient is a sum, too.
  const int64_t offset_plane = g.channels, reset_plane = g.channels + g.motion, grad_planes = g.channels + 2 * g.motion;
  const int64_t ones = grad_planes + g.logits(), band_size = (ones + 1) * g.plane;
  const int64_t items = a.batch * a.bands;
  const int64_t wave = std::min(items, std::max<int64_t>(1, kWavePixels / (g.band_rows * g.pitch)));
  const Buffer<T> memory = allocate<T>(wave * band_size, true);
  const Buffer<T> buffer = allocate<T>(g.width, false);
  std::vector<Block> blocks;
  Buffer<T> sums{nullptr};
  std::vector<const T*> centres;
  std::vector<Segment> segments;

  WeightGradients(const GatesArguments& a_, int64_t begin, int64_t end) : a(a_) {
    int64_t index = 0, size = 0;
    for (const Product& p : products)
      for (int64_t block = 0; block < p.blocks(); ++block, ++index) {
        if (index < begin || index >= end) continue;
        const int64_t depth = round_up(p.channels * g.taps + p.with_bias, kVectors);
        blocks.push_back({&p, p.first + block * kOuts, depth, size});
        size += kOuts * depth;
      }
    sums = allocate<T>(size, true);
    const Planes<T> planes{g, memory.get()};
    planes.append_centres(centres, grad_planes, g.logits());
    // A last block may end past the logits.
    for (int i = 0; i < kOuts; ++i) planes.append_centres(centres, ones, 1);
    for (int64_t i = 0; i < wave; ++i) std::fill_n(memory.get() + i * band_size + ones * g.plane, g.plane, T(1));
  }

  // Return whether a block reads one of the planes [plane, plane + count).
  bool reads(int64_t plane, int64_t count) const {
    return std::any_of(blocks.begin(), blocks.end(), [&](const Block& b) {
      return b.product->plane < plane + count && b.product->plane + b.product->channels > plane;
    });
  }

  bool reads_logit(int64_t logit) const {
    return std::any_of(blocks.begin(), blocks.end(),
                       [&](const Block& b) { return logit >= b.first && logit < b.first + kOuts; });
  }

  void load(int64_t item, T* to) const {
    const Band band = band_of(a, item);
    const Planes<T> planes{g, to};
    const Rows near = around(g, band, g.radius);
    const bool resets = reads(reset_plane, g.motion);
    if (reads(0, g.channels)) load_planes<T, F>(planes, 0, a.x, g.channels, band, near);
    if (resets || reads(offset_plane, g.motion))
      load_planes<T, T>(planes, offset_plane, a.offset, g.motion, band, near);
    if (resets) reset(planes, a.reset, band, near);
    for (int64_t m = 0; m < g.logits(); ++m) {
      if (!reads_logit(m)) continue;
      Image logit = a.grad_logits;
      logit.data = static_cast<const T*>(logit.data) + m * logit.channel;
      load_planes<T, T>(planes, grad_planes + m, logit, 1, band, {band.first, band.last});
    }
  }

  // Make s(r) F.
  void reset(const Planes<T>& planes, const Image& logits, const Band& band, Rows near) const {
    planes.from(reset_plane).clear_outside(g.motion, band, near);
    for (int64_t m = 0; m < g.motion; ++m)
      for (int64_t y = near.first; y < near.last; ++y) {
        load_row<T, F>(logits, band.image, m, y, g.width, buffer.get());
        const T* offset = planes.row(offset_plane + m, band, y);
        T* to = planes.row(reset_plane + m, band, y);
        MOTIONRNN_EXT_INDEPENDENT
        for (int64_t x = 0; x < g.width; ++x) {
          const T in[] = {buffer[x], offset[x]};
          T out[1];
          math::MotionReset::apply(in, out, {});
          to[x] = out[0];
        }
      }
  }

  void sum_wave() const {
    const Planes<T> planes{g, memory.get()};
    std::vector<const T*> rows;
    const Product* of_rows = nullptr;
    for (const Block& block : blocks) {
      if (of_rows != block.product) {
        of_rows = block.product, rows.clear();
        planes.append_taps(rows, of_rows->plane, of_rows->channels);
        while (static_cast<int64_t>(rows.size()) < block.depth) planes.append_centres(rows, ones, 1);
      }
      correlate(centres.data() + block.first, kOuts, rows.data(), block.depth, segments.data(),
                static_cast<int64_t>(segments.size()), sums.get() + block.sums);
    }
  }

  void run() {
    for (int64_t item = 0; item < items; ++item) {
      const int64_t start = item % wave * band_size;
      if (start == 0) segments.clear();
      const Band band = band_of(a, item);
      load(item, memory.get() + start);
      segments.push_back({start, start + distance_of(g, band, band.last)});
      if ((item + 1) % wave == 0 || item + 1 == items) sum_wave();
    }
    for (const Block& block : blocks) {
      const Product& p = *block.product;
      const int64_t size = p.channels * g.taps;
      for (int64_t o = block.first; o < std::min(block.first + kOuts, p.first + p.logits); ++o) {
        const T* from = sums.get() + block.sums + (o - block.first) * block.depth;
        F* to = static_cast<F*>(p.grad) + (o - p.first) * p.taps_of_logit + p.first_tap;
        for (int64_t i = 0; i < size; ++i) store(to + i, from[i]);
        if (p.with_bias) store(static_cast<F*>(a.grad_x_bias) + o, from[size]);
      }
    }
  }
};

template <class T, class F>
void weight_gradients(const GatesArguments& a, int64_t begin, int64_t end) {
  WeightGradients<T, F>(a, begin, end).run();
}

}  // namespace
}  // namespace motionrnn_ext::cpu
