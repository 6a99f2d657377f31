// PTX ISA, 9.7.13: atom and red. Lanes of a warp add one after the other, in their order.
#include <algorithm>

#include "isa/lanes.h"
#include "memory/access.h"

namespace ptx {

namespace {

enum Operation { kAdd, kMin, kMax, kAnd, kOr, kXor, kInc, kDec, kExchange, kCompareAndSwap };
constexpr std::pair<std::string_view, Operation> kOperations[] = {
    {"add", kAdd}, {"min", kMin}, {"max", kMax}, {"and", kAnd},       {"or", kOr},
    {"xor", kXor}, {"inc", kInc}, {"dec", kDec}, {"exch", kExchange}, {"cas", kCompareAndSwap},
};

template <class T>
uint64_t combined_integers(int operation, T old, T b, T c) {
  switch (operation) {
    case kAdd: return std::make_unsigned_t<T>(old) + std::make_unsigned_t<T>(b);
    case kMin: return std::make_unsigned_t<T>(std::min(old, b));
    case kMax: return std::make_unsigned_t<T>(std::max(old, b));
    case kAnd: return std::make_unsigned_t<T>(old & b);
    case kOr: return std::make_unsigned_t<T>(old | b);
    case kXor: return std::make_unsigned_t<T>(old ^ b);
    case kInc: return std::make_unsigned_t<T>(old >= b ? 0 : old + 1);
    case kDec: return std::make_unsigned_t<T>(old == 0 || old > b ? b : old - 1);
    case kExchange: return std::make_unsigned_t<T>(b);
    default: return std::make_unsigned_t<T>(old == b ? c : old);
  }
}

template <class F>
uint64_t added_halves(uint64_t old, uint64_t b) {
  return F::of(F::to_float(uint16_t(old)) + F::to_float(uint16_t(b)));
}
template <class F>
uint64_t added_pairs(uint64_t old, uint64_t b) {
  return added_halves<F>(old >> 16, b >> 16) << 16 | added_halves<F>(old, b);
}

uint64_t combined(const Instruction& in, uint64_t old, uint64_t b, uint64_t c) {
  switch (in.type) {
    case Type::f32: return bits_of(float_of(uint32_t(old)) + float_of(uint32_t(b)));
    case Type::f64: return std::bit_cast<uint64_t>(std::bit_cast<double>(old) + std::bit_cast<double>(b));
    case Type::f16: return added_halves<Half>(old, b);
    case Type::bf16: return added_halves<BFloat16>(old, b);
    case Type::f16x2: return added_pairs<Half>(old, b);
    case Type::bf16x2: return added_pairs<BFloat16>(old, b);
    case Type::s32: return combined_integers(in.variant, int32_t(old), int32_t(b), int32_t(c));
    case Type::s64: return combined_integers(in.variant, int64_t(old), int64_t(b), int64_t(c));
    case Type::b32:
    case Type::u32: return combined_integers(in.variant, uint32_t(old), uint32_t(b), uint32_t(c));
    default: return combined_integers(in.variant, old, b, c);
  }
}

// Sources: the address, a value for each element, for cas one more.
void atom(Warp& warp, const Instruction& in) {
  const Addresses addresses = addresses_of(warp, in.s[0], in.offset[0]);
  const Pointers pointers = access(warp, in, in.space, addresses, warp.active, in.element_bytes * in.vector, kAtomic);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.has(lane)) continue;
    for (size_t element = 0; element < in.vector; ++element) {
      uint64_t old = ~0ull;
      if (uint8_t* at = pointers[lane]) {
        at += element * in.element_bytes;
        old = 0;
        std::memcpy(&old, at, in.element_bytes);
        const uint64_t c = in.variant == kCompareAndSwap ? warp.get(in.s[2], lane) : 0;
        const uint64_t changed = combined(in, old, warp.get(in.s[1 + element], lane), c);
        std::memcpy(at, &changed, in.element_bytes);
      }
      if (!in.d.empty()) warp.set(in.d[element], lane, old);
    }
  }
}

Execute atomic(const Form& form, Instruction& in) {
  in.variant = -1;
  for (const auto& [name, operation] : kOperations)
    if (form.has(name)) in.variant = operation;
  in.space = form.has("global")                              ? Space::global
             : form.has("shared") || form.has("shared::cta") ? Space::shared
                                                             : Space::generic;
  in.element_bytes = uint8_t(bytes_of(in.type));
  in.vector = form.has("v2") ? 2 : form.has("v4") ? 4 : form.has("v8") ? 8 : 1;
  const size_t values = in.variant == kCompareAndSwap ? 2 : in.vector, policies = form.has("L2::cache_hint");
  if (in.s.size() != 1 + values + policies || (!in.d.empty() && in.d.size() != in.vector)) return nullptr;
  const bool is_red = in.d.empty();
  if (is_red && (in.variant == kExchange || in.variant == kCompareAndSwap)) return nullptr;
  return atom;
}

// Memory order and scope: a launch's blocks run one after the other, so that every atomic is as strong as can be.
// The ISA writes them before the state space, Triton behind it.
#define ATOMIC "<semantics>? <scope>? <space>? <scope>? <semantics>? "

constexpr Opcode kOpcodes[] = {
    {"atom", ATOMIC "add noftz? L2::cache_hint? v2|v4|v8? u32|s32|u64|s64|f32|f64|f16|bf16|f16x2|bf16x2", "dt m st s8?",
     Class::red, atomic},
    {"atom", ATOMIC "min|max u32|s32|u64|s64", "dt m st", Class::red, atomic},
    {"atom", ATOMIC "and|or|xor|exch b32|b64", "dt m st", Class::red, atomic},
    {"atom", ATOMIC "inc|dec u32", "dt m st", Class::red, atomic},
    {"atom", ATOMIC "cas b16|b32|b64", "dt m st st", Class::red, atomic},
    {"red", ATOMIC "add noftz? L2::cache_hint? v2|v4|v8? u32|s32|u64|s64|f32|f64|f16|bf16|f16x2|bf16x2", "m st s8?",
     Class::red, atomic},
    {"red", ATOMIC "min|max u32|s32|u64|s64", "m st", Class::red, atomic},
    {"red", ATOMIC "and|or|xor b32|b64", "m st", Class::red, atomic},
    {"red", ATOMIC "inc|dec u32", "m st", Class::red, atomic},
};

}  // namespace

std::span<const Opcode> atomics() { return kOpcodes; }

}  // namespace ptx
