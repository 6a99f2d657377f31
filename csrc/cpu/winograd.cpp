// Convolutions by Winograd's algorithm. 3x3: F(4x4, 3x3), 36 products for a tile of 4x4 results in place of 144. 5x5:
// F(2x2, 5x5), 36 products for a tile of 2x2 results in place of 100, and for maps in bfloat16 F(4x4, 5x5), 64 products
// for 4x4 in place of 400.
// This file is compiled once per instruction set.
#include "cpu/winograd/forward.h"
#include "cpu/winograd/packing.h"
#include "cpu/winograd/weight_gradient.h"

namespace motionrnn_ext::cpu {
namespace {

int64_t blocks(const WinogradArguments& a) { return Blocks(a.out_channels).count; }

template <class Size>
WinogradKernels kernels_of_size() {
  return {packed_size<Size>, blocks, plan<Size>, pack<Size>, forward<Size>, weight_gradient<Size>};
}

template <class F>
WinogradKernels kernels_for(int k) {
  return k == 3 ? kernels_of_size<TileSize<F, 3>>() : kernels_of_size<TileSize<F, 5>>();
}

}  // namespace

WinogradKernels MOTIONRNN_EXT_ISA::winograd_kernels(Types types, int k) {
  if (types == Types::f64) return kernels_for<double>(k);
  return types == Types::bf16 ? kernels_for<bfloat16>(k) : kernels_for<float>(k);
}

}  // namespace motionrnn_ext::cpu
