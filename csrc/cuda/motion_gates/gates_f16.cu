#include "cuda/motion_gates/kernels.cuh"

namespace motionrnn_ext::cuda {
GatesKernels gates_kernels_f16() { return gates_kernels<__half>(); }
}  // namespace motionrnn_ext::cuda
