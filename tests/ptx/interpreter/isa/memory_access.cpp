// PTX ISA, 9.7.9: ld, st and hints to the caches.
#include <string>

#include "core/report.h"
#include "isa/lanes.h"
#include "memory/access.h"

namespace ptx {

namespace {

// A value of memory as a register of perhaps more bytes holds it.
uint64_t extended(const Instruction& in, uint64_t value) {
  if (!is_signed(in.type)) return value;
  const int unused = 64 - 8 * in.element_bytes;
  return uint64_t(int64_t(value << unused) >> unused);
}

// Elements of a vector, registers of the element's size. Where there is no memory all bits are set.
template <class T>
void load_same_size(Warp& warp, const Instruction& in, const Pointers& pointers, size_t element) {
  alignas(64) T values[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    values[lane] = T(~T(0));
    if (pointers[lane]) std::memcpy(&values[lane], pointers[lane] + element * sizeof(T), sizeof(T));
  }
  write_lanes(warp, in.d[element], values);
}

void load_extended(Warp& warp, const Instruction& in, const Pointers& pointers, size_t element) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.has(lane)) continue;
    uint64_t value = ~0ull;
    if (pointers[lane]) {
      value = 0;
      std::memcpy(&value, pointers[lane] + element * in.element_bytes, in.element_bytes);
      value = extended(in, value);
    }
    warp.set(in.d[element], lane, value);
  }
}

void load_elements(Warp& warp, const Instruction& in, const Pointers& pointers) {
  for (size_t element = 0; element < in.d.size(); ++element) {
    if (in.d[element].sink) continue;
    if (in.d[element].bytes != in.element_bytes) {
      load_extended(warp, in, pointers, element);
      continue;
    }
    switch (in.element_bytes) {
      case 1: load_same_size<uint8_t>(warp, in, pointers, element); break;
      case 2: load_same_size<uint16_t>(warp, in, pointers, element); break;
      case 4: load_same_size<uint32_t>(warp, in, pointers, element); break;
      default: load_same_size<uint64_t>(warp, in, pointers, element);
    }
  }
}

void ld(Warp& warp, const Instruction& in) {
  const Addresses addresses = addresses_of(warp, in.s[0], in.offset[0]);
  const int bytes = in.element_bytes * in.vector;
  load_elements(warp, in, access(warp, in, in.space, addresses, warp.active, bytes, in.read_only ? kReadOnly : kRead));
}

// The bytes of parameters that an access of one lane reads; null where there are none.
const uint8_t* parameter_bytes(Warp& warp, const Instruction& in, uint64_t address) {
  const uint64_t bytes = in.element_bytes * in.vector, end = uint64_t(warp.block->kernel->parameter_bytes);
  if (address >= kParamWindow) address -= kParamWindow;
  if (address + bytes > end) {
    report(warp, in, "out of range", "parameter address " + std::to_string(address) + " of " + std::to_string(end));
    return nullptr;
  }
  if (address % bytes) report(warp, in, "misaligned", "parameter address " + std::to_string(address));
  return warp.block->parameters + address;
}

void ld_param(Warp& warp, const Instruction& in) {
  const Addresses addresses = addresses_of(warp, in.s[0], in.offset[0]);
  Pointers pointers{};
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.has(lane)) continue;
    // All lanes nearly always read the same.
    const bool as_before = lane > 0 && pointers[lane - 1] && addresses[lane] == addresses[lane - 1];
    pointers[lane] = as_before ? pointers[lane - 1] : const_cast<uint8_t*>(parameter_bytes(warp, in, addresses[lane]));
  }
  load_elements(warp, in, pointers);
}

void st(Warp& warp, const Instruction& in) {
  const Addresses addresses = addresses_of(warp, in.s[0], in.offset[0]);
  uint8_t stored[kLanes][kStoreBytes];
  for (int element = 0; element < in.vector; ++element) {
    const Operand& source = in.s[1 + size_t(element)];
    const uint8_t* values = warp.registers + source.at;
    for (int lane = 0; lane < kLanes; ++lane)
      std::memcpy(stored[lane] + element * in.element_bytes, values + lane * source.bytes, in.element_bytes);
  }
  const int bytes = in.element_bytes * in.vector;
  warp.stored = stored[0];
  const Pointers pointers = access(warp, in, in.space, addresses, warp.active, bytes, kWrite);
  warp.stored = nullptr;
  for (int lane = 0; lane < kLanes; ++lane)
    if (pointers[lane]) std::memcpy(pointers[lane], stored[lane], size_t(bytes));
}

Space space_of(const Form& form) {
  if (form.has("global")) return Space::global;
  if (form.has("shared") || form.has("shared::cta")) return Space::shared;
  if (form.has("param") || form.has("param::entry")) return Space::param;
  if (form.has("const")) return Space::constant;
  return Space::generic;
}

// Whether what every access says makes sense; fills in its size.
bool describe(const Form& form, Instruction& in, size_t registers) {
  in.space = space_of(form);
  in.element_bytes = uint8_t(bytes_of(form.type));
  in.vector = form.has("v2") ? 2 : form.has("v4") ? 4 : form.has("v8") ? 8 : 1;
  return registers == in.vector && in.element_bytes * in.vector <= kStoreBytes;
}

Execute load(const Form& form, Instruction& in) {
  if (!describe(form, in, in.d.size())) return nullptr;
  in.read_only = form.has("nc");
  for (const Operand& operand : in.d)
    if (!operand.sink && operand.bytes < in.element_bytes) return nullptr;
  if (in.read_only && in.space != Space::global) return nullptr;
  in.counted = in.space == Space::param ? Class::param : in.space == Space::shared ? Class::lds : Class::ldg;
  return in.space == Space::param ? ld_param : ld;
}

// An L2 policy may follow the values.
Execute store(const Form& form, Instruction& in) {
  const size_t policies = form.has("L2::cache_hint");
  if (!describe(form, in, in.s.size() - 1 - policies)) return nullptr;
  for (size_t i = 1; i <= in.vector; ++i)
    if (in.s[i].bytes < in.element_bytes) return nullptr;
  in.counted = in.space == Space::shared ? Class::sts : Class::stg;
  return in.space == Space::generic || in.space == Space::global || in.space == Space::shared ? st : nullptr;
}

Execute nothing(const Form&, Instruction&) {
  return [](Warp&, const Instruction&) {};
}

constexpr Opcode kOpcodes[] = {
    {"ld",
     "weak|volatile? global|shared|shared::cta|param|param::entry|const? <cache>? nc? <evict>? L2::cache_hint? "
     "<prefetch>? "
     "v2|v4|v8? <any>",
     "dx m s8?", Class::ldg, load},
    {"st", "weak|volatile? <space>? <cache>? <evict>? L2::cache_hint? v2|v4|v8? <any>", "m sx s8?", Class::stg, store},
    {"prefetch", "global? L1|L2", "m", Class::other, nothing},
};

}  // namespace

std::span<const Opcode> memory_access() { return kOpcodes; }

}  // namespace ptx
