// PTX ISA, 9.7.14.5.15 to 17: ldmatrix, stmatrix and movmatrix, of matrices of 8 x 8 elements of 16 bits.
#include "isa/convergence.h"
#include "isa/fragments.h"
#include "isa/lanes.h"
#include "memory/access.h"

namespace ptx {

namespace {

using Matrix = uint16_t[8][8];

uint16_t& element(Matrix& matrix, Place place, bool transposed) {
  return transposed ? matrix[place.column][place.row] : matrix[place.row][place.column];
}

void to_lanes(Warp& warp, Matrix& matrix, bool transposed, const Operand& to) {
  alignas(64) uint32_t words[kLanes];
  for (int lane = 0; lane < kLanes; ++lane)
    words[lane] =
        element(matrix, kMatrix[lane][0], transposed) | uint32_t(element(matrix, kMatrix[lane][1], transposed)) << 16;
  write_lanes(warp, to, words);
}

void from_lanes(Warp& warp, const Operand& from, bool transposed, Matrix& matrix) {
  const uint32_t* words = warp.lanes<uint32_t>(from);
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < 2; ++i) element(matrix, kMatrix[lane][i], transposed) = uint16_t(words[lane] >> (16 * i));
}

// Lanes 8 n to 8 n + 7 hold the addresses of the rows of matrix n.
Mask lanes_with_addresses(const Instruction& in) { return in.vector == 4 ? kAllLanes : (1u << (8 * in.vector)) - 1; }

// Instruction::variant: whether matrices are transposed.
void ldmatrix(Warp& warp, const Instruction& in) {
  check_converged(warp, in, kAllLanes);
  const Addresses addresses = addresses_of(warp, in.s[0], in.offset[0]);
  const Pointers rows =
      access(warp, in, Space::shared, addresses, lanes_with_addresses(in) & warp.active, sizeof(uint16_t[8]), kRead);
  for (size_t n = 0; n < in.vector; ++n) {
    Matrix matrix;
    std::memset(matrix, 0xff, sizeof matrix);
    for (size_t row = 0; row < 8; ++row)
      if (rows[8 * n + row]) std::memcpy(matrix[row], rows[8 * n + row], sizeof matrix[row]);
    to_lanes(warp, matrix, in.variant, in.d[n]);
  }
}

void stmatrix(Warp& warp, const Instruction& in) {
  check_converged(warp, in, kAllLanes);
  const Addresses addresses = addresses_of(warp, in.s[0], in.offset[0]);
  uint8_t stored[kLanes][kStoreBytes];
  for (size_t n = 0; n < in.vector; ++n) {
    Matrix matrix;
    from_lanes(warp, in.s[1 + n], in.variant, matrix);
    for (size_t row = 0; row < 8; ++row) std::memcpy(stored[8 * n + row], matrix[row], sizeof matrix[row]);
  }
  warp.stored = stored[0];
  const Pointers rows =
      access(warp, in, Space::shared, addresses, lanes_with_addresses(in) & warp.active, sizeof(uint16_t[8]), kWrite);
  warp.stored = nullptr;
  for (int lane = 0; lane < kLanes; ++lane)
    if (rows[lane]) std::memcpy(rows[lane], stored[lane], sizeof(uint16_t[8]));
}

void movmatrix(Warp& warp, const Instruction& in) {
  check_converged(warp, in, kAllLanes);
  Matrix matrix;
  from_lanes(warp, in.s[0], false, matrix);
  to_lanes(warp, matrix, true, in.d[0]);
}

template <Execute execute>
Execute of_matrices(const Form& form, Instruction& in) {
  in.vector = form.has("x4") ? 4 : form.has("x2") ? 2 : 1;
  in.variant = form.has("trans");
  const size_t registers = execute == ldmatrix ? in.d.size() : in.s.size() - 1;
  return registers == in.vector ? execute : nullptr;
}

constexpr Opcode kOpcodes[] = {
    {"ldmatrix", "sync aligned m8n8 x1|x2|x4 trans? shared|shared::cta b16", "d4 m", Class::ldsm,
     of_matrices<ldmatrix>},
    {"stmatrix", "sync aligned m8n8 x1|x2|x4 trans? shared|shared::cta b16", "m s4", Class::ldsm,
     of_matrices<stmatrix>},
    {"movmatrix", "sync aligned m8n8 trans b16", "d4 s4", Class::movm,
     [](const Form&, Instruction&) -> Execute { return movmatrix; }},
};

}  // namespace

std::span<const Opcode> matrix_movement() { return kOpcodes; }

}  // namespace ptx
