#include "cuda/motion_gates/gated_warp_kernels.cuh"

namespace motionrnn_ext::cuda {
GatedWarpKernels gated_warp_kernels_f16() { return gated_warp_kernels<__half>(); }
}  // namespace motionrnn_ext::cuda
