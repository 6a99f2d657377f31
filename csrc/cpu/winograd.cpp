// 5x5 convolutions by Winograd's algorithm F(2x2, 5x5): 36 products for a tile of 2x2 results, in place of 100.
// This file is compiled once per instruction set.
#include "cpu/winograd/forward.h"
#include "cpu/winograd/packing.h"
#include "cpu/winograd/weight_gradient.h"

namespace motionrnn_ext::cpu {
namespace {

int64_t blocks(const WinogradArguments& a) { return Blocks(a.out_channels).count; }

template <class T>
WinogradKernels kernels_for() {
  return {packed_size<T>, blocks, plan<T>, pack<T>, forward<T>, weight_gradient<T>};
}

}  // namespace

WinogradKernels MOTIONRNN_EXT_ISA::winograd_kernels(Types types) {
  return types == Types::f64 ? kernels_for<double>() : kernels_for<float>();
}

}  // namespace motionrnn_ext::cpu
