#include "cuda/motion_gates/gated_warp_kernels.cuh"

namespace motionrnn_ext::cuda {
GatedWarpKernels gated_warp_kernels_f32() { return gated_warp_kernels<float>(); }
}  // namespace motionrnn_ext::cuda
