// PTX ISA, 9.7.4: instructions of half precision, one number or two in a register.
#include "isa/lanes.h"

namespace ptx {

namespace {

// float32 holds more than twice the bits of either format: rounding a sum or product again to 16 bits is right.
constexpr auto add = [](float a, float b) { return a + b; };
constexpr auto subtract = [](float a, float b) { return a - b; };
constexpr auto multiply = [](float a, float b) { return a * b; };
constexpr auto negate = [](float a) { return -a; };
constexpr auto absolute = [](float a) { return std::fabs(a); };
constexpr auto lesser = [](float a, float b) { return minimum(a, b); };
constexpr auto greater = [](float a, float b) { return maximum(a, b); };
constexpr auto lesser_nan = [](float a, float b) { return minimum_nan(a, b); };
constexpr auto greater_nan = [](float a, float b) { return maximum_nan(a, b); };
constexpr auto tanh_of = [](float a) { return float(std::tanh(double(a))); };
constexpr auto exp2_of = [](float a) { return float(std::exp2(double(a))); };

template <class F, auto operation>
constexpr auto of_bits = [](auto... bits) { return F::of(operation(F::to_float(uint16_t(bits))...)); };

// A product and sum that is rounded once.
template <class F>
constexpr auto fused = [](uint16_t a, uint16_t b, uint16_t c) {
  constexpr Format format = std::is_same_v<F, Half> ? kHalfFormat : kBFloat16Format;
  const double exact = exact_or_odd_sum(double(F::to_float(a)) * F::to_float(b), double(F::to_float(c)));
  return F::of(float(round_to_format(exact, format, Rounding::nearest_even)));
};

template <auto one>
constexpr auto both_halves =
    [](auto... words) { return uint32_t(one(uint16_t(words >> 16)...)) << 16 | one(uint16_t(words)...); };

template <auto one, bool is_pair, size_t operands>
Execute lanes_of() {
  if constexpr (is_pair) {
    if constexpr (operands == 1) return each_lane<[](uint32_t a) { return both_halves<one>(a); }, uint32_t, uint32_t>;
    if constexpr (operands == 2)
      return each_lane<[](uint32_t a, uint32_t b) { return both_halves<one>(a, b); }, uint32_t, uint32_t, uint32_t>;
    if constexpr (operands == 3)
      return each_lane<[](uint32_t a, uint32_t b, uint32_t c) { return both_halves<one>(a, b, c); }, uint32_t, uint32_t,
                       uint32_t, uint32_t>;
  } else {
    if constexpr (operands == 1) return each_lane<[](uint16_t a) { return one(a); }, uint16_t, uint16_t>;
    if constexpr (operands == 2)
      return each_lane<[](uint16_t a, uint16_t b) { return one(a, b); }, uint16_t, uint16_t, uint16_t>;
    if constexpr (operands == 3)
      return each_lane<[](uint16_t a, uint16_t b, uint16_t c) { return one(a, b, c); }, uint16_t, uint16_t, uint16_t,
                       uint16_t>;
  }
}

template <auto operation>
Execute halves(const Form& form, Instruction&) {
  constexpr size_t operands = std::is_invocable_v<decltype(operation), float> ? 1 : 2;
  switch (form.type) {
    case Type::f16: return lanes_of<of_bits<Half, operation>, false, operands>();
    case Type::f16x2: return lanes_of<of_bits<Half, operation>, true, operands>();
    case Type::bf16: return lanes_of<of_bits<BFloat16, operation>, false, operands>();
    case Type::bf16x2: return lanes_of<of_bits<BFloat16, operation>, true, operands>();
    default: return nullptr;
  }
}

Execute fused_halves(const Form& form, Instruction&) {
  switch (form.type) {
    case Type::f16: return lanes_of<fused<Half>, false, 3>();
    case Type::f16x2: return lanes_of<fused<Half>, true, 3>();
    case Type::bf16: return lanes_of<fused<BFloat16>, false, 3>();
    case Type::bf16x2: return lanes_of<fused<BFloat16>, true, 3>();
    default: return nullptr;
  }
}

constexpr Opcode kOpcodes[] = {
    {"add", "rn? <half>", "dt st st", Class::fp32, halves<add>},
    {"sub", "rn? <half>", "dt st st", Class::fp32, halves<subtract>},
    {"mul", "rn? <half>", "dt st st", Class::fp32, halves<multiply>},
    {"fma", "rn <half>", "dt st st st", Class::fp32, fused_halves},
    {"neg", "<half>", "dt st", Class::fp32, halves<negate>},
    {"abs", "<half>", "dt st", Class::fp32, halves<absolute>},
    {"min", "<half>", "dt st st", Class::fp32, halves<lesser>},
    {"max", "<half>", "dt st st", Class::fp32, halves<greater>},
    {"min", "NaN <half>", "dt st st", Class::fp32, halves<lesser_nan>},
    {"max", "NaN <half>", "dt st st", Class::fp32, halves<greater_nan>},
    {"tanh", "approx <half>", "dt st", Class::mufu, halves<tanh_of>},
    {"ex2", "approx f16|f16x2", "dt st", Class::mufu, halves<exp2_of>},
    // Of subnormal bf16, 2^x is 1 with .ftz as well as without.
    {"ex2", "approx ftz bf16|bf16x2", "dt st", Class::mufu, halves<exp2_of>},
};

}  // namespace

std::span<const Opcode> half_precision() { return kOpcodes; }

}  // namespace ptx
