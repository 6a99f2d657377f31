// PTX ISA, 9.7.1: integer arithmetic instructions.
#include <algorithm>
#include <limits>

#include "isa/lanes.h"

namespace ptx {

namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;

// Arithmetic modulo 2^n. Of 16 bits it is done in 32 unsigned ones: as ints, which they would become, products
// overflow.
template <class T>
using Modular = std::conditional_t<sizeof(T) < 4, uint32_t, T>;
constexpr auto add = [](auto a, auto b) { return decltype(a)(a + b); };
constexpr auto subtract = [](auto a, auto b) { return decltype(a)(a - b); };
constexpr auto multiply_low = [](auto a, auto b) { return decltype(a)(Modular<decltype(a)>(a) * b); };
constexpr auto multiply_add_low = [](auto a, auto b, auto c) { return decltype(a)(Modular<decltype(a)>(a) * b + c); };
constexpr auto negate = [](auto a) { return decltype(a)(0 - a); };

constexpr auto add_saturated = [](int32_t a, int32_t b) {
  return std::clamp<int64_t>(int64_t(a) + b, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max());
};
constexpr auto subtract_saturated = [](int32_t a, int32_t b) {
  return std::clamp<int64_t>(int64_t(a) - b, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max());
};

// A type that holds every product of two T.
template <class T>
struct WiderOf;
template <>
struct WiderOf<uint16_t> {
  using type = uint32_t;
};
template <>
struct WiderOf<int16_t> {
  using type = int32_t;
};
template <>
struct WiderOf<uint32_t> {
  using type = uint64_t;
};
template <>
struct WiderOf<int32_t> {
  using type = int64_t;
};
template <>
struct WiderOf<uint64_t> {
  using type = unsigned __int128;
};
template <>
struct WiderOf<int64_t> {
  using type = __int128;
};
template <class T>
using Wider = typename WiderOf<T>::type;

constexpr auto high_product = [](auto a, auto b) {
  using T = decltype(a);
  return T(Wider<T>(a) * Wider<T>(b) >> (8 * sizeof(T)));
};
constexpr auto multiply_add_high = [](auto a, auto b, auto c) {
  using T = decltype(a);
  return T(Unsigned<T>(high_product(a, b)) + Unsigned<T>(c));
};

template <class T>
Execute wide_product(const Instruction& in) {
  using W = Wider<T>;
  if (in.s.size() == 2) return each_lane<[](T a, T b) { return W(a) * W(b); }, W, T, T>;
  // The sum wraps.
  return each_lane<[](T a, T b, Unsigned<W> c) { return Unsigned<W>(W(a) * W(b)) + c; }, Unsigned<W>, T, T,
                   Unsigned<W>>;
}
Execute multiply_wide(const Form& form, Instruction& in) {
  switch (form.type) {
    case Type::u16: return wide_product<uint16_t>(in);
    case Type::s16: return wide_product<int16_t>(in);
    case Type::u32: return wide_product<uint32_t>(in);
    case Type::s32: return wide_product<int32_t>(in);
    default: return nullptr;
  }
}

// What division by 0 gives is unspecified: all bits are set, as GPUs do. The smallest number divided by -1 overflows.
constexpr auto divide = [](auto a, auto b) {
  using T = decltype(a);
  if (b == 0) return T(~T(0));
  if (std::is_signed_v<T> && b == T(-1)) return T(0 - Unsigned<T>(a));
  return T(a / b);
};
constexpr auto remainder_of = [](auto a, auto b) {
  using T = decltype(a);
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == T(-1)) return T(0);
  return T(a % b);
};

constexpr auto absolute = [](auto a) {
  return decltype(a)(a < 0 ? 0 - Unsigned<decltype(a)>(a) : Unsigned<decltype(a)>(a));
};
constexpr auto lesser = [](auto a, auto b) { return a < b ? a : b; };
constexpr auto greater = [](auto a, auto b) { return a > b ? a : b; };
constexpr auto sum_of_difference = [](auto a, auto b, auto c) {
  using U = Unsigned<decltype(a)>;
  return decltype(a)(U(c) + (a < b ? U(b) - U(a) : U(a) - U(b)));
};

template <auto operation>
Execute counted(const Form& form, Instruction&) {
  if (bytes_of(form.type) == 8) return each_lane<operation, uint32_t, uint64_t>;
  return each_lane<operation, uint32_t, uint32_t>;
}
constexpr auto population = [](auto a) { return std::popcount(a); };
constexpr auto leading_zeros = [](auto a) { return std::countl_zero(a); };

// The place of the highest bit that differs from the sign, or all ones.
constexpr auto highest_bit = [](auto a) {
  using T = decltype(a);
  const Unsigned<T> bits = Unsigned<T>(a < 0 ? ~a : a);
  return bits ? uint32_t(8 * sizeof(T) - 1 - std::countl_zero(bits)) : 0xffffffffu;
};
Execute find_bit(const Form& form, Instruction&) {
  switch (form.type) {
    case Type::u32: return each_lane<highest_bit, uint32_t, uint32_t>;
    case Type::s32: return each_lane<highest_bit, uint32_t, int32_t>;
    case Type::u64: return each_lane<highest_bit, uint32_t, uint64_t>;
    case Type::s64: return each_lane<highest_bit, uint32_t, int64_t>;
    default: return nullptr;
  }
}

constexpr auto reversed = [](auto a) {
  decltype(a) result = 0;
  for (size_t i = 0; i < 8 * sizeof(a); ++i) result = decltype(a)(result << 1 | (a >> i & 1));
  return result;
};

// Bits of a field that begins at `position`, beyond which there are zeros, or copies of its last bit.
template <class T>
constexpr auto extract_field = [](T a, uint32_t position, uint32_t length) {
  using U = Unsigned<T>;
  constexpr uint32_t last = 8 * sizeof(T) - 1;
  position &= 0xff;
  length &= 0xff;
  if (length == 0) return T(0);
  const U sign = std::is_signed_v<T> ? U(a) >> std::min(position + length - 1, last) & 1 : 0;
  const U field = position > last ? 0 : U(a) >> position;
  // Bits of the field that lie in the register
  const uint32_t there = position > last ? 0 : std::min(length, last + 1 - position);
  const U kept = there > last ? U(~U(0)) : U((U(1) << there) - 1);
  return T((field & kept) | (sign ? U(~kept) : 0));
};
Execute extract(const Form& form, Instruction&) {
  switch (form.type) {
    case Type::u32: return each_lane<extract_field<uint32_t>, uint32_t, uint32_t, uint32_t, uint32_t>;
    case Type::s32: return each_lane<extract_field<int32_t>, int32_t, int32_t, uint32_t, uint32_t>;
    case Type::u64: return each_lane<extract_field<uint64_t>, uint64_t, uint64_t, uint32_t, uint32_t>;
    case Type::s64: return each_lane<extract_field<int64_t>, int64_t, int64_t, uint32_t, uint32_t>;
    default: return nullptr;
  }
}

constexpr auto insert_field = [](auto a, auto b, uint32_t position, uint32_t length) {
  using T = decltype(a);
  constexpr uint32_t size = 8 * sizeof(T);
  position &= 0xff;
  length &= 0xff;
  if (position >= size) return b;
  const T ones = length >= size ? T(~T(0)) : T((T(1) << length) - 1), field = T(ones << position);
  return T((b & ~field) | (a << position & field));
};
Execute insert(const Form& form, Instruction&) {
  if (bytes_of(form.type) == 8) return each_lane<insert_field, uint64_t, uint64_t, uint64_t, uint32_t, uint32_t>;
  return each_lane<insert_field, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>;
}

// Products of four bytes each, added to c.
template <class A, class B>
constexpr auto dot_product = [](uint32_t a, uint32_t b, uint32_t c) {
  for (int i = 0; i < 32; i += 8) c += uint32_t(int32_t(A(a >> i)) * int32_t(B(b >> i)));
  return c;
};
Execute dot(const Form& form, Instruction&) {
  const bool a_is_signed = form.parts[0] == "s32", b_is_signed = form.parts[1] == "s32";
  if (a_is_signed)
    return b_is_signed ? same_type<dot_product<int8_t, int8_t>, uint32_t>()
                       : same_type<dot_product<int8_t, uint8_t>, uint32_t>();
  return b_is_signed ? same_type<dot_product<uint8_t, int8_t>, uint32_t>()
                     : same_type<dot_product<uint8_t, uint8_t>, uint32_t>();
}

constexpr Opcode kOpcodes[] = {
    {"add", "<int>", "dt st st", Class::integer, bits<add>},
    {"add", "sat s32", "dt st st", Class::integer,
     [](const Form&, Instruction&) { return same_type<add_saturated, int32_t>(); }},
    {"sub", "<int>", "dt st st", Class::integer, bits<subtract>},
    {"sub", "sat s32", "dt st st", Class::integer,
     [](const Form&, Instruction&) { return same_type<subtract_saturated, int32_t>(); }},
    {"mul", "lo <int>", "dt st st", Class::integer, bits<multiply_low>},
    {"mul", "hi <int>", "dt st st", Class::integer, integers<high_product>},
    {"mul", "wide u16|s16|u32|s32", "dw st st", Class::integer, multiply_wide},
    {"mad", "lo <int>", "dt st st st", Class::integer, bits<multiply_add_low>},
    {"mad", "hi <int>", "dt st st st", Class::integer, integers<multiply_add_high>},
    {"mad", "wide u16|s16|u32|s32", "dw st st sw", Class::integer, multiply_wide},
    {"sad", "<int>", "dt st st st", Class::integer, integers<sum_of_difference>},
    {"div", "<int>", "dt st st", Class::idiv, integers<divide>},
    {"rem", "<int>", "dt st st", Class::idiv, integers<remainder_of>},
    {"abs", "s16|s32|s64", "dt st", Class::integer, integers<absolute>},
    {"neg", "s16|s32|s64", "dt st", Class::integer, bits<negate>},
    {"min", "<int>", "dt st st", Class::integer, integers<lesser>},
    {"max", "<int>", "dt st st", Class::integer, integers<greater>},
    {"popc", "b32|b64", "d4 st", Class::integer, counted<population>},
    {"clz", "b32|b64", "d4 st", Class::integer, counted<leading_zeros>},
    {"bfind", "u32|s32|u64|s64", "d4 st", Class::integer, find_bit},
    {"brev", "b32|b64", "dt st", Class::integer, bits<reversed>},
    {"bfe", "u32|s32|u64|s64", "dt st s4 s4", Class::integer, extract},
    {"bfi", "b32|b64", "dt st st s4 s4", Class::integer, insert},
    {"dp4a", "u32|s32 u32|s32", "d4 s4 s4 s4", Class::integer, dot},
};

}  // namespace

std::span<const Opcode> integer_arithmetic() { return kOpcodes; }

}  // namespace ptx
