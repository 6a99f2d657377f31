// The motion gates forward.
#pragma once

#include <algorithm>

#include "cpu/motion_gates/packing.h"
#include "math/motion_gru.h"

namespace motionrnn_ext::cpu {
namespace {

template <class T, class F>
void forward(const GatesArguments& a, int64_t begin, int64_t end) {
  const Geometry<T> g(a);
  const Plan<T> plan(g);
  const T* packed = static_cast<const T*>(a.packed);
  const auto memory = allocate<T>((g.channels + 2 * g.motion) * g.plane, true);
  const auto logits = allocate<T>((plan.gates.outs + plan.mask.outs) * g.tile, false);
  // One channel's rows of the maps that the pointwise parts read.
  const int64_t rows_size = round_up(g.tile_rows * g.width, kLanes<T>);
  const auto buffer = allocate<T>(4 * rows_size, false);
  // Planes: x, F, s(r) F.
  const Planes<T> planes{g, memory.get()};
  const int64_t offset_plane = g.channels, reset_plane = g.channels + g.motion;
  std::vector<const T*> state_rows, candidate_rows;
  planes.append_taps(state_rows, 0, g.channels + g.motion);
  planes.append_taps(candidate_rows, 0, g.channels);
  planes.append_taps(candidate_rows, reset_plane, g.motion);
  const auto convolve_rows = [&](const Convolution& c, const std::vector<const T*>& rows, T* to, int64_t first,
                                 int64_t last) {
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
      convolve_rows(plan.gates, state_rows, logits.get(), distance_of(g, band, first), distance_of(g, band, last));
      convolve_rows(plan.mask, state_rows, masks, distance_of(g, band, first), distance_of(g, band, last));
      const Rows rows{first, last}, own{std::max(first, band.first), std::min(last, band.last)};
      const int64_t count = (last - first) * g.width, to_own = (own.first - first) * g.pitch;
      T *values = buffer.get(), *offset = values + rows_size;
      const auto store_own = [&](const T* from, const Image& to, int64_t channel) {
        for (int64_t y = own.first; y < own.last; ++y)
          store_row<T, F>(from + to_own + (y - own.first) * g.pitch, to, band.image, channel, y, g.width);
      };
      for (int64_t m = 0; m < g.motion; ++m) {
        const T* reset_logits = logits.get() + (g.motion + m) * g.tile;
        copy_rows(reset_logits, g.pitch, values, g.width, last - first, g.width);
        load_rows<T, T>(a.offset, band.image, m, rows, g.width, offset);
        MOTIONRNN_EXT_INDEPENDENT
        for (int64_t i = 0; i < count; ++i) {
          const T in[] = {values[i], offset[i]};
          T out[1];
          math::MotionReset::apply(in, out, {});
          values[i] = out[0];
        }
        copy_rows(values, g.width, planes.row(reset_plane + m, band, first), g.pitch, last - first, g.width);
        store_own(reset_logits, a.reset, m);
        store_own(logits.get() + m * g.tile, a.update, m);
      }
      for (int64_t m = 0; m < g.masks; ++m) store_own(masks + m * g.tile, a.mask, m);
    });

    in_tiles(g, {band.first, band.last}, [&](int64_t first, int64_t last) {
      convolve_rows(plan.candidate, candidate_rows, logits.get(), distance_of(g, band, first),
                    distance_of(g, band, last));
      const Rows rows{first, last};
      const int64_t count = (last - first) * g.width;
      T *update = buffer.get(), *trend = update + rows_size, *candidate = trend + rows_size;
      T* offset = candidate + rows_size;
      for (int64_t m = 0; m < g.motion; ++m) {
        copy_rows(logits.get() + m * g.tile, g.pitch, candidate, g.width, last - first, g.width);
        store_rows<T, F>(candidate, a.candidate, band.image, m, rows, g.width);
        load_rows<T, F>(a.update, band.image, m, rows, g.width, update);
        load_rows<T, T>(a.offset, band.image, m, rows, g.width, offset);
        load_rows<T, T>(a.trend, band.image, m, rows, g.width, trend);
        MOTIONRNN_EXT_INDEPENDENT
        for (int64_t i = 0; i < count; ++i) {
          const T in[] = {update[i], candidate[i], offset[i], trend[i]};
          T out[2];
          math::MotionUpdate::apply(in, out, {static_cast<T>(a.alpha), static_cast<T>(a.max_offset)});
          offset[i] = out[0];
          trend[i] = out[1];
        }
        store_rows<T, T>(offset, a.new_offset, band.image, m, rows, g.width);
        store_rows<T, T>(trend, a.new_trend, band.image, m, rows, g.width);
      }
    });
  }
}

}  // namespace
}  // namespace motionrnn_ext::cpu
