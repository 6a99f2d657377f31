// Storage dtypes: words of 32 bits as the kernels load them, and the floats in them.
#pragma once

#include "cuda/ptx.h"

namespace motionrnn_ext::cuda {

// A word holds one float or two halves.
template <class T>
constexpr int kPerWord = 4 / sizeof(T);

template <class T>
__device__ __forceinline__ void unpack(uint32_t word, float (&value)[kPerWord<T>]) {
  if constexpr (sizeof(T) == 4) {
    value[0] = __uint_as_float(word);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    value[0] = __uint_as_float(word << 16);
    value[1] = __uint_as_float(word & 0xffff0000u);
  } else {
    __half2 pair;
    memcpy(&pair, &word, 4);
    const float2 both = __half22float2(pair);
    value[0] = both.x, value[1] = both.y;
  }
}

template <class T>
__device__ __forceinline__ uint32_t pack(const float* value) {
  uint32_t word;
  if constexpr (sizeof(T) == 4) {
    word = __float_as_uint(value[0]);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(value[0], value[1]);
    memcpy(&word, &pair, 4);
  } else {
    const __half2 pair = __floats2half2_rn(value[0], value[1]);
    memcpy(&word, &pair, 4);
  }
  return word;
}

template <class T>
__device__ __forceinline__ float to_float(T value) {
  return static_cast<float>(value);
}
template <class T>
__device__ __forceinline__ T from_float(float value) {
  return static_cast<T>(value);
}

// Load `words` words from an address aligned to all of them, at most 16 bytes at a time.
template <int words>
__device__ __forceinline__ void load_words(const void* from, uint32_t* to) {
  if constexpr (words % 4 == 0) {
#pragma unroll
    for (int i = 0; i < words; i += 4) {
      const uint4 four = __ldg(static_cast<const uint4*>(from) + i / 4);
      to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
  } else if constexpr (words == 2) {
    const uint2 two = __ldg(static_cast<const uint2*>(from));
    to[0] = two.x, to[1] = two.y;
  } else {
    static_assert(words == 1);
    to[0] = __ldg(static_cast<const uint32_t*>(from));
  }
}

template <int words>
__device__ __forceinline__ void store_words(void* to, const uint32_t* from) {
  if constexpr (words % 4 == 0) {
#pragma unroll
    for (int i = 0; i < words; i += 4)
      store_vector(static_cast<uint4*>(to) + i / 4, make_uint4(from[i], from[i + 1], from[i + 2], from[i + 3]));
  } else if constexpr (words == 2) {
    *static_cast<uint2*>(to) = make_uint2(from[0], from[1]);
  } else {
    static_assert(words == 1);
    *static_cast<uint32_t*>(to) = from[0];
  }
}

// Load `width` neighbouring elements, through the read-only cache, from an address aligned to all of them.
template <int width, class T>
__device__ __forceinline__ void load_floats(const T* from, float (&value)[width]) {
  if constexpr (width == 1) {
    value[0] = to_float(__ldg(from));
  } else {
    constexpr int words = width / kPerWord<T>;
    uint32_t word[words];
    load_words<words>(from, word);
#pragma unroll
    for (int i = 0; i < words; ++i) {
      float unpacked[kPerWord<T>];
      unpack<T>(word[i], unpacked);
#pragma unroll
      for (int j = 0; j < kPerWord<T>; ++j) value[i * kPerWord<T> + j] = unpacked[j];
    }
  }
}

template <int width, class T>
__device__ __forceinline__ void store_floats(T* to, const float (&value)[width]) {
  if constexpr (width == 1) {
    *to = from_float<T>(value[0]);
  } else {
    constexpr int words = width / kPerWord<T>;
    uint32_t word[words];
#pragma unroll
    for (int i = 0; i < words; ++i) word[i] = pack<T>(value + i * kPerWord<T>);
    store_words<words>(to, word);
  }
}

}  // namespace motionrnn_ext::cuda
