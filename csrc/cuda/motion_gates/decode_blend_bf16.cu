#include "cuda/motion_gates/decode_blend.cuh"

namespace motionrnn_ext::cuda {
DecodeBlendKernels decode_blend_kernels_bf16() { return decode_blend_kernels<__nv_bfloat16>(); }
}  // namespace motionrnn_ext::cuda
