// Elements of an image, whatever its strides.
#pragma once

#include "cuda/kernels.h"
#include "cuda/storage.h"

namespace motionrnn_ext::cuda {
namespace {

template <class T>
__device__ __forceinline__ T& element(const Image& image, int b, int64_t channel, int64_t pixel) {
  return static_cast<T*>(image.data)[b * image.batch + channel * image.channel + pixel * image.pixel];
}

// The channels of one pixel. An address takes one multiplication of 32-bit numbers; element() takes four.
template <class T>
struct Channels {
  T* first;
  uint32_t stride;

  __device__ __forceinline__ Channels(const Image& image, int b, int pixel)
      : first(&element<T>(image, b, 0, pixel)), stride(image.channel) {}
  __device__ __forceinline__ T& operator[](int c) const { return first[uint64_t(uint32_t(c)) * stride]; }
  // Read through the read-only cache, which is allowed only for images that this kernel does not write.
  __device__ __forceinline__ float read(int c) const { return to_float(__ldg(&(*this)[c])); }
};

// The pixels of one image of the batch, for threads whose pixel changes.
template <class T>
struct Pixels {
  T* first;
  uint32_t channel, pixel;  // strides

  __device__ __forceinline__ Pixels(const Image& image, int b)
      : first(static_cast<T*>(image.data) + b * image.batch), channel(image.channel), pixel(image.pixel) {}
  __device__ __forceinline__ T& operator()(int c, int p) const {
    return (first + uint64_t(uint32_t(p)) * pixel)[uint64_t(uint32_t(c)) * channel];
  }
  // See Channels.
  __device__ __forceinline__ float read(int c, int p) const { return to_float(__ldg(&(*this)(c, p))); }
};

// Return whether vectors of `size` elements may be read or written at every pixel.
template <class T>
bool takes_vectors(const Image& image, int channels, int size) {
  return image.channel == 1 && channels % size == 0 && image.pixel % size == 0 && image.batch % size == 0 &&
         reinterpret_cast<uintptr_t>(image.data) % (size * sizeof(T)) == 0;
}

}  // namespace
}  // namespace motionrnn_ext::cuda
