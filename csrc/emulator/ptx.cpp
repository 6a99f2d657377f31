// Instructions of a whole warp: every lane shows its registers, then computes its own part of the result. Registers are
// no memory: compiled without -fsanitize=thread, as block.cpp is.
#include "emulator/ptx.h"

namespace motionrnn_ext::emulator {
namespace {

constexpr uint32_t kWholeWarp = 0xffffffffu;

// The tensor cores' sum is more exact than float, and is cut to float rather than rounded; what float cannot hold is
// infinite.
float cut_to_float(double sum) {
  const float rounded = static_cast<float>(sum);
  if (std::isinf(rounded)) return rounded;
  return std::fabs(static_cast<double>(rounded)) > std::fabs(sum) ? std::nextafter(rounded, 0.0f) : rounded;
}

// Lane 4 g + t has a at rows g and g + 8, b at column g, and d at rows g and g + 8, columns 2t and 2t + 1.
template <int values>
void multiply_add_lane(float (&d)[4], const Factors<values>& mine, const char* operation, Where where) {
  const Exchanged<Factors<values>> factors(kWholeWarp, mine, operation, where);
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned half = i / 2, row = lane() / 4, column = 2 * (lane() % 4) + i % 2;
    double sum = d[i];
    for (unsigned t = 0; t < 4; ++t) {
      const Factors<values>&left = factors[4 * row + t], &right = factors[4 * column + t];
      for (unsigned part = 0; part < 2; ++part)
        for (int v = 0; v < values; ++v)
          sum += static_cast<double>(left.a[half + 2 * part][v]) * static_cast<double>(right.b[part][v]);
    }
    d[i] = cut_to_float(sum);
  }
}

}  // namespace

void multiply_add(float (&d)[4], const Factors<2>& mine, const char* operation, Where where) {
  multiply_add_lane(d, mine, operation, where);
}
void multiply_add(float (&d)[4], const Factors<1>& mine, const char* operation, Where where) {
  multiply_add_lane(d, mine, operation, where);
}

uint32_t transpose(uint32_t pair, Where where) {
  const Exchanged<uint32_t> pairs(kWholeWarp, pair, "transpose", where);
  const unsigned row = lane() / 4, column = 2 * (lane() % 4);
  const auto element = [&](unsigned r, unsigned c) { return pairs[4 * r + c / 2] >> 16 * (c % 2) & 0xffffu; };
  return element(column, row) | element(column + 1, row) << 16;
}

}  // namespace motionrnn_ext::emulator
