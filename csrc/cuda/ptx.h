// The instructions that CUDA C++ has no function for.
#pragma once

#include "cuda/launch.h"

namespace motionrnn_ext::cuda {

// d += a b on the tensor cores, by the 32 lanes of a warp. Lane = 4 g + t. A register holds two half values (k = 16) or
// one tf32 value (k = 8).
//   a  16 x k: two registers for row g and two for row g + 8, given as {row g, row g + 8, row g, row g + 8}
//   b  k x 8: two registers for column g
//   d  16 x 8: {row g, columns 2t and 2t + 1, then row g + 8, the same columns}
// A lane's registers of a and of b stand for the same places of k.
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint2 b, __nv_bfloat16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint2 b, __half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}
// tf32: the instruction reads the upper 19 bits of each register.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint2 b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// Fetch the line of an address into the first-level cache.
constexpr int kLine = 128;
__device__ __forceinline__ void prefetch(const void* at) { asm volatile("prefetch.global.L1 [%0];" ::"l"(at)); }

// Transpose an 8 x 8 matrix of 16-bit values. Lane 4 g + t holds columns 2t and 2t + 1 of row g, before and after.
__device__ __forceinline__ uint32_t transpose(uint32_t pair) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(result) : "r"(pair));
  return result;
}

// Store *to = value by one instruction. nvcc splits the plain assignment of a computed vector into four.
__device__ __forceinline__ void store_vector(uint4* to, uint4 value) {
  asm volatile("st.global.v4.b32 [%0],{%1,%2,%3,%4};" ::"l"(to), "r"(value.x), "r"(value.y), "r"(value.z),
               "r"(value.w));
}

// Add *to += value atomically, four floats at a 16-byte aligned address. The asm has no memory clobber, as the sums are
// not read here.
__device__ __forceinline__ void red_add(float* to, float4 value) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0],{%1,%2,%3,%4};" ::"l"(to), "f"(value.x), "f"(value.y), "f"(value.z),
               "f"(value.w));
#else
  asm volatile(
      "red.global.add.f32 [%0],%1; red.global.add.f32 [%0+4],%2; red.global.add.f32 [%0+8],%3; "
      "red.global.add.f32 [%0+12],%4;" ::"l"(to),
      "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w));
#endif
}
__device__ __forceinline__ void red_add(unsigned long long* to, unsigned long long value) {
  asm volatile("red.global.add.u64 [%0],%1;" ::"l"(to), "l"(value));
}

}  // namespace motionrnn_ext::cuda
