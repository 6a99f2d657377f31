// PTX ISA, 9.7.8: logic and shift instructions.
#include <algorithm>

#include "isa/lanes.h"

namespace ptx {

namespace {

constexpr auto conjunction = [](auto a, auto b) { return decltype(a)(a & b); };
constexpr auto disjunction = [](auto a, auto b) { return decltype(a)(a | b); };
constexpr auto exclusive = [](auto a, auto b) { return decltype(a)(a ^ b); };
constexpr auto complement = [](auto a) { return decltype(a)(~a); };
constexpr auto is_zero = [](auto a) { return decltype(a)(a == 0); };

// Of predicates, a bit per lane.
template <auto operation>
void predicates(Warp& warp, const Instruction& in) {
  if constexpr (std::is_invocable_v<decltype(operation), Mask>)
    warp.set_predicate(in.d[0], operation(warp.predicate(in.s[0])));
  else
    warp.set_predicate(in.d[0], operation(warp.predicate(in.s[0]), warp.predicate(in.s[1])));
}
template <auto operation>
Execute logic(const Form& form, Instruction& in) {
  return form.type == Type::pred ? predicates<operation> : bits<operation>(form, in);
}

// Any function of three bits: bit 4 a + 2 b + c of the table is the result.
constexpr auto look_up = [](uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (uint32_t i = 0; i < 8; ++i)
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
};

// Amounts are unsigned numbers of 32 bits; those beyond the register's size count as its size.
template <class T>
constexpr auto shift_left = [](T a, uint32_t amount) { return amount < 8 * sizeof(T) ? T(a << amount) : T(0); };
template <class T>
constexpr auto shift_right = [](T a, uint32_t amount) {
  constexpr uint32_t size = 8 * sizeof(T);
  if constexpr (std::is_signed_v<T>)
    return T(a >> std::min(amount, size - 1));
  else
    return amount < size ? T(a >> amount) : T(0);
};
template <class T>
constexpr Execute shift_of(bool to_the_left) {
  return to_the_left ? each_lane<shift_left<T>, T, T, uint32_t> : each_lane<shift_right<T>, T, T, uint32_t>;
}
Execute shift_left_by(const Form& form, Instruction&) {
  switch (bytes_of(form.type)) {
    case 2: return shift_of<uint16_t>(true);
    case 4: return shift_of<uint32_t>(true);
    default: return shift_of<uint64_t>(true);
  }
}
Execute shift_right_by(const Form& form, Instruction&) {
  switch (form.type) {
    case Type::b16:
    case Type::u16: return shift_of<uint16_t>(false);
    case Type::s16: return shift_of<int16_t>(false);
    case Type::b32:
    case Type::u32: return shift_of<uint32_t>(false);
    case Type::s32: return shift_of<int32_t>(false);
    case Type::b64:
    case Type::u64: return shift_of<uint64_t>(false);
    case Type::s64: return shift_of<int64_t>(false);
    default: return nullptr;
  }
}

// The upper (.l) or lower (.r) half of b:a shifted.
template <bool to_the_left, bool clamps>
constexpr auto funnel = [](uint32_t a, uint32_t b, uint32_t c) {
  const uint32_t amount = clamps ? std::min(c, 32u) : c & 31;
  const uint64_t both = uint64_t(b) << 32 | a;
  return to_the_left ? uint32_t(both << amount >> 32) : uint32_t(both >> amount);
};
Execute funnel_shift(const Form& form, Instruction&) {
  const bool clamps = form.has("clamp");
  if (form.has("l"))
    return clamps ? same_type<funnel<true, true>, uint32_t>() : same_type<funnel<true, false>, uint32_t>();
  return clamps ? same_type<funnel<false, true>, uint32_t>() : same_type<funnel<false, false>, uint32_t>();
}

constexpr Opcode kOpcodes[] = {
    {"and", "<bits>", "dt st st", Class::integer, logic<conjunction>},
    {"or", "<bits>", "dt st st", Class::integer, logic<disjunction>},
    {"xor", "<bits>", "dt st st", Class::integer, logic<exclusive>},
    {"not", "<bits>", "dt st", Class::integer, logic<complement>},
    {"and", "pred", "dp sp sp", Class::pred, logic<conjunction>},
    {"or", "pred", "dp sp sp", Class::pred, logic<disjunction>},
    {"xor", "pred", "dp sp sp", Class::pred, logic<exclusive>},
    {"not", "pred", "dp sp", Class::pred, logic<complement>},
    {"cnot", "<bits>", "dt st", Class::integer, bits<is_zero>},
    {"lop3", "b32", "d4 s4 s4 s4 s4", Class::integer,
     [](const Form&, Instruction&) -> Execute {
       return each_lane<look_up, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>;
     }},
    {"shf", "l|r wrap|clamp b32", "d4 s4 s4 s4", Class::integer, funnel_shift},
    {"shl", "<bits>", "dt st s4", Class::integer, shift_left_by},
    {"shr", "b16|u16|s16|b32|u32|s32|b64|u64|s64", "dt st s4", Class::integer, shift_right_by},
};

}  // namespace

std::span<const Opcode> logic_and_shift() { return kOpcodes; }

}  // namespace ptx
