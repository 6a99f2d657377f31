// The one way to launch a kernel.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

// Dynamic shared memory, 128-byte aligned.
#define MOTIONRNN_EXT_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

#if !defined(MOTIONRNN_EXT_CUDA_ARCHITECTURES)
#define MOTIONRNN_EXT_CUDA_ARCHITECTURES "?"
#endif

namespace motionrnn_ext::cuda {

using Stream = cudaStream_t;

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  if (error == cudaErrorNoKernelImageForDevice)
    throw std::runtime_error(
        "motionrnn_ext: this build has CUDA kernels for the architectures " MOTIONRNN_EXT_CUDA_ARCHITECTURES
        ", not for this GPU; build again with TORCH_CUDA_ARCH_LIST set to its compute capability, or choose the "
        "backend 'reference'");
  throw std::runtime_error(std::string("motionrnn_ext: CUDA error: ") + cudaGetErrorString(error));
}

// A launch synchronises nothing, allocates nothing and copies nothing from the host, so a CUDA graph can capture it.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int block, size_t shared_bytes, Stream stream,
            Arguments&&... arguments) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (shared_bytes > kWithoutAsking)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  check(cudaGetLastError());
}

inline void fill_zero(void* data, size_t bytes, Stream stream) { check(cudaMemsetAsync(data, 0, bytes, stream)); }

}  // namespace motionrnn_ext::cuda
