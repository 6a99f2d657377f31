// Both directions of the warp for one dtype. Each dtype has a file, so that they compile in parallel.
#pragma once

#include "cuda/offset_warp/backward.cuh"
#include "cuda/offset_warp/forward.cuh"

namespace motionrnn_ext::cuda {
namespace {

template <class T>
WarpKernels warp_kernels() {
  return {[](const WarpArguments& a, void* stream) { launch_forward<T>(a, static_cast<Stream>(stream)); },
          [](const WarpArguments& a) {
            return choose_backward<T>(a, [&](auto backward) { return backward.workspace(a); });
          },
          [](const WarpArguments& a, void* stream) {
            choose_backward<T>(a, [&](auto backward) { backward.run(a, static_cast<Stream>(stream)); });
          },
          [](const WarpArguments& a, void* stream) {
            choose_backward<T>(a, [&](auto backward) {
              backward.launch_main(a, typename decltype(backward)::Plan(a), static_cast<Stream>(stream));
            });
          }};
}

}  // namespace
}  // namespace motionrnn_ext::cuda
