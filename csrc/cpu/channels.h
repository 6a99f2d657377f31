// Helpers that the kernels of maps share: loads and stores of one channel's pixels, dispatch on the features' dtype.
#pragma once

#include "cpu/kernels.h"
#include "cpu/storage.h"

namespace motionrnn_ext::cpu {
namespace {

// Load n pixels of a channel, from pixel `first` on, in the arithmetic type.
template <class T, class F>
MOTIONRNN_EXT_INLINE void load_channel(T* values, const Image& map, int64_t b, int64_t channel, int64_t first,
                                       int64_t n) {
  const F* source = static_cast<const F*>(map.data) + b * map.batch + channel * map.channel + first * map.pixel;
  if (map.pixel == 1) {
    for (int64_t p = 0; p < n; ++p) values[p] = load(source[p]);
  } else {
    for (int64_t p = 0; p < n; ++p) values[p] = load(source[p * map.pixel]);
  }
}

template <class T, class F>
MOTIONRNN_EXT_INLINE void store_channel(const T* values, const Image& map, int64_t b, int64_t channel, int64_t first,
                                        int64_t n) {
  F* target = const_cast<F*>(static_cast<const F*>(map.data)) + b * map.batch + channel * map.channel;
  if (map.pixel == 1) {
    MOTIONRNN_EXT_INDEPENDENT
    for (int64_t p = 0; p < n; ++p) store(target + first + p, values[p]);
  } else {
    for (int64_t p = 0; p < n; ++p) store(target + (first + p) * map.pixel, values[p]);
  }
}

// Call f.template operator()<F>() with the storage type F of the features. Motion state is in its arithmetic type.
template <class Call>
auto for_features(Types types, Call f) {
  switch (types) {
    case Types::f64: return f.template operator()<double>();
    case Types::bf16:
    case Types::bf16_f32: return f.template operator()<bfloat16>();
    case Types::f16:
    case Types::f16_f32: return f.template operator()<float16>();
    case Types::f32: break;
  }
  return f.template operator()<float>();
}

}  // namespace
}  // namespace motionrnn_ext::cpu
