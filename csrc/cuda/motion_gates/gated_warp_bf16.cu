#include "cuda/motion_gates/gated_warp_kernels.cuh"

namespace motionrnn_ext::cuda {
GatedWarpKernels gated_warp_kernels_bf16() { return gated_warp_kernels<__nv_bfloat16>(); }
}  // namespace motionrnn_ext::cuda
