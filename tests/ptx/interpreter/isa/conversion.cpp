// PTX ISA, 9.7.9.21: cvt.
#include <algorithm>
#include <limits>

#include "isa/lanes.h"

namespace ptx {

namespace {

// What the modifiers ask for, in Instruction::variant.
enum Flags : int { kSaturate = 1, kFlush = 2, kRelu = 4, kToInteger = 8, kRoundingAt = 8 };

Rounding rounding_of(const Instruction& in) { return Rounding(in.variant >> kRoundingAt); }

int64_t sign_extended(uint64_t bits, int bytes) {
  const int unused = 64 - 8 * bytes;
  return int64_t(bits << unused) >> unused;
}
uint64_t zero_extended(uint64_t bits, int bytes) { return bytes == 8 ? bits : bits & ((1ull << (8 * bytes)) - 1); }

double float_value(Type type, uint64_t bits) {
  switch (type) {
    case Type::f16: return double(Half::to_float(uint16_t(bits)));
    case Type::bf16: return double(BFloat16::to_float(uint16_t(bits)));
    case Type::f64: return std::bit_cast<double>(bits);
    default: return double(float_of(uint32_t(bits)));
  }
}

// The bits of a value of this format, after it was rounded to it.
uint64_t float_bits(Type type, double value) {
  switch (type) {
    case Type::f16: return Half::of(value);
    case Type::bf16: return BFloat16::of(float(value));
    case Type::f64: return std::bit_cast<uint64_t>(value);
    default: return value != value ? 0x7fffffff : bits_of(float(value));
  }
}

Format format_of(Type type) {
  switch (type) {
    case Type::f16: return kHalfFormat;
    case Type::bf16: return kBFloat16Format;
    case Type::tf32: return kTF32Format;
    default: return kFloatFormat;
  }
}

uint64_t rounded_bits(Type type, double value, Rounding rounding) {
  return float_bits(type, type == Type::f64 ? value : round_to_format(value, format_of(type), rounding));
}

// Always saturates. NaN becomes 0, or 2^63 where a side has 64 bits.
uint64_t float_to_integer(const Instruction& in, double value) {
  const int size = 8 * bytes_of(in.type);
  if (value != value) return in.from == Type::f64 || size == 64 ? 1ull << (size - 1) : 0;
  const double rounded = round_to_integer(value, rounding_of(in));
  if (is_signed(in.type)) {
    const double limit = std::ldexp(1.0, size - 1);
    if (rounded >= limit) return (1ull << (size - 1)) - 1;
    return rounded < -limit ? 1ull << (size - 1) : uint64_t(int64_t(rounded));
  }
  if (rounded >= std::ldexp(1.0, size)) return zero_extended(~0ull, size / 8);
  return rounded <= 0 ? 0 : uint64_t(rounded);
}

uint64_t float_to_float(const Instruction& in, double value) {
  if (in.variant & kToInteger) value = round_to_integer(value, rounding_of(in));
  if (in.variant & kSaturate) value = value > 0 ? std::min(value, 1.0) : 0;
  if ((in.variant & kRelu) && value <= 0) value = 0;
  uint64_t bits = rounded_bits(in.type, value, in.variant & kToInteger ? Rounding::nearest_even : rounding_of(in));
  if ((in.variant & kFlush) && in.type == Type::f32) bits = bits_of(flush_subnormal(float_of(uint32_t(bits))));
  return bits;
}

uint64_t integer_to_float(const Instruction& in, uint64_t bits) {
  const int64_t value = int64_t(bits);
  if (in.type == Type::f64) return float_bits(in.type, is_signed(in.from) ? double(value) : double(bits));
  return rounded_bits(in.type, is_signed(in.from) ? exact_or_odd(value) : exact_or_odd(bits), rounding_of(in));
}

uint64_t integer_to_integer(const Instruction& in, uint64_t bits) {
  if (!(in.variant & kSaturate)) return bits;
  const int size = 8 * bytes_of(in.type);
  const __int128 value = is_signed(in.from) ? __int128(int64_t(bits)) : __int128(bits);
  const __int128 lowest = is_signed(in.type) ? -(__int128(1) << (size - 1)) : 0;
  const __int128 highest = (__int128(1) << (size - is_signed(in.type))) - 1;
  return uint64_t(std::clamp(value, lowest, highest));
}

uint64_t converted(const Instruction& in, uint64_t raw) {
  uint64_t result;
  if (is_float(in.from)) {
    if ((in.variant & kFlush) && in.from == Type::f32) raw = bits_of(flush_subnormal(float_of(uint32_t(raw))));
    const double value = float_value(in.from, raw);
    result = is_float(in.type) ? float_to_float(in, value) : float_to_integer(in, value);
  } else {
    const int bytes = bytes_of(in.from);
    const uint64_t value = is_signed(in.from) ? uint64_t(sign_extended(raw, bytes)) : zero_extended(raw, bytes);
    result = is_float(in.type) ? integer_to_float(in, value) : integer_to_integer(in, value);
  }
  // A register may be wider than the type: the result is extended by its sign.
  const int bytes = bytes_of(in.type);
  return is_signed(in.type) ? uint64_t(sign_extended(result, bytes)) : zero_extended(result, bytes);
}

void cvt(Warp& warp, const Instruction& in) {
  for (int lane = 0; lane < kLanes; ++lane)
    if (warp.has(lane)) warp.set(in.d[0], lane, converted(in, warp.get(in.s[0], lane)));
}

// ---- The frequent conversions, where registers have the size of their types

constexpr auto to_s32 = [](float a) {
  return a >= 0x1p31f    ? std::numeric_limits<int32_t>::max()
         : a >= -0x1p31f ? int32_t(a)
         : a < 0         ? std::numeric_limits<int32_t>::min()
                         : 0;
};
constexpr auto nearest_s64 = [](float a) {
  if (a != a || a < -0x1p63f) return std::numeric_limits<int64_t>::min();
  return a >= 0x1p63f ? std::numeric_limits<int64_t>::max() : int64_t(std::nearbyint(a));
};

Execute fast_form(const Instruction& in) {
  using enum Type;
  if (in.d[0].bytes != bytes_of(in.type) || in.s[0].bytes != bytes_of(in.from)) return nullptr;
  const Type to = in.type, from = in.from;
  const int flags = in.variant & 0xff;
  const Rounding rounding = rounding_of(in);
  const bool from_32 = from == u32 || from == s32, from_64 = from == u64 || from == s64;
  if (flags == 0 && !is_float(to) && bytes_of(to) == 4 && from_64)
    return each_lane<[](uint64_t a) { return uint32_t(a); }, uint32_t, uint64_t>;
  if (flags == 0 && !is_float(to) && bytes_of(to) == 8 && from_32)
    return is_signed(from) ? Execute(each_lane<[](int32_t a) { return int64_t(a); }, int64_t, int32_t>)
                           : Execute(each_lane<[](uint32_t a) { return uint64_t(a); }, uint64_t, uint32_t>);
  if (flags == 0 && to == f32 && from == f16)
    return each_lane<[](uint16_t a) { return Half::to_float(a); }, float, uint16_t>;
  if (flags == 0 && to == f32 && from == bf16)
    return each_lane<[](uint16_t a) { return BFloat16::to_float(a); }, float, uint16_t>;
  if (flags == kSaturate && to == f32 && from == f32)
    return each_lane<[](float a) { return saturated(a); }, float, float>;
  if (rounding == Rounding::nearest_even && flags == 0) {
    if (to == f16 && from == f32) return each_lane<[](float a) { return Half::of(a); }, uint16_t, float>;
    if (to == bf16 && from == f32) return each_lane<[](float a) { return BFloat16::of(a); }, uint16_t, float>;
    if (to == f32 && from == s32) return each_lane<[](int32_t a) { return float(a); }, float, int32_t>;
    if (to == f32 && from == s64) return each_lane<[](int64_t a) { return float(a); }, float, int64_t>;
  }
  if (flags == kToInteger && to == s32 && from == f32 && rounding == Rounding::zero)
    return each_lane<to_s32, int32_t, float>;
  if (flags == kToInteger && to == s64 && from == f32 && rounding == Rounding::nearest_even)
    return each_lane<nearest_s64, int64_t, float>;
  return nullptr;
}

constexpr std::pair<std::string_view, Rounding> kRoundings[] = {
    {"rn", Rounding::nearest_even}, {"rna", Rounding::nearest_away}, {"rz", Rounding::zero},  {"rm", Rounding::down},
    {"rp", Rounding::up},           {"rni", Rounding::nearest_even}, {"rzi", Rounding::zero}, {"rmi", Rounding::down},
    {"rpi", Rounding::up},
};

// The first of each row's modifiers is the rounding.
void note_modifiers(const Form& form, Instruction& in) {
  in.type = form.first_type;
  in.from = form.type;
  in.variant = (form.has("sat") ? kSaturate : 0) | (form.has("ftz") ? kFlush : 0) | (form.has("relu") ? kRelu : 0);
  for (const auto& [name, rounding] : kRoundings)
    if (form.parts[0] == name) in.variant |= int(rounding) << kRoundingAt;
  if (form.parts[0].ends_with('i')) in.variant |= kToInteger;
}

Execute convert(const Form& form, Instruction& in) {
  note_modifiers(form, in);
  const std::string_view rounding = form.parts[0];
  const bool to_float = is_float(in.type), from_float = is_float(in.from);
  const bool rounds_to_integer = in.variant & kToInteger;
  // PTX ISA: which conversions need a rounding, and of which kind
  const bool loses = to_float && (!from_float || bytes_of(in.type) < bytes_of(in.from));
  if (to_float && loses && (rounding.empty() || rounds_to_integer)) return nullptr;
  if (!to_float && from_float && !rounds_to_integer) return nullptr;
  if (!to_float && !from_float && !rounding.empty()) return nullptr;
  if (to_float && from_float && !loses && !rounding.empty() && !(rounds_to_integer && in.type == in.from))
    return nullptr;
  // Rounding to float64 is that of the host.
  if (in.type == Type::f64 && !from_float && rounding != "rn") return nullptr;
  if (form.has("ftz") && in.type != Type::f32 && in.from != Type::f32) return nullptr;
  if ((in.type == Type::f16 && in.from == Type::bf16) || (in.type == Type::bf16 && in.from == Type::f16))
    return nullptr;
  if (in.s[0].bytes < bytes_of(in.from) || in.d[0].bytes < bytes_of(in.type)) return nullptr;
  const Execute fast = fast_form(in);
  return fast ? fast : cvt;
}

// Two numbers into a register, the first one into its upper half.
template <class F>
Execute convert_pair(const Form& form) {
  if (form.has("relu"))
    return each_lane<[](float a, float b) {
      return uint32_t(F::of(a <= 0 ? 0.0f : a)) << 16 | F::of(b <= 0 ? 0.0f : b);
    },
                     uint32_t, float, float>;
  return each_lane<[](float a, float b) { return uint32_t(F::of(a)) << 16 | F::of(b); }, uint32_t, float, float>;
}

constexpr auto tf32_nearest_away = [](uint32_t bits) {
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  return is_nan ? 0x7fffffffu : (bits & 0x7fffffff) == 0x7f800000 ? bits : (bits + 0x1000) & 0xffffe000u;
};

constexpr Opcode kOpcodes[] = {
    {"cvt",
     "rn|rz|rm|rp|rni|rzi|rmi|rpi? ftz? sat? u8|s8|u16|s16|u32|s32|u64|s64|f16|bf16|f32|f64 "
     "u8|s8|u16|s16|u32|s32|u64|s64|f16|bf16|f32|f64",
     "dx sx", Class::cvt, convert},
    {"cvt", "rn|rz relu f16|bf16 f32", "d2 s4", Class::cvt, convert},

    {"cvt", "rn relu? f16x2 f32", "d4 s4 s4", Class::cvt,
     [](const Form& form, Instruction&) { return convert_pair<Half>(form); }},
    {"cvt", "rn relu? bf16x2 f32", "d4 s4 s4", Class::cvt,
     [](const Form& form, Instruction&) { return convert_pair<BFloat16>(form); }},
    {"cvt", "rna tf32 f32", "d4 s4", Class::cvt,
     [](const Form&, Instruction&) -> Execute { return each_lane<tf32_nearest_away, uint32_t, uint32_t>; }},
    {"cvt", "rn|rz relu? tf32 f32", "d4 s4", Class::cvt,
     [](const Form& form, Instruction& in) -> Execute {
       note_modifiers(form, in);
       return cvt;
     }},
};

}  // namespace

std::span<const Opcode> conversion() { return kOpcodes; }

}  // namespace ptx
