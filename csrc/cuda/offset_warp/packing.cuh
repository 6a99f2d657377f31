// The weight of the warp as fragments, packed once for many launches: forward's as its lanes read them from device
// memory, or as a block copies them to shared memory; backward's as a block copies them.
#pragma once

#include "cuda/offset_warp/backward.cuh"
#include "cuda/offset_warp/forward.cuh"

namespace motionrnn_ext::cuda {
namespace {

constexpr int kPackThreads = 128;

// Return whether there is a packed weight: not where it is staged chunk by chunk.
inline bool is_packed(const WarpArguments& a) {
  return a.k * a.k <= kTapChunk && std::max(a.channels, a.out_channels) <= 32;
}

// Call `use` with the channels that the kernels of a packed weight are compiled for.
template <class Use>
auto for_channels(const WarpArguments& a, Use&& use) {
  const int channels = std::max(a.channels, a.out_channels);
  if (channels <= 8) return use(std::integral_constant<int, 8>());
  if (channels <= 16) return use(std::integral_constant<int, 16>());
  return use(std::integral_constant<int, 32>());
}

// Return the fragments of one direction. Forward's are followed by those of taps that fill up the last step of a warp.
template <class T, int N, bool backward>
int fragments_count(const WarpArguments& a) {
  const int taps = a.k * a.k;
  if constexpr (backward) {
    using In = typename BackwardShape<T, N>::In;
    return (taps + In::kTaps - 1) / In::kTaps * BackwardShape<T, N>::kFragments;
  } else {
    return (taps + (ForwardShape<T, N>::In::kTaps - 1) * kForwardWarps) * ForwardShape<T, N>::kFragments;
  }
}

// Return the fragment of a tap for column g and lane t of the tap, 0 beyond the channels and taps.
template <class T, int N>
__device__ __forceinline__ uint2 forward_fragment(const WarpArguments& a, int tap, int fragment, int g, int t) {
  using Shape = ForwardShape<T, N>;
  constexpr int kSlots = Shape::In::kSlotsOfMma;
  const int tile = fragment / Shape::In::kMmas, product = fragment % Shape::In::kMmas, taps = a.k * a.k;
  const int o = Shape::Out::channel(g >> 1, 2 * tile + (g & 1)), c = Shape::In::channel(t, product * kSlots);
  const int slots = o < a.out_channels && tap < taps ? a.channels - c : 0;
  const T* from = static_cast<const T*>(a.weight) + (int64_t(o) * a.channels + c) * taps + tap;
  T slot[kSlots];
#pragma unroll
  for (int s = 0; s < kSlots; ++s) slot[s] = s < slots ? __ldg(from + s * taps) : from_float<T>(0.0f);
  uint2 word;
  memcpy(&word, slot, sizeof(word));
  return word;
}

// Each thread packs a fragment.
template <class T, int N, bool backward>
__global__ void __launch_bounds__(kPackThreads) warp_pack(const WarpArguments a, const int count, uint2* to) {
  const int i = blockIdx.x * kPackThreads + threadIdx.x;
  if (i >= count) return;
  if constexpr (backward) {
    using Shape = BackwardShape<T, N>;
    const int step = i / Shape::kFragments, fragment = i % Shape::kFragments / kWarp;
    to[i] = weight_fragment<T, N>(a, step * Shape::In::kTaps, 0, 0, fragment / Shape::kTiles, fragment % Shape::kTiles,
                                  i % kWarp);
  } else {
    using Shape = ForwardShape<T, N>;
    const int tap = i / Shape::kFragments, in_tap = i % Shape::kFragments, lane = in_tap % Shape::kLanesOfTap;
    const int fragment = in_tap / Shape::kLanesOfTap, g = lane / Shape::In::kLanes, t = lane % Shape::In::kLanes;
    to[tap * Shape::kFragments + Shape::place(fragment, g, t)] = forward_fragment<T, N>(a, tap, fragment, g, t);
  }
}

template <class T>
size_t warp_packed_bytes(const WarpArguments& a, bool backward) {
  if (!is_packed(a)) return 0;
  return sizeof(uint2) * for_channels(a, [&](auto n) {
           return backward ? fragments_count<T, n(), true>(a) : fragments_count<T, n(), false>(a);
         });
}

template <class T>
void launch_warp_pack(const WarpArguments& a, bool backward, void* to, Stream stream) {
  for_channels(a, [&](auto n) {
    const int count = static_cast<int>(warp_packed_bytes<T>(a, backward) / sizeof(uint2));
    launch(backward ? warp_pack<T, n(), true> : warp_pack<T, n(), false>,
           dim3((count + kPackThreads - 1) / kPackThreads), kPackThreads, 0, stream, a, count, static_cast<uint2*>(to));
  });
}

}  // namespace
}  // namespace motionrnn_ext::cuda
