// The motion gates forward.
#pragma once

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
  const auto buffer = allocate<T>(4 * g.width, false);
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
      convolve_rows(plan.candidate, candidate_rows, logits.get(), distance_of(g, band, first),
                    distance_of(g, band, last));
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

}  // namespace
}  // namespace motionrnn_ext::cpu
