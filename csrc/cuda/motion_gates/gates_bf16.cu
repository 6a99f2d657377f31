#include "cuda/motion_gates/kernels.cuh"

namespace motionrnn_ext::cuda {
GatesKernels gates_kernels_bf16() { return gates_kernels<__nv_bfloat16>(); }
}  // namespace motionrnn_ext::cuda
