// PTX ISA, 9.7.15: wgmma. Four warps multiply 64 rows together, 16 each; a comes from registers or shared memory, b
// from shared memory. The product is made when the instruction is issued: what overlaps with it is not modelled.
#include <charconv>

#include "core/options.h"
#include "core/report.h"
#include "isa/convergence.h"
#include "isa/fragments.h"
#include "isa/lanes.h"
#include "isa/tensor_core.h"
#include "memory/access.h"

namespace ptx {

namespace {

constexpr int kRows = 16, kDepth = 16, kMostColumns = 256, kUnit = 16;  // a unit is 16 bytes that lie together

// A matrix in shared memory (9.7.15.5.1.2). Offsets are between groups of 8 rows or columns, in bytes.
struct Descriptor {
  uint32_t start, leading, stride, swizzle;
  bool has_base_offset;

  explicit Descriptor(uint64_t bits) {
    constexpr uint32_t kSwizzles[] = {0, 128, 64, 32};
    start = uint32_t(bits & 0x3fff) * kUnit;
    leading = uint32_t(bits >> 16 & 0x3fff) * kUnit;
    stride = uint32_t(bits >> 32 & 0x3fff) * kUnit;
    has_base_offset = bits >> 49 & 7;
    swizzle = kSwizzles[bits >> 62];
  }

  // Of the unit that begins with the element of `row`, along m or n, and depth `k`; `bytes` are an element's. Along k
  // where the matrix is K-major, else along the rows. The bits from 7 on are xored into those from 4 on, as many as the
  // swizzle has units.
  uint32_t address(uint32_t row, uint32_t k, uint32_t bytes, bool is_k_major) const {
    if (!swizzle && is_k_major) return start + row / 8 * stride + k * bytes / kUnit * leading + row % 8 * kUnit;
    if (!swizzle) return start + row * bytes / kUnit * stride + k / 8 * leading + k % 8 * kUnit;
    const uint32_t plain =
        is_k_major ? start + row / 8 * stride + row % 8 * swizzle + k * bytes
                   : start + row * bytes / swizzle * leading + k / 8 * stride + k % 8 * swizzle + row * bytes % swizzle;
    return plain ^ (plain >> 7 & (swizzle / kUnit - 1)) << 4;
  }
};

// Reads rows [first, first + count) of a matrix; value(row - first, k, element) takes each.
template <Type type, class Value>
void read_matrix(Warp& warp, const Instruction& in, const Descriptor& from, int first, int count, bool is_k_major,
                 Value value) {
  constexpr int bytes = type == Type::tf32 ? 4 : 2, per_unit = kUnit / bytes;
  if (from.has_base_offset) {
    report(warp, in, "unsupported", "the base offset of a matrix descriptor");
    return;
  }
  const int row_step = is_k_major ? 1 : per_unit, k_step = is_k_major ? per_unit : 1;
  Addresses addresses{};
  std::array<RowColumn, kLanes> places;
  int pending = 0;
  const auto read_pending = [&] {
    const Mask lanes = pending == kLanes ? kAllLanes : (1u << pending) - 1;
    const Pointers pointers =
        access(warp, in, Space::shared, addresses, lanes, kUnit, kRead | kUncounted | kAsyncProxy);
    for (int unit = 0; unit < pending; ++unit)
      for (int i = 0; i < per_unit; ++i) {
        uint32_t bits = 0xffffffffu;
        if (pointers[unit]) std::memcpy(&bits, pointers[unit] + i * bytes, bytes);
        const auto [row, k] = places[unit];
        value(row - first + (is_k_major ? 0 : i), k + (is_k_major ? i : 0), matrix_element(type, bits));
      }
    pending = 0;
  };
  for (int row = first; row < first + count; row += row_step)
    for (int k = 0; k < in.k; k += k_step) {
      addresses[pending] = from.address(uint32_t(row), uint32_t(k), bytes, is_k_major);
      places[pending] = {row, k};
      if (++pending == kLanes) read_pending();
    }
  if (pending) read_pending();
}

// Instruction::variant: what is transposed, that is not K-major
enum Transposed { kTransposedA = 1, kTransposedB = 2 };

// Sources: the four registers of a or its descriptor, the descriptor of b, whether d is added to.
template <Type type>
void wgmma(Warp& warp, const Instruction& in) {
  check_converged(warp, in, kAllLanes);
  alignas(64) double a[kRows][kDepth] = {};
  static thread_local double b[kDepth][kMostColumns];
  const bool a_in_registers = in.s.size() > 3;
  const size_t of_a = a_in_registers ? 4 : 1;
  if (a_in_registers) {
    constexpr int per_register = type == Type::tf32 ? 1 : 2;
    for (int r = 0; r < 4; ++r)
      for (int lane = 0; lane < kLanes; ++lane)
        for (int half = 0; half < per_register; ++half) {
          Place place;
          if constexpr (type == Type::tf32)
            place = kATF32[lane][size_t(r)];
          else
            place = kA16[lane][size_t(2 * r + half)];
          a[place.row][place.column] = matrix_element(type, warp.lanes<uint32_t>(in.s[size_t(r)])[lane] >> (16 * half));
        }
  } else {
    const Descriptor from(warp.lanes<uint64_t>(in.s[0])[0]);
    const int first = warp.number % 4 * kRows;
    read_matrix<type>(warp, in, from, first, kRows, !(in.variant & kTransposedA),
                      [&](int row, int k, double value) { a[row][k] = value; });
  }
  read_matrix<type>(warp, in, Descriptor(warp.lanes<uint64_t>(in.s[of_a])[0]), 0, in.n, !(in.variant & kTransposedB),
                    [&](int column, int k, double value) { b[k][column] = value; });
  const bool adds = warp.predicate(in.s[of_a + 1]) & 1;
  for (int row = 0; row < kRows; ++row) {
    double sums[kMostColumns] = {};
    for (int k = 0; k < in.k; ++k)
      for (int column = 0; column < in.n; ++column) sums[column] += a[row][k] * b[k][column];
    for (int column = 0; column < in.n; ++column) {
      const int lane = row % 8 * 4 + column % 8 / 2, r = column / 8 * 4 + row / 8 * 2 + column % 2;  // as of kC
      float& d = warp.lanes<float>(in.d[size_t(r)])[lane];
      const float before = adds ? d : 0.0f;
      d = options.mma_mode == 0 ? float(sums[column] + double(before))
                                : cut_product_sum(a[row], &b[0][column], kMostColumns, in.k, before, in.k);
      if (d != d) d = kNaN;
    }
  }
}

// Literals: the signs of a and b, then for types of 16 bits which matrices in shared memory are transposed.
template <Type type>
Execute multiply(const Form& form, Instruction& in) {
  const std::string_view shape = form.parts[3];  // m64nNkK
  std::from_chars(shape.data() + 4, shape.data() + shape.find('k'), in.n);
  in.k = type == Type::tf32 ? 8 : 16;
  const bool a_in_registers = in.s.size() == 6;
  if (in.n % 8 || in.n < 8 || in.n > kMostColumns || int(in.d.size()) != in.n / 2) return nullptr;
  if (!a_in_registers && in.s.size() != 3) return nullptr;
  for (size_t i = 0; i < in.s.size() - 2; ++i)
    if (in.s[i].bytes != (a_in_registers ? 4 : 8)) return nullptr;
  if (in.literals[0] != 1 || in.literals[1] != 1) return nullptr;  // a negated a or b
  const size_t transpositions = type == Type::tf32 ? 0 : a_in_registers ? 1 : 2;
  if (in.literals.size() != 2 + transpositions) return nullptr;
  if (transpositions == 2 && in.literals[2]) in.variant |= kTransposedA;
  if (transpositions > 0 && in.literals.back()) in.variant |= kTransposedB;
  return wgmma<type>;
}

Execute nothing(const Form&, Instruction&) {
  return [](Warp&, const Instruction&) {};
}

constexpr Opcode kOpcodes[] = {
    {"wgmma", "mma_async sync aligned m64n*k16 f32 f16 f16", "d4 sx s8 sp i i i? i?", Class::mma, multiply<Type::f16>},
    {"wgmma", "mma_async sync aligned m64n*k16 f32 bf16 bf16", "d4 sx s8 sp i i i? i?", Class::mma,
     multiply<Type::bf16>},
    {"wgmma", "mma_async sync aligned m64n*k8 f32 tf32 tf32", "d4 sx s8 sp i i", Class::mma, multiply<Type::tf32>},
    {"wgmma", "fence|commit_group sync aligned", "", Class::other, nothing},
    {"wgmma", "wait_group sync aligned", "i", Class::other, nothing},
};

}  // namespace

std::span<const Opcode> warpgroup_multiply() { return kOpcodes; }

}  // namespace ptx
