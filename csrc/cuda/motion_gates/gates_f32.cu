#include "cuda/motion_gates/kernels.cuh"

namespace motionrnn_ext::cuda {
GatesKernels gates_kernels_f32() { return gates_kernels<float>(); }
}  // namespace motionrnn_ext::cuda
