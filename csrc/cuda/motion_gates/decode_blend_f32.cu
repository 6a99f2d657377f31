#include "cuda/motion_gates/decode_blend.cuh"

namespace motionrnn_ext::cuda {
DecodeBlendKernels decode_blend_kernels_f32() { return decode_blend_kernels<float>(); }
}  // namespace motionrnn_ext::cuda
