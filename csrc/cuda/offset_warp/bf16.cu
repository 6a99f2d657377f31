#include "cuda/offset_warp/kernels.cuh"

namespace motionrnn_ext::cuda {
WarpKernels warp_kernels_bf16() { return warp_kernels<__nv_bfloat16>(); }
}  // namespace motionrnn_ext::cuda
