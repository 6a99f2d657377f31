// Small kernels that each run one unit of the card as fast as it goes, in the access patterns of the offset warp.
// ceilings.py compiles, calls and times them. Every launch_ function returns a cudaError_t.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kThreads = 256;
constexpr int kChains = 8;  // independent chains or loads in flight per thread
constexpr int kTaps = 9;

__global__ void empty_kernel() {}

__device__ __forceinline__ unsigned fold(uint2 v) { return v.x ^ v.y; }
__device__ __forceinline__ unsigned fold(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

// Four lanes together read one row of 4 V, as they read a pixel's channels; rows are scattered over a window. row_mask
// has the bits of a row's first byte in the window. An L1 wavefront lasts four issue slots, and a 64-bit load eight:
// the six instructions of a load fit into them.
template <class V>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const V* window, unsigned row_mask, int repeats, unsigned* sink) {
  const char* const base = reinterpret_cast<const char*>(window + threadIdx.x % 4);
  unsigned place = (blockIdx.x * kThreads + threadIdx.x) / 4 * 2654435761u, sum = 0;
  for (int i = 0; i < repeats; ++i) {
    V values[kChains];
#pragma unroll
    for (int j = 0; j < kChains; ++j) {
      place = place * 1664525u + 1013904223u;
      values[j] = __ldg(reinterpret_cast<const V*>(base + (place & row_mask)));
    }
#pragma unroll
    for (int j = 0; j < kChains; ++j) sum ^= fold(values[j]);
  }
  if (sum == 0x9e3779b9u) *sink = sum;  // keeps the compiler from removing the loads
}

__global__ void __launch_bounds__(kThreads) ffma_kernel(float a, float b, int repeats, float* sink) {
  float x[kChains];
#pragma unroll
  for (int j = 0; j < kChains; ++j) x[j] = static_cast<float>(threadIdx.x + j);
#pragma unroll 16
  for (int i = 0; i < repeats; ++i) {
#pragma unroll
    for (int j = 0; j < kChains; ++j) x[j] = fmaf(x[j], a, b);
  }
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kChains; ++j) sum += x[j];
  if (sum == 0.125f) *sink = sum;
}

template <bool kTf32>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint2 b) {
  if constexpr (kTf32)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

template <bool kTf32>
__global__ void __launch_bounds__(kThreads) mma_kernel(int repeats, float* sink) {
  const uint32_t seed = threadIdx.x * 2654435761u;
  uint32_t a[4];
  // values between 1/4 and 1/2
  for (int i = 0; i < 4; ++i) a[i] = 0x3e803e80u + (seed >> i & 0x007f007fu);
  const uint2 b = {0xbe803e80u + (seed >> 4 & 0x007f007fu), 0x3e80be80u + (seed >> 5 & 0x007f007fu)};
  float d[kChains][4] = {};
#pragma unroll 4
  for (int i = 0; i < repeats; ++i) {
#pragma unroll
    for (int j = 0; j < kChains; ++j) mma<kTf32>(d[j], a, b);
  }
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kChains; ++j) sum += d[j][0] + d[j][1] + d[j][2] + d[j][3];
  if (sum == 0.125f) *sink = sum;
}

// Adds to one lane's four channels of one corner: one instruction from sm_90 on, four before.
__device__ __forceinline__ void add_four(float* to, float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0],{%1,%1,%1,%1};" ::"l"(to), "f"(value));
#else
#pragma unroll
  for (int i = 0; i < 4; ++i) asm volatile("red.global.add.f32 [%0],%1;" ::"l"(to + i), "f"(value));
#endif
}

// The adds of the warp's backward alone: four lanes share a pixel, each adds a quarter of the channels at four corners
// per tap. offset (B, 2K, H, W), to (B, H, W, C).
__global__ void __launch_bounds__(kThreads)
    red_kernel(const float* offset, float* to, int pixels, int height, int width, int channels) {
  const int pixel = (blockIdx.x * kThreads + threadIdx.x) / 4;
  const int quarter = channels / 4, first = static_cast<int>(threadIdx.x % 4) * quarter;
  if (pixel >= pixels) return;
  const int area = height * width, image = pixel / area, at = pixel % area;
  const int row = at / width, col = at % width;
  const float* const own = offset + static_cast<int64_t>(image) * 2 * kTaps * area + at;
  for (int tap = 0; tap < kTaps; ++tap) {
    const int top = row + tap / 3 - 1 + __float2int_rd(own[tap * area]);
    const int left = col + tap % 3 - 1 + __float2int_rd(own[(kTaps + tap) * area]);
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int r = top + corner / 2, c = left + corner % 2;
      if (r < 0 || r >= height || c < 0 || c >= width) continue;
      const int64_t index = (static_cast<int64_t>(image) * area + r * width + c) * channels + first;
      for (int i = 0; i < quarter; i += 4) add_four(to + index + i, 1.0f);
    }
  }
}

}  // namespace

extern "C" {

int launch_empty(cudaStream_t stream) {
  empty_kernel<<<1, 32, 0, stream>>>();
  return cudaGetLastError();
}

// lane_bytes: 8 or 16; window_bytes: a power of two
int launch_gather(int lane_bytes, const void* window, unsigned window_bytes, int repeats, int blocks, void* sink,
                  cudaStream_t stream) {
  unsigned* const to = static_cast<unsigned*>(sink);
  const unsigned row_mask = window_bytes - 4 * lane_bytes;
  if (lane_bytes == 8)
    gather_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const uint2*>(window), row_mask, repeats, to);
  else
    gather_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const uint4*>(window), row_mask, repeats, to);
  return cudaGetLastError();
}

int launch_ffma(int repeats, int blocks, void* sink, cudaStream_t stream) {
  ffma_kernel<<<blocks, kThreads, 0, stream>>>(0.5f, 1.0f, repeats, static_cast<float*>(sink));
  return cudaGetLastError();
}

int launch_mma(int tf32, int repeats, int blocks, void* sink, cudaStream_t stream) {
  const auto kernel = tf32 ? mma_kernel<true> : mma_kernel<false>;
  kernel<<<blocks, kThreads, 0, stream>>>(repeats, static_cast<float*>(sink));
  return cudaGetLastError();
}

// channels: a multiple of 16
int launch_red(const void* offset, void* to, int batch, int height, int width, int channels, cudaStream_t stream) {
  const int pixels = batch * height * width, blocks = (pixels * 4 + kThreads - 1) / kThreads;
  red_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const float*>(offset), static_cast<float*>(to), pixels,
                                              height, width, channels);
  return cudaGetLastError();
}

int threads_per_block() { return kThreads; }
int chains_per_thread() { return kChains; }

}  // extern "C"
