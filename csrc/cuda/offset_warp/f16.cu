#include "cuda/offset_warp/kernels.cuh"

namespace motionrnn_ext::cuda {
WarpKernels warp_kernels_f16() { return warp_kernels<__half>(); }
}  // namespace motionrnn_ext::cuda
