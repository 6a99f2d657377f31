// Prints how the warp's kernels are launched for k = 3, which their machine code does not tell: a line of threads,
// bytes of dynamic shared memory and the beginning of a kernel's name. Read by tests/support/static_report.py.
#include <cstdio>

#include "cuda/motion_gates/backward.cuh"
#include "cuda/offset_warp/backward.cuh"
#include "cuda/offset_warp/forward.cuh"

using namespace motionrnn_ext::cuda;

template <class T, int N>
void print_forward(const char* type) {
  std::printf("%d %zu warp_forward<%s, %d\n", kForwardWarps * kWarp, ForwardShape<T, N>::kSharedBytes, type, N);
}

template <class T, int N, bool chunked>
void print_backward(const char* type) {
  WarpArguments a{};
  a.k = 3;
  const int warps = std::min(BackwardPlan<T, N, chunked>(a).steps, kBackwardWarps<N>);
  for (const char* vectors : {"false", "true"})
    std::printf("%d %zu warp_backward<%s, %d, %s, %s\n", warps * kWarp, backward_shared_bytes<T, N, chunked>(warps),
                type, N, vectors, chunked ? "true" : "false");
}

// 16 channels, 3x3 gates, a map wider than 8.
template <class T>
void print_gates(const char* type) {
  const TileShape shape(16, 16, 1);
  const auto bytes = [&](int channels) {
    return Operand({}, {3, channels}, 1, nullptr, channels).shared_bytes<T>(shape);
  };
  std::printf("%d %zu gates_forward<%s\n", kGatesThreads, bytes(16) + bytes(18), type);
  std::printf("%d %zu candidate_forward<%s\n", kGatesThreads, bytes(18), type);
  std::printf("%d %zu reset_backward<%s\n", kGatesThreads, bytes(18), type);
  std::printf("%d %zu inputs_backward<%s\n", kGatesThreads, bytes(36) + bytes(27), type);
}

template <class T>
void print_all(const char* type) {
  print_gates<T>(type);
  print_forward<T, 8>(type), print_forward<T, 16>(type), print_forward<T, 32>(type), print_forward<T, 64>(type);
  print_backward<T, 8, false>(type), print_backward<T, 16, false>(type), print_backward<T, 32, false>(type);
  print_backward<T, 32, true>(type);
  std::printf("%d %zu prepare_backward<%s\n", kPrepareThreads, kPrepareThreads * sizeof(uint32_t), type);
  std::printf("%d %zu finish_backward<%s\n", kFinishThreads, kFinishThreads * sizeof(float), type);
}

int main() { print_all<float>("float"), print_all<__nv_bfloat16>("bf16"), print_all<__half>("half"); }
