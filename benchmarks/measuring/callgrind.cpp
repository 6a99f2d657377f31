// Runs one CPU kernel once on maps of noise, for valgrind to count its instructions: `callgrind KERNEL B C SIZE`.
// Without arguments: the compiler, the C library and the kernels that there are. Built and read by callgrind.py.
#include <gnu/libc-version.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>

#include "cpu/kernels.h"

using namespace motionrnn_ext;
using Call = std::function<void()>;

// What is counted, its callees included: callgrind.py names it to valgrind.
extern "C" __attribute__((noinline)) void counted_call(const Call& call) { call(); }

namespace {

constexpr int kKernelSize = 3;
constexpr int64_t kTaps = kKernelSize * kKernelSize, kMotion = 2 * kTaps;

// Float32 maps of one size, contiguous, in memory as PyTorch aligns it; the end of the program frees it.
struct Maps {
  int64_t batch, channels, size;
  std::mt19937 random;  // its numbers, unlike distributions', are the same everywhere

  float* noise(int64_t count, float scale) {
    constexpr size_t kAlignment = 64;
    const size_t bytes = (count * sizeof(float) + kAlignment) / kAlignment * kAlignment;
    float* const values = static_cast<float*>(std::aligned_alloc(kAlignment, bytes));
    for (int64_t i = 0; i < count; ++i) values[i] = scale * (static_cast<float>(random() >> 8) * 0x1p-23f - 1.0f);
    return values;
  }
  void* bytes(int64_t count) { return noise(count / sizeof(float) + 1, 0); }
  cpu::Image map(int64_t of_channels, float scale = 2.0f) {
    const int64_t pixels = size * size;
    return {noise(batch * of_channels * pixels, scale), of_channels * pixels, pixels, 1};
  }
};

// As csrc/cpu/bindings.cpp with one thread.
Call offset_warp(Maps maps, bool backward) {
  cpu::WarpArguments a{};
  a.batch = maps.batch, a.channels = a.out_channels = maps.channels, a.height = a.width = maps.size;
  a.k = kKernelSize, a.bands = 1, a.groups = static_cast<int>(std::min<int64_t>(a.batch, 4));
  a.x = maps.map(a.channels), a.offset = maps.map(kMotion), a.mask_logits = maps.map(kTaps);
  a.weight = maps.noise(a.out_channels * a.channels * kTaps, 0.1f);
  a.out = maps.map(a.out_channels);
  const cpu::WarpKernels kernels = cpu::x86_64_v3::warp_kernels(math::Types::f32);
  const cpu::WarpSizes sizes = kernels.sizes(a);
  a.packed_weight = maps.bytes(sizes.packed_weight);
  if (!backward)
    return [=] {
      kernels.pack(a);
      kernels.forward(a, 0, a.batch * a.bands);
    };
  a.grad_x = maps.map(a.channels), a.grad_offset = maps.map(kMotion), a.grad_mask_logits = maps.map(kTaps);
  a.grad_weight = maps.noise(a.out_channels * a.channels * kTaps, 0);
  a.grad_matrix = maps.bytes(a.groups * sizes.grad_matrix_per_group);
  return [=] {
    kernels.pack(a);
    kernels.backward(a, 0, a.groups);
    kernels.sum_matrices(a);
  };
}

Call motion_gates(Maps maps, bool backward) {
  cpu::GatesArguments a{};
  a.batch = maps.batch, a.channels = maps.channels, a.motion = kMotion, a.masks = kTaps;
  a.height = a.width = maps.size, a.k = kKernelSize, a.alpha = 0.5, a.max_offset = 1e4, a.bands = 1, a.groups = 1;
  a.x = maps.map(a.channels), a.offset = maps.map(kMotion);
  a.update = maps.map(kMotion), a.reset = maps.map(kMotion), a.candidate = maps.map(kMotion);
  a.new_offset = maps.map(kMotion);
  const int64_t outs = 3 * kMotion + kTaps;
  const auto weight = [&](int64_t out, int64_t in) { return maps.noise(out * in * kTaps, 0.1f); };
  a.x_weight = weight(outs, a.channels), a.x_bias = maps.noise(outs, 0.1f);
  a.state_weight = weight(2 * kMotion, kMotion), a.candidate_weight = weight(kMotion, kMotion);
  const cpu::GatesKernels kernels = cpu::x86_64_v3::gates_kernels(math::Types::f32);
  const cpu::GatesSizes sizes = kernels.sizes(a);
  a.packed = maps.bytes(sizes.packed);
  if (!backward) {
    a.trend = maps.map(kMotion), a.new_trend = maps.map(kMotion);
    a.mask = maps.map(kTaps);
    return [=] {
      kernels.pack(a, false);
      kernels.forward(a, 0, a.batch * a.bands);
    };
  }
  a.grad_new_offset = maps.map(kMotion), a.grad_new_trend = maps.map(kMotion), a.grad_mask = maps.map(kTaps);
  a.grad_x = maps.map(a.channels), a.grad_offset = maps.map(kMotion), a.grad_trend = maps.map(kMotion);
  a.grad_x_weight = weight(outs, a.channels), a.grad_x_bias = maps.noise(outs, 0);
  a.grad_state_weight = weight(2 * kMotion, kMotion), a.grad_candidate_weight = weight(kMotion, kMotion);
  a.sums = maps.bytes(a.groups * sizes.sums_per_group);
  return [=] {
    kernels.pack(a, true);
    kernels.backward(a, 0, a.groups);
    kernels.sum_weights(a);
  };
}

struct Kernel {
  const char* name;
  Call (*prepare)(Maps, bool backward);
  bool backward;
};
constexpr Kernel kKernels[] = {
    {"offset_warp", offset_warp, false},
    {"offset_warp_backward", offset_warp, true},
    {"motion_gates", motion_gates, false},
    {"motion_gates_backward", motion_gates, true},
};

}  // namespace

int main(int count, char** arguments) {
  if (count == 1) {
#if defined(__clang__)
    std::printf("clang %d.%d.%d", __clang_major__, __clang_minor__, __clang_patchlevel__);
#else
    std::printf("g++ %d.%d.%d", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#endif
    std::printf(", glibc %s\n", gnu_get_libc_version());
    for (const Kernel& kernel : kKernels) std::puts(kernel.name);
    return 0;
  }
  for (const Kernel& kernel : kKernels) {
    if (count != 5 || std::strcmp(arguments[1], kernel.name) != 0) continue;
    counted_call(kernel.prepare({std::atoll(arguments[2]), std::atoll(arguments[3]), std::atoll(arguments[4]), {}},
                                kernel.backward));
    return 0;
  }
  std::fputs("usage: callgrind KERNEL BATCH CHANNELS SIZE\n", stderr);
  return 2;
}
