#include "cuda/offset_warp/kernels.cuh"

namespace motionrnn_ext::cuda {
WarpKernels warp_kernels_f32() { return warp_kernels<float>(); }
}  // namespace motionrnn_ext::cuda
