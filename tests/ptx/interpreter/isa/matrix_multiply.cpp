// PTX ISA, 9.7.14.5: mma, d = a b + c with float32 accumulators, a by rows and b by columns.
#include "core/options.h"
#include "isa/convergence.h"
#include "isa/fragments.h"
#include "isa/lanes.h"
#include "isa/tensor_core.h"

namespace ptx {

namespace {

constexpr int kRows = 16, kColumns = 8, kDepth = 16;

// How a type's matrices lie in registers.
template <Type type>
struct Layout;
template <>
struct Layout<Type::f16> {
  static constexpr const auto& a = kA16;
  static constexpr const auto& b = kB16;
  static constexpr int per_register = 2;
};
template <>
struct Layout<Type::bf16> : Layout<Type::f16> {};
template <>
struct Layout<Type::tf32> {
  static constexpr const auto& a = kATF32;
  static constexpr const auto& b = kBTF32;
  static constexpr int per_register = 1;
};

// Registers of a and b for a depth of k: 16 x k and k x 8 elements among 32 lanes.
template <Type type>
constexpr int registers_of_a(int k) {
  return kRows * k / kLanes / Layout<type>::per_register;
}
template <Type type>
constexpr int registers_of_b(int k) {
  return kColumns * k / kLanes / Layout<type>::per_register;
}

template <Type type, size_t elements, int columns>
void gather(Warp& warp, const Operand* registers, int count, const Fragment<elements>& fragment,
            double (&matrix)[16][columns]) {
  constexpr int per_register = Layout<type>::per_register;
  for (int r = 0; r < count; ++r) {
    const uint32_t* words = warp.lanes<uint32_t>(registers[r]);
    for (int lane = 0; lane < kLanes; ++lane)
      for (int half = 0; half < per_register; ++half) {
        const Place place = fragment[lane][size_t(r * per_register + half)];
        matrix[place.row][place.column] = matrix_element(type, words[lane] >> (16 * half));
      }
  }
}

// Products that the tensor cores of a target sum at once (Li et al., "FTTN: feature-targeted testing for numerical
// properties of NVIDIA & AMD matrix accelerators").
template <Type type>
int products_at_once(int target) {
  if (options.mma_group) return options.mma_group;
  return (type == Type::tf32 ? 4 : 8) * (target >= 90 ? 2 : 1);
}

// Sources: the registers of a, b and c.
template <Type type>
void mma(Warp& warp, const Instruction& in) {
  check_converged(warp, in, kAllLanes);
  alignas(64) double a[kRows][kDepth], b[kDepth][kColumns], sums[kRows][kColumns];
  const int of_a = registers_of_a<type>(in.k), of_b = registers_of_b<type>(in.k);
  gather<type>(warp, in.s.data(), of_a, Layout<type>::a, a);
  gather<type>(warp, in.s.data() + of_a, of_b, Layout<type>::b, b);
  const Operand* c = in.s.data() + of_a + of_b;
  for (int row = 0; row < kRows; ++row) {
    double of_row[kColumns] = {};
    for (int k = 0; k < in.k; ++k)
      for (int column = 0; column < kColumns; ++column) of_row[column] += a[row][k] * b[k][column];
    std::memcpy(sums[row], of_row, sizeof of_row);
  }
  // All of c is read before any of d is written: they may share registers, in another order.
  alignas(64) float results[4][kLanes];
  const int group = products_at_once<type>(warp.block->kernel->target);
  for (size_t i = 0; i < 4; ++i) {
    const float* before = warp.lanes<float>(c[i]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto [row, column] = kC[lane][i];
      const float result = options.mma_mode == 0
                               ? float(sums[row][column] + double(before[lane]))
                               : cut_product_sum(a[row], &b[0][column], kColumns, in.k, before[lane], group);
      results[i][lane] = result != result ? kNaN : result;
    }
  }
  for (size_t i = 0; i < 4; ++i) write_lanes(warp, in.d[i], results[i]);
}

template <Type type>
Execute multiply(const Form& form, Instruction& in) {
  in.k = form.has("m16n8k16") ? 16 : form.has("m16n8k8") ? 8 : 4;
  const int sources = registers_of_a<type>(in.k) + registers_of_b<type>(in.k) + 4;
  return in.d.size() == 4 && int(in.s.size()) == sources ? Execute(mma<type>) : nullptr;
}

constexpr Opcode kOpcodes[] = {
    {"mma", "sync aligned m16n8k8|m16n8k16 row col f32 f16 f16 f32", "d4 s4 s4 s4", Class::mma, multiply<Type::f16>},
    {"mma", "sync aligned m16n8k8|m16n8k16 row col f32 bf16 bf16 f32", "d4 s4 s4 s4", Class::mma, multiply<Type::bf16>},
    {"mma", "sync aligned m16n8k4|m16n8k8 row col f32 tf32 tf32 f32", "d4 s4 s4 s4", Class::mma, multiply<Type::tf32>},
};

}  // namespace

std::span<const Opcode> matrix_multiply() { return kOpcodes; }

}  // namespace ptx
