// The convolutional gates of a MotionGRU step and the motion they make, forward and backward, one band of rows at a
// time:
//
//   [u, r] = W_s * [x, F],  m = W_m * x      over the band and r rows around it
//   z = W_z * [x, s(r) F]                    over the band; then F_t and D' where z was made
//
// and backward in the opposite order. Every convolution reads framed planes (convolution.h): a band's, with 2r rows
// around it. A band computes again what it needs of its neighbours, so that no band waits for another. The pointwise
// maps are those of math/motion_gru.h. This file is compiled once per instruction set.
#include "cpu/motion_gates/backward.h"
#include "cpu/motion_gates/forward.h"
#include "cpu/motion_gates/weight_gradients.h"

namespace motionrnn_ext::cpu {
namespace {

template <class T>
int64_t packed_size(const GatesArguments& a) {
  return Plan<T>(Geometry<T>(a)).size * static_cast<int64_t>(sizeof(T));
}

template <class F>
GatesKernels kernels_for() {
  using T = typename arithmetic<F>::type;
  return {packed_size<T>, pack<T, F>, forward<T, F>, backward<T, F>, blocks_of_weights, weight_gradients<T, F>};
}

}  // namespace

GatesKernels MOTIONRNN_EXT_ISA::gates_kernels(Types types) {
  return for_features(types, []<class F>() { return kernels_for<F>(); });
}

}  // namespace motionrnn_ext::cpu
