// The motion gates backward.
#pragma once

#include <algorithm>

#include "cpu/motion_gates/packing.h"
#include "math/motion_gru.h"

namespace motionrnn_ext::cpu {
namespace {

// Pixels of a wave, the bands whose weight gradients are summed together. Small waves spend more on vector tails.
constexpr int64_t kWavePixels = 2048;

// Gradients of the weights: products of the logits' gradients with what their convolutions read. A constant 1 at the
// end of what is read gives the bias's gradient.
template <class T>
struct WeightGradients {
  struct Part {
    // The first logit, the logits in whole blocks, the inputs, and where the sums (outs, depth) start.
    int64_t first, outs, depth, sums;
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
  // Planes of a band: x, F, s(r) F; gradients of u, r, z, m; ones. The bands of a wave follow one another.
  const int64_t offset_plane = g.channels, reset_plane = g.channels + g.motion, grad_planes = g.channels + 2 * g.motion;
  const int64_t of_update = grad_planes, of_reset = of_update + g.motion, of_candidate = of_reset + g.motion;
  const int64_t of_mask = of_candidate + g.motion, ones = of_mask + g.masks;
  const int64_t band_size = (ones + 1) * g.plane;
  const int64_t in_group = a.grad_x_weight == nullptr ? 1 : (a.batch * a.bands + a.groups - 1) / a.groups;
  const int64_t wave = std::min(in_group, std::max<int64_t>(1, kWavePixels / (g.band_rows * g.pitch)));
  const Buffer<T> memory = allocate<T>(wave * band_size, true);
  const Buffer<T> results = allocate<T>(std::max(plan.to_x.outs, plan.to_offset.outs) * g.tile, false);
  // The part of F's gradient that passes no convolution.
  const Buffer<T> direct = allocate<T>(g.motion * g.band_rows * g.width, false);
  const Buffer<T> buffer = allocate<T>(7 * g.width, false);
  // Rows read by the convolutions of gradients; rows that the forward convolutions read; gradients of their results.
  std::vector<const T*> candidate_taps, state_taps, all_taps, state_rows, candidate_rows, mask_rows, centres;
  std::vector<Segment> segments;
  // The present band, its planes, and its rows: its own, with r rows around them, with 2r rows around them.
  Planes<T> planes{g, memory.get()};
  Band band{};
  Rows own{}, near{}, read{};

  explicit Backward(const GatesArguments& a_) : a(a_), g(a_) {
    planes.append_taps(candidate_taps, of_candidate, g.motion);
    planes.append_taps(state_taps, of_update, 2 * g.motion);
    planes.append_taps(all_taps, of_update, g.logits());
    planes.append_taps(mask_rows, 0, g.channels);
    state_rows = candidate_rows = mask_rows;
    planes.append_taps(state_rows, offset_plane, g.motion);
    planes.append_taps(candidate_rows, reset_plane, g.motion);
    planes.append_centres(centres, of_update, g.logits());
    // The bias reads ones. They also fill the last block of rows or channels, which may end past them.
    for (std::vector<const T*>* rows : {&state_rows, &candidate_rows, &mask_rows, &centres})
      for (int i = 0; i < kOuts; ++i) planes.append_centres(*rows, ones, 1);
    for (int64_t i = 0; i < wave; ++i) std::fill_n(memory.get() + i * band_size + ones * g.plane, g.plane, T(1));
  }

  void start(int64_t item, int64_t in_wave) {
    band = band_of(a, item);
    own = {band.first, band.last}, near = around(g, band, g.radius), read = around(g, band, 2 * g.radius);
    planes.data = memory.get() + in_wave * band_size;
    if (in_wave == 0) segments.clear();
    segments.push_back({in_wave * band_size, in_wave * band_size + distance_of(g, band, own.last)});
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

  // Make the gradients of u, z and D, and the part of F's that passes no convolution.
  void differentiate_update() {
    T *grad_offset = buffer.get(), *grad_trend = grad_offset + g.width, *update = grad_trend + g.width;
    T *candidate = update + g.width, *new_offset = candidate + g.width, *unused = new_offset + g.width;
    T* to_trend = unused + g.width;
    for (int64_t m = 0; m < g.motion; ++m)
      for (int64_t y = read.first; y < read.last; ++y) {
        load_row<T, T>(a.grad_new_offset, band.image, m, y, g.width, grad_offset);
        if (a.more_grad_new_offset.data != nullptr) {
          load_row<T, T>(a.more_grad_new_offset, band.image, m, y, g.width, update);
          for (int64_t x = 0; x < g.width; ++x) grad_offset[x] += update[x];
        }
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
             at + distance_of(g, band, first), at + distance_of(g, band, last));
  }

  // Make the gradients of r and F through s(r) F, which is computed again.
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

  // Make the gradients of F and x through the convolutions that read them.
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
          for (int64_t y = first; y < last; ++y) {
            T *sum = result(c, y), *before = buffer.get();
            if (a.add_to_grad_x) {
              load_row<T, F>(a.grad_x, band.image, c, y, g.width, before);
              for (int64_t x = 0; x < g.width; ++x) sum[x] += before[x];
            }
            store_row<T, F>(sum, a.grad_x, band.image, c, y, g.width);
          }
      }
    });
  }

  // Add the wave's share to the gradients of the weights.
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

// Run groups [begin, end) of items; each group has sums of its own for the weights.
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

// Add up the groups' sums in a fixed order, so that for a given number of threads results do not depend on timing.
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

}  // namespace
}  // namespace motionrnn_ext::cpu
