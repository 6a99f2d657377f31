// Both directions of the gates for one dtype. Each dtype has a file, so that they compile in parallel.
#pragma once

#include "cuda/motion_gates/backward.cuh"

namespace motionrnn_ext::cuda {
namespace {

template <class T>
GatesKernels gates_kernels() {
  return {[](const GatesArguments& a, bool backward) {
            const Packed<T> packed{a};
            return (backward ? packed.backward(nullptr) : packed.forward(nullptr)).template bytes<T>();
          },
          [](const GatesArguments& a, bool backward, void* stream) {
            const Packed<T> packed{a};
            launch_pack<T>(backward ? packed.backward(a.packed) : packed.forward(a.packed),
                           static_cast<Stream>(stream));
          },
          [](const GatesArguments& a, void* stream) { launch_forward<T>(a, static_cast<Stream>(stream)); },
          [](const GatesArguments& a, void* stream) { launch_backward<T>(a, static_cast<Stream>(stream)); },
          [](const GatesArguments& a, const WarpArguments& w, void* stream) {
            launch_convolutions_backward<T>(a, w, static_cast<Stream>(stream));
          }};
}

}  // namespace
}  // namespace motionrnn_ext::cuda
