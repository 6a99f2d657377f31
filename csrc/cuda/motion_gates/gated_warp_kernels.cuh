// The gates with the warp for one dtype. Each dtype has a file, so that they compile in parallel.
#pragma once

#include "cuda/motion_gates/gated_warp_backward.cuh"

namespace motionrnn_ext::cuda {
namespace {

template <class T>
GatedWarpKernels gated_warp_kernels() {
  return {warp_packed_bytes<T>,
          [](const WarpArguments& w, bool backward, void* to, void* stream) {
            launch_warp_pack<T>(w, backward, to, static_cast<Stream>(stream));
          },
          in_one_launch,
          [](const GatesArguments& a, const WarpArguments& w, void* stream) {
            launch_gated_warp<T>(a, w, static_cast<Stream>(stream));
          },
          [](const GatesArguments& a, const WarpArguments& w, void* stream) {
            return launch_gated_warp_finish<T>(a, w, static_cast<Stream>(stream));
          }};
}

}  // namespace
}  // namespace motionrnn_ext::cuda
