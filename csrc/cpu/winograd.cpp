// 5x5 convolutions by Winograd's algorithm: F(2x2, 5x5), 36 products for a tile of 2x2 results in place of 100, and for
// maps in bfloat16 F(4x4, 5x5), 64 products for 4x4 in place of 400.
// This file is compiled once per instruction set.
#include "cpu/winograd/forward.h"
#include "cpu/winograd/packing.h"
#include "cpu/winograd/weight_gradient.h"

namespace motionrnn_ext::cpu {
namespace {

int64_t blocks(const WinogradArguments& a) { return Blocks(a.out_channels).count; }

template <class F>
WinogradKernels kernels_for() {
  return {packed_size<F>, blocks, plan<F>, pack<F>, forward<F>, weight_gradient<F>};
}

}  // namespace

WinogradKernels MOTIONRNN_EXT_ISA::winograd_kernels(Types types) {
  if (types == Types::f64) return kernels_for<double>();
  return types == Types::bf16 ? kernels_for<bfloat16>() : kernels_for<float>();
}

}  // namespace motionrnn_ext::cpu
