// PTX ISA, 9.7.3: floating-point instructions of single and double precision.
#include "core/options.h"
#include "isa/lanes.h"

namespace ptx {

namespace {

// Return a result; of those in single precision, every NaN is the canonical one. The host's has the sign and the
// payload of an operand, so that a + b and b + a would differ.
template <class T>
T canonical(T result) {
  if constexpr (std::is_same_v<T, float>) return result != result ? kNaN : result;
  return result;
}

constexpr auto add = [](auto a, auto b) { return canonical(a + b); };
constexpr auto subtract = [](auto a, auto b) { return canonical(a - b); };
constexpr auto multiply = [](auto a, auto b) { return canonical(a * b); };
constexpr auto divide = [](auto a, auto b) { return canonical(a / b); };
constexpr auto multiply_add = [](auto a, auto b, auto c) { return canonical(std::fma(a, b, c)); };
constexpr auto negate = [](auto a) { return -a; };
constexpr auto absolute = [](auto a) { return std::fabs(a); };
constexpr auto square_root = [](auto a) { return canonical(std::sqrt(a)); };
constexpr auto reciprocal = [](auto a) { return canonical(decltype(a)(1) / a); };
constexpr auto lesser = [](double a, double b) { return a == b ? (std::signbit(a) ? a : b) : std::fmin(a, b); };
constexpr auto greater = [](double a, double b) { return a == b ? (std::signbit(a) ? b : a) : std::fmax(a, b); };
// The sign of a, the rest of b
constexpr auto copy_sign = [](auto a, auto b) { return std::copysign(b, a); };

// Of an operation in double whose result is exact, or odd where it is not (see numbers.h).
template <auto exact, Rounding rounding>
constexpr auto directed =
    [](auto... inputs) { return canonical(float(round_to_format(exact(double(inputs)...), kFloatFormat, rounding))); };
constexpr auto exact_sum = [](double a, double b) { return exact_or_odd_sum(a, b); };
constexpr auto exact_difference = [](double a, double b) { return exact_or_odd_sum(a, -b); };
constexpr auto exact_product = [](double a, double b) { return a * b; };
constexpr auto exact_product_sum = [](double a, double b, double c) { return exact_or_odd_sum(a * b, c); };

template <auto exact, Rounding rounding>
Execute rounded(const Form& form, Instruction& in) {
  if constexpr (std::is_invocable_v<decltype(exact), double, double>)
    return float32<[](float a, float b) { return directed<exact, rounding>(a, b); }>(form, in);
  else
    return float32<[](float a, float b, float c) { return directed<exact, rounding>(a, b, c); }>(form, in);
}
template <auto exact>
Execute float32_directed(const Form& form, Instruction& in) {
  if (form.has("rz")) return rounded<exact, Rounding::zero>(form, in);
  if (form.has("rm")) return rounded<exact, Rounding::down>(form, in);
  return rounded<exact, Rounding::up>(form, in);
}

template <auto operation>
Execute float32_saturated(const Form& form, Instruction& in) {
  if constexpr (std::is_invocable_v<decltype(operation), float, float>)
    return float32<[](float a, float b) { return saturated(operation(a, b)); }>(form, in);
  else
    return float32<[](float a, float b, float c) { return saturated(operation(a, b, c)); }>(form, in);
}

// ---- Approximations: the exact result, off by up to options.noise ulp. The same input gives the same result; another
// function of it, another error.

float disturbed(float exact, uint32_t function) {
  if (!options.noise || !(std::fabs(exact) < 1e38f) || std::fabs(exact) < 1e-37f) return canonical(exact);
  uint32_t hash = (bits_of(exact) ^ function) * 2654435761u;
  hash = (hash ^ hash >> 15) * 2246822519u;
  hash ^= hash >> 13;
  const uint32_t range = 2u * uint32_t(options.noise) + 1;
  return float_of(bits_of(exact) + hash % range - uint32_t(options.noise));
}

template <auto function, uint32_t number>
constexpr auto approximate = [](float a) { return disturbed(float(function(double(a))), number); };

constexpr auto exp2_of = approximate<[](double a) { return std::exp2(a); }, 1>;
constexpr auto reciprocal_of = approximate<[](double a) { return 1 / a; }, 2>;
constexpr auto sqrt_of = approximate<[](double a) { return std::sqrt(a); }, 4>;
constexpr auto rsqrt_of = approximate<[](double a) { return 1 / std::sqrt(a); }, 5>;
constexpr auto log2_of = approximate<[](double a) { return std::log2(a); }, 6>;
constexpr auto sine_of = approximate<[](double a) { return std::sin(a); }, 7>;
constexpr auto cosine_of = approximate<[](double a) { return std::cos(a); }, 8>;
// Its largest relative error is 2^-11, far more than an ulp.
constexpr auto tanh_of = [](float a) { return float(std::tanh(double(a)) * (options.noise ? 1 + 0x1p-11 : 1)); };

constexpr auto quotient = [](float a, float b) { return disturbed(float(double(a) / double(b)), 3); };
// div.approx: for 2^126 < |b| < 2^128, finite a gives 0 and infinite a NaN.
constexpr auto rough_quotient = [](float a, float b) {
  const float size = std::fabs(b);
  if (size > 0x1p126f && size <= FLT_MAX)
    return std::isfinite(a) ? std::copysign(0.0f, a) * std::copysign(1.0f, b) : kNaN;
  return quotient(a, b);
};

// .NaN: the result is NaN if an operand is.
Execute extremum(const Form& form, Instruction& in, bool is_minimum) {
  const bool keeps_nan = form.has("NaN");
  if (is_minimum)
    return keeps_nan ? float32<[](float a, float b) { return minimum_nan(a, b); }>(form, in)
                     : float32<[](float a, float b) { return minimum(a, b); }>(form, in);
  return keeps_nan ? float32<[](float a, float b) { return maximum_nan(a, b); }>(form, in)
                   : float32<[](float a, float b) { return maximum(a, b); }>(form, in);
}

constexpr Opcode kOpcodes[] = {
    {"add", "rn? ftz? f32", "dt st st", Class::fp32, float32<add>},
    {"add", "rn? ftz? sat f32", "dt st st", Class::fp32, float32_saturated<add>},
    {"add", "rz|rm|rp ftz? f32", "dt st st", Class::fp32, float32_directed<exact_sum>},
    {"add", "rn? f64", "dt st st", Class::fp32, float64<add>},
    {"sub", "rn? ftz? f32", "dt st st", Class::fp32, float32<subtract>},
    {"sub", "rn? ftz? sat f32", "dt st st", Class::fp32, float32_saturated<subtract>},
    {"sub", "rz|rm|rp ftz? f32", "dt st st", Class::fp32, float32_directed<exact_difference>},
    {"sub", "rn? f64", "dt st st", Class::fp32, float64<subtract>},
    {"mul", "rn? ftz? f32", "dt st st", Class::fp32, float32<multiply>},
    {"mul", "rn? ftz? sat f32", "dt st st", Class::fp32, float32_saturated<multiply>},
    {"mul", "rz|rm|rp ftz? f32", "dt st st", Class::fp32, float32_directed<exact_product>},
    {"mul", "rn? f64", "dt st st", Class::fp32, float64<multiply>},
    {"fma", "rn ftz? f32", "dt st st st", Class::fp32, float32<multiply_add>},
    {"fma", "rn ftz? sat f32", "dt st st st", Class::fp32, float32_saturated<multiply_add>},
    {"fma", "rz|rm|rp ftz? f32", "dt st st st", Class::fp32, float32_directed<exact_product_sum>},
    {"fma", "rn f64", "dt st st st", Class::fp32, float64<multiply_add>},
    {"mad", "rn ftz? f32", "dt st st st", Class::fp32, float32<multiply_add>},
    {"mad", "rn f64", "dt st st st", Class::fp32, float64<multiply_add>},
    {"div", "approx ftz? f32", "dt st st", Class::mufu, float32<rough_quotient>},
    {"div", "full ftz? f32", "dt st st", Class::mufu, float32<quotient>},
    {"div", "rn ftz? f32", "dt st st", Class::fp32, float32<divide>},
    {"div", "rn f64", "dt st st", Class::fp32, float64<divide>},
    {"abs", "ftz? f32", "dt st", Class::fp32, float32<absolute>},
    {"abs", "f64", "dt st", Class::fp32, float64<absolute>},
    {"neg", "ftz? f32", "dt st", Class::fp32, float32<negate>},
    {"neg", "f64", "dt st", Class::fp32, float64<negate>},
    {"min", "ftz? NaN? f32", "dt st st", Class::fp32,
     [](const Form& f, Instruction& in) { return extremum(f, in, true); }},
    {"max", "ftz? NaN? f32", "dt st st", Class::fp32,
     [](const Form& f, Instruction& in) { return extremum(f, in, false); }},
    {"min", "f64", "dt st st", Class::fp32, float64<lesser>},
    {"max", "f64", "dt st st", Class::fp32, float64<greater>},
    {"copysign", "f32", "dt st st", Class::fp32, float32<copy_sign>},
    {"copysign", "f64", "dt st st", Class::fp32, float64<copy_sign>},
    {"rcp", "rn ftz? f32", "dt st", Class::mufu, float32<reciprocal>},
    {"rcp", "rn f64", "dt st", Class::mufu, float64<reciprocal>},
    {"rcp", "approx ftz? f32", "dt st", Class::mufu, float32<reciprocal_of>},
    {"sqrt", "rn ftz? f32", "dt st", Class::mufu, float32<square_root>},
    {"sqrt", "rn f64", "dt st", Class::mufu, float64<square_root>},
    {"sqrt", "approx ftz? f32", "dt st", Class::mufu, float32<sqrt_of>},
    {"rsqrt", "approx ftz? f32", "dt st", Class::mufu, float32<rsqrt_of>},
    {"ex2", "approx ftz? f32", "dt st", Class::mufu, float32<exp2_of>},
    {"lg2", "approx ftz? f32", "dt st", Class::mufu, float32<log2_of>},
    {"sin", "approx ftz? f32", "dt st", Class::mufu, float32<sine_of>},
    {"cos", "approx ftz? f32", "dt st", Class::mufu, float32<cosine_of>},
    {"tanh", "approx f32", "dt st", Class::mufu, float32<tanh_of>},
};

}  // namespace

std::span<const Opcode> floating_point() { return kOpcodes; }

}  // namespace ptx
