#include "cuda/motion_gates/decode_blend.cuh"

namespace motionrnn_ext::cuda {
DecodeBlendKernels decode_blend_kernels_f16() { return decode_blend_kernels<__half>(); }
}  // namespace motionrnn_ext::cuda
