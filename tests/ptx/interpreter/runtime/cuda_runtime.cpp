// A stand-in for the CUDA runtime: host code that nvcc compiled is linked with it instead of libcudart, so that its own
// launchers choose kernel, grid and arguments. Declared here as in cuda_runtime_api.h, which is not needed. Calls that
// are missing are given bodies where host code is linked, which end in ptxsim_missing_call.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <string>

#include "core/report.h"
#include "memory/regions.h"
#include "runtime/loaded.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

struct dim3 {
  unsigned x, y, z;
};
using cudaStream_t = struct CUstream_st*;
using cudaKernel_t = struct CUkern_st*;

namespace {

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
};
enum cudaFuncAttribute : int { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

// Of the launch that is about to be made (<<<grid, block, shared, stream>>>).
struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};

std::map<const void*, std::string> entries;   // by the host's function for a kernel
std::map<std::string, int> shared_asked_for;  // bytes, by entry
Configuration configuration;
cudaError_t last_error = cudaSuccess;
std::string last_message = "no error";

cudaError_t fail(cudaError_t error, const std::string& message) {
  last_message = "stand-in CUDA runtime: " + message;
  fprintf(stderr, "%s\n", last_message.c_str());
  return last_error = error;
}

ptx::Size size_of(dim3 size) { return {size.x, size.y, size.z}; }

cudaError_t launch(const void* host, dim3 grid, dim3 block, void** arguments, size_t shared) {
  const auto entry = entries.find(host);
  if (entry == entries.end()) return fail(cudaErrorInvalidDeviceFunction, "a kernel that was never registered");
  const std::string& name = entry->second;
  if (shared > ptx::kSharedWithoutAsking && shared_asked_for[name] < int(shared))
    ptx::report(name, "launch",
                name + ": " + std::to_string(shared) +
                    " bytes of shared memory; more than 48 KB have to be asked for (cudaFuncSetAttribute)");
  try {
    ptx::Module* module = ptx::module_with(name);
    if (!module) return fail(cudaErrorInvalidDeviceFunction, "no loaded module has the kernel " + name);
    const bool ran = ptx::run(*module, name, size_of(grid), size_of(block), uint32_t(shared), arguments);
    return ran ? cudaSuccess : fail(cudaErrorLaunchFailure, "the launch of " + name + " is out of range");
  } catch (const std::exception& error) {
    return fail(cudaErrorLaunchFailure, error.what());
  }
}

bool is_device_memory(const void* at, size_t bytes, const char* call) {
  if (!bytes || ptx::is_registered(reinterpret_cast<uint64_t>(at), bytes)) return true;
  ptx::report("", "out of range", std::string(call) + " of " + std::to_string(bytes) + " bytes");
  return false;
}

}  // namespace

// ---- What nvcc's host code calls

EXPORT void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT void __cudaRegisterFunction(void**, const char* host, char*, const char* entry, int, void*, void*, dim3*, dim3*,
                                   int*) {
  entries[host] = entry;
}
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, cudaStream_t* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *stream = configuration.stream;
  return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                                      cudaStream_t) {
  return launch(kernel, grid, block, arguments, shared);
}

// ---- Launches

EXPORT cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** arguments, size_t shared,
                                    cudaStream_t) {
  return launch(host, grid, block, arguments, shared);
}
EXPORT cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  const auto entry = entries.find(host);
  if (entry == entries.end()) return fail(cudaErrorInvalidDeviceFunction, "a kernel that was never registered");
  const ptx::Module* module = ptx::module_with(entry->second);
  if (module && value > int(ptx::largest_shared(module->target)))
    return fail(cudaErrorInvalidValue, std::to_string(value) + " bytes of shared memory, more than the target has");
  shared_asked_for[entry->second] = value;
  return cudaSuccess;
}

// ---- Errors

EXPORT cudaError_t cudaPeekAtLastError() { return last_error; }
EXPORT cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
EXPORT const char* cudaGetErrorString(cudaError_t) { return last_message.c_str(); }
EXPORT const char* cudaGetErrorName(cudaError_t) { return "stand-in CUDA runtime"; }

// ---- Memory

EXPORT cudaError_t cudaMalloc(void** at, size_t bytes) {
  *at = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!*at) return fail(cudaErrorMemoryAllocation, std::to_string(bytes) + " bytes");
  ptx::register_region(reinterpret_cast<uint64_t>(*at), bytes, "cudaMalloc");
  return cudaSuccess;
}
EXPORT cudaError_t cudaFree(void* at) {
  ptx::unregister_region(reinterpret_cast<uint64_t>(at));
  std::free(at);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  if (is_device_memory(to, bytes, "cudaMemset")) std::memset(to, value, bytes);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(to, value, bytes);
}
EXPORT cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, int) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}

// ---- Devices and streams: there is one of each, and every launch ends before the next call.

EXPORT cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : fail(cudaErrorInvalidValue, "there is one device, number 0");
}
EXPORT cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

// The body of a call that is not above. It is reported as a mistake is, and fails as a call does.
EXPORT int ptxsim_missing_call(const char* name) {
  const std::string message = std::string("there is no ") + name + ": write it in runtime/cuda_runtime.cpp";
  ptx::report("", "unimplemented runtime call", message);
  return fail(cudaErrorNotSupported, message);
}
