// Prints how the warp's kernels are launched for k = 3, which their machine code does not tell: a line of threads,
// bytes of dynamic shared memory and the beginning of a kernel's name. Read by tests/support/static_report.py.
#include <cstdio>

#include "cuda/motion_gates/decode_blend.cuh"
#include "cuda/motion_gates/gated_warp_backward.cuh"
#include "cuda/offset_warp/backward.cuh"
#include "cuda/offset_warp/forward.cuh"

using namespace motionrnn_ext::cuda;

template <class T, int N>
void print_forward(const char* type) {
  std::printf("%d %zu warp_forward<%s, %d\n", kForwardWarps * kWarp, ForwardShape<T, N>::kSharedBytes, type, N);
  std::printf("%d %zu packed_warp_forward<%s, %d\n", kForwardWarps * kWarp, kForwardWarps * kTapsBytes, type, N);
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
  std::printf("%d %zu gates_forward<%s\n", kWideThreads, bytes(16) + bytes(18), type);
  std::printf("%d %zu candidate_forward<%s\n", kGatesThreads, bytes(18), type);
  std::printf("%d %zu reset_backward<%s\n", kGatesThreads, bytes(18), type);
  std::printf("%d %zu inputs_backward<%s\n", kWideThreads, bytes(36) + bytes(27), type);
}

// 16 channels, 1x1 gates.
template <class T, int N>
void print_gated_warp(const char* type) {
  GatesArguments a{};
  a.height = a.width = 16, a.channels = N, a.motion = 18, a.masks = 9, a.size = 1;
  const TileShape shape = row_of_pixels(a);
  const auto bytes = [&](int channels) {
    return Operand({}, {1, channels}, 1, nullptr, channels).shared_bytes<T>(shape);
  };
  const GatedWarp gates{{{}, {1, N}, 1, nullptr, 63},
                        {{}, {1, 18}, 1, nullptr, 36},
                        {{}, {1, 18}, 1, nullptr, 18},
                        shape,
                        1,
                        256,
                        18,
                        63};
  std::printf("%d %zu gated_warp_forward<%s, %d\n", kGatesThreads,
              kPartsBytes + gates.logits_bytes() + bytes(N) + 2 * bytes(18), type, N);
  std::printf("%d %zu finish_update<%s, %d\n", kFinishThreads, kFinishThreads * sizeof(float), type, N);
  const FinishGates finish{{{}, {1, 18}, 1, nullptr, 18},
                           {{}, {1, 36}, 1, nullptr, 34},
                           {{}, {1, 27}, 1, nullptr, 16},
                           shape,
                           256,
                           9,
                           16,
                           20};
  std::printf("%d %zu finish_gates<%s, %d\n", kFinishThreads, finish.template shared_bytes<T>(18), type, N);
}

// 64 channels, of which 16 are encoded.
template <class T>
void print_decode_blend(const char* type) {
  const TileShape half(16, 16, 1), row(1, kTilePixels, 0);
  const Operand of_maps({}, PackedDecodeBlend<T>::steps(1, 64), 1, nullptr, 64);
  const Operand warped({}, PackedDecodeBlend<T>::steps(2, 16), 1, nullptr, 64);
  std::printf("%d %zu decode_blend<%s\n", kGatesThreads,
              warped.shared_bytes<T>(half) + 2 * of_maps.shared_bytes<T>(row), type);
  std::printf("%d %zu blend_backward<%s\n", kGatesThreads,
              of_maps.shared_bytes<T>(row) + 2 * of_maps.staged_quads(row) * sizeof(Quad<T>), type);
}

template <class T>
void print_all(const char* type) {
  print_gates<T>(type), print_decode_blend<T>(type);
  print_gated_warp<T, 8>(type), print_gated_warp<T, 16>(type), print_gated_warp<T, 32>(type);
  print_forward<T, 8>(type), print_forward<T, 16>(type), print_forward<T, 32>(type), print_forward<T, 64>(type);
  print_backward<T, 8, false>(type), print_backward<T, 16, false>(type), print_backward<T, 32, false>(type);
  print_backward<T, 32, true>(type);
  std::printf("%d %zu prepare_backward<%s\n", kPrepareThreads, kPrepareThreads * sizeof(uint32_t), type);
  std::printf("%d %zu finish_backward<%s\n", kFinishThreads, kFinishThreads * sizeof(float), type);
}

int main() { print_all<float>("float"), print_all<__nv_bfloat16>("bf16"), print_all<__half>("half"); }
