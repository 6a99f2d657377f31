// What the bindings of all CPU kernels share: the instruction set, how images lie in memory, bands and workspace.
#pragma once

#include <numeric>

#include "cpu/kernels.h"
#include "layouts.h"

namespace motionrnn_ext::cpu {

struct InstructionSet {
  const char* name;
  PointwiseKernel (*pointwise)(Map, Types);
  WarpKernels (*warp)(Types);
  GatesKernels (*gates)(Types);
  WinogradKernels (*winograd)(Types);
};

const InstructionSet& instruction_set();

// Return whether each pixel's channels are contiguous and all pixels lie at one distance; the batch stride may be any.
inline bool has_channels_last_pixels(const Tensor& t) {
  return (t.size(1) == 1 || t.stride(1) == 1) &&
         (t.size(2) == 1 || t.size(3) == 1 || t.stride(2) == t.stride(3) * t.size(3));
}

inline Image image_of(const Tensor& t) {
  const bool planes = is_dense_from(t, 1);
  STD_TORCH_CHECK(planes || has_channels_last_pixels(t),
                  "motionrnn_ext: an image is neither contiguous nor channels_last");
  if (planes) return {t.const_data_ptr(), t.stride(0), t.size(2) * t.size(3), 1};
  return {t.const_data_ptr(), t.stride(0), 1, t.size(3) == 1 ? t.stride(2) : t.stride(3)};
}

inline Tensor readable_image(const Tensor& t) {
  return is_dense_from(t, 1) || has_channels_last_pixels(t) ? t : torch::stable::contiguous(t);
}

// Return the number of bands that each image is cut into, so that every thread gets the same number of items.
inline int64_t bands_for_threads(int64_t batch) {
  const int64_t threads = torch::stable::get_num_threads();
  return batch >= 4 * threads ? 1 : threads / std::gcd(batch, threads);
}

inline Tensor workspace(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, std::array<int64_t, 1>{bytes}, ScalarType::Byte);
}

}  // namespace motionrnn_ext::cpu
