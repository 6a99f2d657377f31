// Tensors as the CUDA kernels see them: their device with its stream, and their layout as an image.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <limits>

#include "cuda/kernels.h"
#include "layouts.h"

// Opens the block that binds ops to these kernels, as STABLE_TORCH_LIBRARY_IMPL does.
#if defined(MOTIONRNN_EXT_EMULATED)
#define MOTIONRNN_EXT_CUDA_OPS(m) STABLE_TORCH_LIBRARY_IMPL(MOTIONRNN_EXT_NAMESPACE, CPU, m)
#else
#define MOTIONRNN_EXT_CUDA_OPS(m) STABLE_TORCH_LIBRARY_IMPL(MOTIONRNN_EXT_NAMESPACE, CUDA, m)
#endif

namespace motionrnn_ext::cuda {

// ---- Devices

#if defined(MOTIONRNN_EXT_EMULATED)
inline bool is_here(const Tensor& t) { return t.is_cpu(); }
struct OnDevice {
  explicit OnDevice(const Tensor&) {}
  void* stream = nullptr;
};
#else
inline bool is_here(const Tensor& t) { return t.is_cuda(); }
// Makes the tensor's device current and holds that device's current stream.
struct OnDevice {
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;

  explicit OnDevice(const Tensor& t) : guard(t.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  }
};
#endif

inline void check_here(const Tensor& t) { STD_TORCH_CHECK(is_here(t), "motionrnn_ext: mixed devices"); }

// ---- Images

// Return whether all pixels lie at one distance, so that the kernels read the tensor in place.
inline bool is_image(const Tensor& t) {
  return t.numel() == 0 || t.size(2) == 1 || t.size(3) == 1 || t.stride(2) == t.size(3) * t.stride(3);
}

inline Image image_of(const Tensor& t) {
  // An address for a tensor without elements: torch gives null, to which no offset may be added.
  static char never_read = 0;
  if (t.numel() == 0) return {&never_read, 0, 1, 1};
  const int64_t pixel = t.size(3) == 1 ? t.stride(2) : t.stride(3);
  const int64_t limit = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(t.stride(1) <= limit && pixel * bytes_of(t.scalar_type()) <= limit,
                  "motionrnn_ext: strides of channels and pixels should fit 32 bits");
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), static_cast<int32_t>(t.size(1) == 1 ? 1 : t.stride(1)),
          static_cast<int32_t>(pixel)};
}

inline Tensor readable_image(const Tensor& t) { return is_image(t) ? t : torch::stable::contiguous(t); }

}  // namespace motionrnn_ext::cuda
