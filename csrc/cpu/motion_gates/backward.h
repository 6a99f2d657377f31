// The motion gates backward.
#pragma once

#include <algorithm>

#include "cpu/motion_gates/packing.h"
#include "math/motion_gru.h"

namespace motionrnn_ext::cpu {
namespace {

template <class T, class F>
struct Backward {
  const GatesArguments& a;
  const Geometry<T> g;
  const Plan<T> plan{g};
  // Planes of a band: gradients of u, r, z, m.
  const int64_t of_update = 0, of_reset = g.motion, of_candidate = 2 * g.motion, of_mask = 3 * g.motion;
  const Buffer<T> memory = allocate<T>(g.logits() * g.plane, true);
  const Planes<T> planes{g, memory.get()};
  const Buffer<T> results = allocate<T>(std::max(plan.to_x.outs, plan.to_offset.outs) * g.tile, false);
  // The part of F's gradient that passes no convolution.
  const Buffer<T> direct = allocate<T>(g.motion * g.band_rows * g.width, false);
  // One channel's rows of the maps that the pointwise parts read.
  const int64_t rows_size = round_up((g.band_rows + 4 * g.radius) * g.width, kLanes<T>);
  const Buffer<T> buffer = allocate<T>(6 * rows_size, false);
  // Rows read by the convolutions of gradients.
  std::vector<const T*> candidate_taps, state_taps, all_taps;
  // The present band, and its rows: its own, with r rows around them, with 2r rows around them.
  Band band{};
  Rows own{}, near{}, read{};

  explicit Backward(const GatesArguments& a_) : a(a_), g(a_) {
    planes.append_taps(candidate_taps, of_candidate, g.motion);
    planes.append_taps(state_taps, of_update, 2 * g.motion);
    planes.append_taps(all_taps, of_update, g.logits());
  }

  void load(int64_t item) {
    band = band_of(a, item);
    own = {band.first, band.last}, near = around(g, band, g.radius), read = around(g, band, 2 * g.radius);
    load_planes<T, F>(planes, of_mask, a.grad_mask, g.masks, band, near);
    for (const int64_t part : {of_update, of_reset}) planes.from(part).clear_outside(g.motion, band, near);
    planes.from(of_candidate).clear_outside(g.motion, band, read);
  }

  T* direct_rows(int64_t m) const { return direct.get() + m * g.band_rows * g.width; }
  int64_t pixels(Rows rows) const { return (rows.last - rows.first) * g.width; }

  // Make the gradients of u, z and D, and the part of F's that passes no convolution.
  void differentiate_update() {
    const int64_t count = pixels(read), to_own = pixels({read.first, own.first});
    T *grad_offset = buffer.get(), *grad_trend = grad_offset + rows_size, *update = grad_trend + rows_size;
    T *candidate = update + rows_size, *offset = candidate + rows_size, *new_offset = offset + rows_size;
    for (int64_t m = 0; m < g.motion; ++m) {
      load_rows<T, T>(a.grad_new_offset, band.image, m, read, g.width, grad_offset);
      if (a.more_grad_new_offset.data != nullptr) {
        load_rows<T, T>(a.more_grad_new_offset, band.image, m, read, g.width, update);
        for (int64_t i = 0; i < count; ++i) grad_offset[i] += update[i];
      }
      load_rows<T, T>(a.grad_new_trend, band.image, m, read, g.width, grad_trend);
      load_rows<T, F>(a.update, band.image, m, read, g.width, update);
      load_rows<T, F>(a.candidate, band.image, m, read, g.width, candidate);
      load_rows<T, T>(a.offset, band.image, m, read, g.width, offset);
      load_rows<T, T>(a.new_offset, band.image, m, read, g.width, new_offset);
      MOTIONRNN_EXT_INDEPENDENT
      for (int64_t i = 0; i < count; ++i) {
        const T in[] = {grad_offset[i], grad_trend[i], update[i], candidate[i], offset[i], new_offset[i]};
        T out[4];
        math::MotionUpdateBackward::apply(in, out, {static_cast<T>(a.alpha), static_cast<T>(a.max_offset)});
        update[i] = out[0];
        candidate[i] = out[1];
        grad_offset[i] = out[2];
        grad_trend[i] = out[3];
      }
      copy_rows(update + pixels({read.first, near.first}), g.width, planes.row(of_update + m, band, near.first),
                g.pitch, near.last - near.first, g.width);
      copy_rows(candidate, g.width, planes.row(of_candidate + m, band, read.first), g.pitch, read.last - read.first,
                g.width);
      std::copy_n(grad_offset + to_own, pixels(own), direct_rows(m));
      if (a.grad_trend.data != nullptr)
        store_rows<T, T>(grad_trend + to_own, a.grad_trend, band.image, m, own, g.width);
    }
  }

  void convolve_rows(const Convolution& c, const std::vector<const T*>& rows, int64_t first, int64_t last) {
    const T* packed = static_cast<const T*>(a.packed);
    convolve(rows.data(), c.depth, packed + c.weights, packed + c.biases, c.outs, results.get(), g.tile,
             distance_of(g, band, first), distance_of(g, band, last));
  }

  // Make the gradients of r and F through s(r) F.
  void differentiate_reset() {
    T *grad = buffer.get(), *reset = grad + rows_size, *offset = reset + rows_size;
    in_tiles(g, near, [&](int64_t first, int64_t last) {
      const int64_t count = pixels({first, last});
      const Rows rows{first, last}, of_own{std::max(first, own.first), std::min(last, own.last)};
      convolve_rows(plan.to_reset, candidate_taps, first, last);
      for (int64_t m = 0; m < g.motion; ++m) {
        copy_rows(results.get() + m * g.tile, g.pitch, grad, g.width, last - first, g.width);
        load_rows<T, F>(a.reset, band.image, m, rows, g.width, reset);
        load_rows<T, T>(a.offset, band.image, m, rows, g.width, offset);
        MOTIONRNN_EXT_INDEPENDENT
        for (int64_t i = 0; i < count; ++i) {
          const T in[] = {grad[i], reset[i], offset[i]};
          T out[2];
          math::MotionResetBackward::apply(in, out, {});
          reset[i] = out[0];
          grad[i] = out[1];
        }
        copy_rows(reset, g.width, planes.row(of_reset + m, band, first), g.pitch, last - first, g.width);
        const T* through = grad + pixels({first, of_own.first});
        T* to_offset = direct_rows(m) + pixels({own.first, of_own.first});
        for (int64_t i = 0; i < pixels(of_own); ++i) to_offset[i] += through[i];
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
            T *sum = result(m, y), *more = direct_rows(m) + (y - own.first) * g.width;
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

  // Write the gradients of the logits.
  void store_logits() const {
    if (a.grad_logits.data == nullptr) return;
    for (int64_t m = 0; m < g.logits(); ++m)
      for (int64_t y = own.first; y < own.last; ++y)
        store_row<T, T>(planes.row(of_update + m, band, y), a.grad_logits, band.image, m, y, g.width);
  }
};

template <class T, class F>
void backward(const GatesArguments& a, int64_t begin, int64_t end) {
  Backward<T, F> step(a);
  for (int64_t item = begin; item < end; ++item) {
    step.load(item);
    step.differentiate_update();
    step.differentiate_reset();
    step.differentiate_inputs();
    step.store_logits();
  }
}

}  // namespace
}  // namespace motionrnn_ext::cpu
