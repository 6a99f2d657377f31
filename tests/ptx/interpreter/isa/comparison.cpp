// PTX ISA, 9.7.6 and 9.7.7: comparison and selection instructions.
#include <string_view>

#include "isa/lanes.h"

namespace ptx {

namespace {

// Comparisons of floating-point numbers: an unordered one (`u`) also holds where an operand is NaN (PTX ISA, 9.3.1.2).
enum class Comparison { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };

template <Comparison comparison, class T>
constexpr bool holds(T a, T b) {
  using enum Comparison;
  if constexpr (comparison == eq) return a == b;
  if constexpr (comparison == ne) return std::is_integral_v<T> ? a != b : a < b || a > b;
  if constexpr (comparison == lt) return a < b;
  if constexpr (comparison == le) return a <= b;
  if constexpr (comparison == gt) return a > b;
  if constexpr (comparison == ge) return a >= b;
  if constexpr (comparison == equ) return !(a < b || a > b);
  if constexpr (comparison == neu) return !(a == b);
  if constexpr (comparison == ltu) return !(a >= b);
  if constexpr (comparison == leu) return !(a > b);
  if constexpr (comparison == gtu) return !(a <= b);
  if constexpr (comparison == geu) return !(a < b);
  if constexpr (comparison == num) return a == a && b == b;
  if constexpr (comparison == nan) return a != a || b != b;
}

enum Combination { kAlone, kAnd, kOr, kXor };  // with a predicate

// p = compare(a, b) combined with c, q = !compare(a, b) combined with c (PTX ISA, 9.7.6.2)
void set_predicates(Warp& warp, const Instruction& in, Mask is_true) {
  Mask p = is_true, q = ~is_true;
  if (in.variant != kAlone) {
    const Mask c = warp.predicate(in.s[2]);
    p = in.variant == kAnd ? p & c : in.variant == kOr ? p | c : p ^ c;
    q = in.variant == kAnd ? q & c : in.variant == kOr ? q | c : q ^ c;
  }
  warp.set_predicate(in.d[0], p);
  if (in.d.size() > 1) warp.set_predicate(in.d[1], q);
}

// How the registers of a type hold its values.
struct AsIs {
  static auto value(auto x) { return x; }
};
struct Flushed {
  static float value(float x) { return flush_subnormal(x); }
};
struct OfHalf {
  static float value(uint16_t x) { return Half::to_float(x); }
};
struct OfBFloat16 {
  static float value(uint16_t x) { return BFloat16::to_float(x); }
};

template <Comparison comparison, class T, class Reading>
void setp(Warp& warp, const Instruction& in) {
  const T *a = warp.lanes<T>(in.s[0]), *b = warp.lanes<T>(in.s[1]);
  Mask is_true = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    is_true |= Mask(holds<comparison>(Reading::value(a[lane]), Reading::value(b[lane]))) << lane;
  set_predicates(warp, in, is_true);
}

template <class T, class Reading = AsIs>
Execute comparing(std::string_view name) {
  using enum Comparison;
  if (name == "eq") return setp<eq, T, Reading>;
  if (name == "ne") return setp<ne, T, Reading>;
  if (name == "lt" || name == "lo") return setp<lt, T, Reading>;
  if (name == "le" || name == "ls") return setp<le, T, Reading>;
  if (name == "gt" || name == "hi") return setp<gt, T, Reading>;
  if (name == "ge" || name == "hs") return setp<ge, T, Reading>;
  if constexpr (!std::is_integral_v<T> || !std::is_same_v<Reading, AsIs>) {
    if (name == "equ") return setp<equ, T, Reading>;
    if (name == "neu") return setp<neu, T, Reading>;
    if (name == "ltu") return setp<ltu, T, Reading>;
    if (name == "leu") return setp<leu, T, Reading>;
    if (name == "gtu") return setp<gtu, T, Reading>;
    if (name == "geu") return setp<geu, T, Reading>;
    if (name == "num") return setp<num, T, Reading>;
    if (name == "nan") return setp<nan, T, Reading>;
  }
  return nullptr;
}

Execute compare(const Form& form, Instruction& in) {
  const std::string_view name = form.parts[0];
  in.variant = form.has("and") ? kAnd : form.has("or") ? kOr : form.has("xor") ? kXor : kAlone;
  if ((in.variant == kAlone) != (in.s.size() == 2)) return nullptr;
  const bool is_unsigned_only = name == "lo" || name == "ls" || name == "hi" || name == "hs";
  if (is_unsigned_only && is_signed(form.type)) return nullptr;
  switch (form.type) {
    case Type::b16:
    case Type::u16: return comparing<uint16_t>(name);
    case Type::b32:
    case Type::u32: return comparing<uint32_t>(name);
    case Type::b64:
    case Type::u64: return comparing<uint64_t>(name);
    case Type::s16: return comparing<int16_t>(name);
    case Type::s32: return comparing<int32_t>(name);
    case Type::s64: return comparing<int64_t>(name);
    case Type::f16: return comparing<uint16_t, OfHalf>(name);
    case Type::bf16: return comparing<uint16_t, OfBFloat16>(name);
    case Type::f32: return form.has("ftz") ? comparing<float, Flushed>(name) : comparing<float>(name);
    case Type::f64: return comparing<double>(name);
    default: return nullptr;
  }
}

template <class T>
void selp(Warp& warp, const Instruction& in) {
  alignas(64) T chosen[kLanes];
  const T *a = warp.lanes<T>(in.s[0]), *b = warp.lanes<T>(in.s[1]);
  const Mask takes_a = warp.predicate(in.s[2]);
  for (int lane = 0; lane < kLanes; ++lane) chosen[lane] = takes_a >> lane & 1 ? a[lane] : b[lane];
  write_lanes(warp, in.d[0], chosen);
}

Execute select(const Form& form, Instruction&) {
  switch (bytes_of(form.type)) {
    case 2: return selp<uint16_t>;
    case 4: return selp<uint32_t>;
    default: return selp<uint64_t>;
  }
}

constexpr Opcode kOpcodes[] = {
    {"setp", "<compare> <bool>? b16|u16|s16|b32|u32|s32|b64|u64|s64", "dp st st sp?", Class::pred, compare},
    {"setp", "<fcompare> <bool>? ftz? f32", "dp st st sp?", Class::pred, compare},
    {"setp", "<fcompare> <bool>? f16|bf16|f64", "dp st st sp?", Class::pred, compare},
    {"selp", "b16|u16|s16|b32|u32|s32|f32|b64|u64|s64|f64", "dt st st sp", Class::pred, select},
    {"slct", "b16|u16|s16|b32|u32|s32|f32|b64|u64|s64|f64 s32", "dx sx sx s4", Class::pred,
     [](const Form& form, Instruction& in) -> Execute {
       // a where c >= 0
       if (in.s[0].bytes != bytes_of(form.first_type) || in.d[0].bytes != in.s[0].bytes) return nullptr;
       constexpr auto choose = [](auto a, auto b, int32_t c) { return c >= 0 ? a : b; };
       switch (in.s[0].bytes) {
         case 2: return each_lane<choose, uint16_t, uint16_t, uint16_t, int32_t>;
         case 4: return each_lane<choose, uint32_t, uint32_t, uint32_t, int32_t>;
         default: return each_lane<choose, uint64_t, uint64_t, uint64_t, int32_t>;
       }
     }},
};

}  // namespace

std::span<const Opcode> comparison() { return kOpcodes; }

}  // namespace ptx
