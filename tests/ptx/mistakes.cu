// Kernels with a mistake each, and without it, for mistakes.py.
#include <map>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda/ptx.h"

namespace {

using motionrnn_ext::cuda::launch;
using motionrnn_ext::cuda::red_add;

constexpr int kThreads = 64;  // two warps

// Every thread writes an element of shared memory and reads its neighbour's, in two rounds.
__global__ void missing_barrier(float* out, bool right) {
  MOTIONRNN_EXT_SHARED(bytes);
  float* shared = reinterpret_cast<float*>(bytes);
  for (int round = 0; round < 2; ++round) {
    if (right) __syncthreads();
    shared[threadIdx.x] = static_cast<float>(threadIdx.x);
    __syncthreads();
    out[threadIdx.x] = shared[(threadIdx.x + 1) % kThreads];
  }
}

__global__ void missing_warp_barrier(float* out, bool right) {
  MOTIONRNN_EXT_SHARED(bytes);
  float* shared = reinterpret_cast<float*>(bytes);
  shared[threadIdx.x] = 1.0f;
  if (right) __syncwarp();
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, shared[threadIdx.x ^ 1], 1);  // a shuffle orders no memory
}

__global__ void race_in_a_block(float* out, bool right) {
  if (right)
    atomicAdd(out, 1.0f);
  else
    *out += 1.0f;
}

__global__ void race_between_blocks(float* out, bool right) {
  if (threadIdx.x != 0) return;
  if (right)
    atomicAdd(out, 1.0f);
  else
    *out += 1.0f;
}

__global__ void overrun_of_shared_memory(float* out, bool right) {
  MOTIONRNN_EXT_SHARED(bytes);
  float* shared = reinterpret_cast<float*>(bytes);
  shared[threadIdx.x + (right ? 0 : 1)] = 1.0f;
  out[threadIdx.x] = shared[threadIdx.x + (right ? 0 : 1)];
}

__global__ void overrun_of_global_memory(float* out, bool right) { out[threadIdx.x + (right ? 0 : 1)] = 1.0f; }

__global__ void misaligned_vector(float* out, bool right) {
  if (threadIdx.x == 0) *reinterpret_cast<float4*>(out + (right ? 4 : 1)) = float4{1.0f, 2.0f, 3.0f, 4.0f};
}

__global__ void misaligned_reduction(float* out, bool right) {
  red_add(out + (right ? 4 : 1), float4{1.0f, 2.0f, 3.0f, 4.0f});
}

__global__ void barrier_without_all(float* out, bool right) {
  if (right || threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = 1.0f;
}

__global__ void two_barriers_at_once(float* out, bool right) {
  if (right || threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1.0f;
}

__global__ void barrier_meets_shuffle(float* out, bool right) {
  float value = 1.0f;
  if (right || threadIdx.x % 2 == 0) value += __shfl_xor_sync(0xffffffffu, value, 2);
  __syncthreads();
  out[threadIdx.x] = value;
}

__global__ void lane_missing_in_shuffle(float* out, bool right) {
  float value = 1.0f;
  if (right || threadIdx.x % 32 != 31) value += __shfl_xor_sync(0xffffffffu, value, 1);
  out[threadIdx.x] = value;
}

__global__ void lane_missing_in_mask(float* out, bool right) {
  const unsigned mask = right ? 0xffffffffu : 0x0000ffffu;
  out[threadIdx.x] = __shfl_xor_sync(mask, 1.0f, 1);
}

__global__ void source_missing_in_mask(float* out, bool right) {
  if (threadIdx.x % 32 >= 16) return;
  out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.0f, right ? 1 : 16);
}

__global__ void lane_missing_in_mma(float* out, bool right) {
  float d[4] = {};
  const uint32_t a[4] = {};
  if (right || threadIdx.x != 3) motionrnn_ext::cuda::mma(d, a, uint2{0, 0}, __nv_bfloat16());
  out[threadIdx.x] = d[0];
}

__global__ void uninitialised_shared_memory(float* out, bool right) {
  MOTIONRNN_EXT_SHARED(bytes);
  float* shared = reinterpret_cast<float*>(bytes);
  if (right || threadIdx.x != 0) shared[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void conversion_out_of_range(float* out, bool right) {
  out[threadIdx.x] = static_cast<float>(__float2ll_rn(right ? 1e18f : 1e19f));
}

__global__ void nothing(float*, bool) {}

struct Program {
  void (*kernel)(float*, bool);
  dim3 right_grid = 1, grid = 1;
  int right_block = kThreads, block = kThreads;
  size_t right_shared = sizeof(float) * kThreads, shared = sizeof(float) * kThreads;
};

const std::map<std::string, Program> programs = {
    {"missing_barrier", {missing_barrier}},
    {"missing_warp_barrier", {missing_warp_barrier}},
    {"race_in_a_block", {race_in_a_block}},
    {"race_between_blocks", {.kernel = race_between_blocks, .right_grid = 4, .grid = 4}},
    {"overrun_of_shared_memory", {overrun_of_shared_memory}},
    {"overrun_of_global_memory", {overrun_of_global_memory}},
    {"misaligned_vector", {misaligned_vector}},
    {"misaligned_reduction", {misaligned_reduction}},
    {"barrier_without_all", {barrier_without_all}},
    {"two_barriers_at_once", {two_barriers_at_once}},
    {"barrier_meets_shuffle", {barrier_meets_shuffle}},
    {"lane_missing_in_shuffle", {lane_missing_in_shuffle}},
    {"lane_missing_in_mask", {lane_missing_in_mask}},
    {"source_missing_in_mask", {source_missing_in_mask}},
    {"lane_missing_in_mma", {lane_missing_in_mma}},
    {"uninitialised_shared_memory", {uninitialised_shared_memory}},
    {"conversion_out_of_range", {conversion_out_of_range}},
    {"grid_too_large", {.kernel = nothing, .right_grid = {1, 65535}, .grid = {1, 65536}}},
    {"grid_empty", {.kernel = nothing, .grid = 0}},
    {"block_too_large", {.kernel = nothing, .right_block = 1024, .block = 1025}},
    {"shared_memory_too_large", {.kernel = nothing, .right_shared = 166912, .shared = 232449}},
};

}  // namespace

// Runs a program on kThreads floats, aligned as the device's memory is. Returns what its launch failed with, or "".
extern "C" __attribute__((visibility("default"))) const char* run_mistake(const char* name, int right, float* out) {
  static std::string message;
  const Program& program = programs.at(name);
  message.clear();
  try {
    launch(program.kernel, right ? program.right_grid : program.grid, right ? program.right_block : program.block,
           right ? program.right_shared : program.shared, nullptr, out, right != 0);
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
