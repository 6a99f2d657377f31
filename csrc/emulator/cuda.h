// The part of CUDA C++ that the kernels use, for a C++ compiler: they run on the CPU, to test their results and to run
// them under sanitizers. Undefined behaviour of the device is an error here wherever it can be seen.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>

#include "emulator/block.h"

// CUDA's headers spell these as attributes of their own compiler.
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __align__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

#define threadIdx (::motionrnn_ext::emulator::here.thread)
#define blockIdx (::motionrnn_ext::emulator::here.block)
#define blockDim (::motionrnn_ext::emulator::here.block_size)
#define gridDim (::motionrnn_ext::emulator::here.grid_size)

// Holds NaN (all bits set) until it is written.
#define MOTIONRNN_EXT_SHARED(name) unsigned char* const name = ::motionrnn_ext::emulator::here.shared

namespace motionrnn_ext::emulator {

template <class... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            std::type_identity_t<Parameters>... arguments) {
  const std::tuple<Parameters...> copied(arguments...);
  note_launch(reinterpret_cast<const void*>(kernel));
  run(grid, block, shared_bytes, [&] { std::apply(kernel, copied); });
}

inline void fill_zero(void* data, size_t bytes) { std::memset(data, 0, bytes); }

template <class T>
void check_aligned(const T* address, size_t bytes, const char* operation, Where where) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    fail(std::string(operation) + " of an address that is not a multiple of " + std::to_string(bytes), where);
}

template <class T>
T shuffle(uint32_t mask, T value, unsigned source, int width, const char* operation, Where where) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    fail(std::string(operation) + " with a width that is no power of two up to 32", where);
  const Exchanged<T> values(mask, value, operation, where);
  if ((mask >> source & 1) == 0) fail(std::string(operation) + " reads a lane that is not in the mask", where);
  return values[source];
}

}  // namespace motionrnn_ext::emulator

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  motionrnn_ext::emulator::synchronize_block("__syncthreads", where);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, std::source_location where = std::source_location::current()) {
  motionrnn_ext::emulator::synchronize_warp(mask, "__syncwarp", where);
}

// A segment of `width` lanes shuffles among itself.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              std::source_location where = std::source_location::current()) {
  const unsigned segment = motionrnn_ext::emulator::lane() & ~(static_cast<unsigned>(width) - 1);
  return motionrnn_ext::emulator::shuffle(mask, value, segment + (static_cast<unsigned>(source) & (width - 1)), width,
                                          "__shfl_sync", where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  std::source_location where = std::source_location::current()) {
  const unsigned lane = motionrnn_ext::emulator::lane(), source = lane ^ static_cast<unsigned>(lane_mask);
  const bool beyond = source >= (lane & ~(static_cast<unsigned>(width) - 1)) + width;
  return motionrnn_ext::emulator::shuffle(mask, value, beyond ? lane : source, width, "__shfl_xor_sync", where);
}

template <class T>
T __ldg(const T* address, std::source_location where = std::source_location::current()) {
  motionrnn_ext::emulator::check_aligned(address, alignof(T), "__ldg", where);
  return *address;
}

// Returns the previous value. The order is relaxed, as on the device.
template <class T>
T atomicAdd(T* address, T value, std::source_location where = std::source_location::current()) {
  motionrnn_ext::emulator::check_aligned(address, sizeof(T), "atomicAdd", where);
  return std::atomic_ref<T>(*address).fetch_add(value, std::memory_order_relaxed);
}

inline int __float_as_int(float value) { return __builtin_bit_cast(int, value); }
inline float __int_as_float(int bits) { return __builtin_bit_cast(float, bits); }
inline unsigned __float_as_uint(float value) { return __builtin_bit_cast(unsigned, value); }
inline float __uint_as_float(unsigned bits) { return __builtin_bit_cast(float, bits); }

// Undefined outside of long long, nan included.
inline long long __float2ll_rn(float value, std::source_location where = std::source_location::current()) {
  if (!(value >= -0x1p63f && value < 0x1p63f))
    motionrnn_ext::emulator::fail("__float2ll_rn of " + std::to_string(value) + ", which no long long holds", where);
  return std::llrint(value);
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
