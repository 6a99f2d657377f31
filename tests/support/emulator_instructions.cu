// Prints what the emulated instructions make of matrices whose products and places are known, and the order in which
// blocks and threads run. The fragments are loaded by the tables of the PTX ISA, element by element.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cuda/division.h"
#include "cuda/launch.h"
#include "cuda/ptx.h"

namespace {

using namespace motionrnn_ext::cuda;

template <class Half>
__device__ uint32_t pair(Half low, Half high) {
  return __builtin_bit_cast(uint16_t, low) | static_cast<uint32_t>(__builtin_bit_cast(uint16_t, high)) << 16;
}

// m16n8k16: element i of a lies in row g (i = 0, 1, 4, 5) or g + 8, column 2t + i % 2 or, from i = 4 on, 8 further.
template <class Half>
__global__ void multiply_halves(const Half* a, const Half* b, float* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t a_pairs[4];
  for (int i = 0; i < 8; i += 2) {
    const int row = i % 4 < 2 ? g : g + 8, column = 2 * t + (i < 4 ? 0 : 8);
    a_pairs[i / 2] = pair(a[row * 16 + column], a[row * 16 + column + 1]);
  }
  const auto b_pair = [&](int row) { return pair(b[row * 8 + g], b[(row + 1) * 8 + g]); };
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[(i < 2 ? g : g + 8) * 8 + 2 * t + i % 2];
  mma(sums, a_pairs, make_uint2(b_pair(2 * t), b_pair(2 * t + 8)), Half());
  for (int i = 0; i < 4; ++i) d[(i < 2 ? g : g + 8) * 8 + 2 * t + i % 2] = sums[i];
}

// m16n8k8: element i of a lies in row g (i = 0, 2) or g + 8, column t or, from i = 2 on, t + 4.
__global__ void multiply_tf32(const float* a, const float* b, float* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t a_bits[4];
  for (int i = 0; i < 4; ++i) a_bits[i] = __float_as_uint(a[(i % 2 == 0 ? g : g + 8) * 8 + (i < 2 ? t : t + 4)]);
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[(i < 2 ? g : g + 8) * 8 + 2 * t + i % 2];
  mma_tf32(sums, a_bits, make_uint2(__float_as_uint(b[t * 8 + g]), __float_as_uint(b[(t + 4) * 8 + g])));
  for (int i = 0; i < 4; ++i) d[(i < 2 ? g : g + 8) * 8 + 2 * t + i % 2] = sums[i];
}

__global__ void transpose_matrix(const uint16_t* from, uint16_t* to) {
  const uint32_t result = transpose(from[2 * threadIdx.x] | static_cast<uint32_t>(from[2 * threadIdx.x + 1]) << 16);
  to[2 * threadIdx.x] = static_cast<uint16_t>(result);
  to[2 * threadIdx.x + 1] = static_cast<uint16_t>(result >> 16);
}

__global__ void note_order(unsigned* next, int* order) {
  order[atomicAdd(next, 1u)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  __syncthreads();
  order[atomicAdd(next, 1u)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

// The largest error of d = d + a b, relative to the largest element.
template <class Value, class Kernel>
double error_of(Kernel kernel, int k, float (*stored)(Value), Value (*store)(float)) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<Value> a(16 * k), b(k * 8);
  for (Value& value : a) value = store(normal(random));
  for (Value& value : b) value = store(normal(random));
  std::vector<float> d(16 * 8);
  for (float& value : d) value = normal(random);
  std::vector<double> expected(d.begin(), d.end());
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column)
      for (int i = 0; i < k; ++i)
        expected[row * 8 + column] += static_cast<double>(stored(a[row * k + i])) * stored(b[i * 8 + column]);
  launch(kernel, dim3(1), 32, 0, nullptr, a.data(), b.data(), d.data());
  double error = 0, largest = 0;
  for (int i = 0; i < 16 * 8; ++i) {
    error = std::max(error, std::abs(d[i] - expected[i]));
    largest = std::max(largest, std::abs(expected[i]));
  }
  return error / largest;
}

float cut_to_19_bits(float value) { return __uint_as_float(__float_as_uint(value) & 0xffffe000u); }

}  // namespace

int main() {
  std::printf("bf16 %.3g\n",
              error_of<__nv_bfloat16>(multiply_halves<__nv_bfloat16>, 16, __bfloat162float, __float2bfloat16));
  std::printf("f16 %.3g\n", error_of<__half>(multiply_halves<__half>, 16, __half2float, __float2half));
  std::printf("tf32 %.3g\n", error_of<float>(multiply_tf32, 8, cut_to_19_bits, +[](float value) { return value; }));

  std::vector<uint16_t> matrix(64), transposed(64);
  for (int i = 0; i < 64; ++i) matrix[i] = static_cast<uint16_t>(1000 * i);
  launch(transpose_matrix, dim3(1), 32, 0, nullptr, matrix.data(), transposed.data());
  int wrong = 0;
  for (int i = 0; i < 64; ++i) wrong += transposed[i] != matrix[i % 8 * 8 + i / 8];
  std::printf("transpose %d\n", wrong);

  const uint32_t largest = 0xffffffffu, divisors[] = {1, 2, 3, 7, 4096, 65537, 0x7fffffff, 0x80000001u, largest};
  wrong = 0;
  for (uint32_t divisor : divisors) {
    const DivisionOf<uint32_t> quotient_of(divisor);
    const Division wide(divisor);
    for (uint32_t i : {0u, 1u, divisor - 1, divisor, 2 * divisor - 1, 1000003u, largest - largest % divisor, largest})
      wrong += (quotient_of(i) != i / divisor) + (wide(i) != i / divisor);
    wrong += wide(~uint64_t(0)) != ~uint64_t(0) / divisor;
  }
  std::printf("division %d\n", wrong);

  unsigned next = 0;
  std::vector<int> order(2 * 4 * 8);
  launch(note_order, dim3(4), 8, 0, nullptr, &next, order.data());
  std::printf("order");
  for (int i : order) std::printf(" %d", i);
  std::printf("\n");
}
