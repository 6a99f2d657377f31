// An operation on one lane's values as an instruction of 32 lanes.
#pragma once
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/warp.h"
#include "isa/numbers.h"
#include "isa/opcode.h"

namespace ptx {

// Writes the active lanes.
template <class T>
inline void write_lanes(Warp& warp, const Operand& to, const T* values) {
  T* lanes = warp.lanes<T>(to);
  const Mask active = warp.active;
  if (active == kAllLanes) {
    std::memcpy(lanes, values, kLanes * sizeof(T));
    return;
  }
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = active >> lane & 1 ? values[lane] : lanes[lane];
}

template <auto operation, class Result, class... Sources, size_t... index>
inline void each_lane_of(Warp& warp, const Instruction& in, std::index_sequence<index...>) {
  alignas(64) Result results[kLanes];
  [&](const Sources*... sources) {
    for (int lane = 0; lane < kLanes; ++lane) results[lane] = Result(operation(sources[lane]...));
  }(warp.lanes<Sources>(in.s[index])...);
  write_lanes(warp, in.d[0], results);
}

// d = operation(sources...) in every lane. Idle lanes compute as well, which costs nothing; they are not written.
template <auto operation, class Result, class... Sources>
void each_lane(Warp& warp, const Instruction& in) {
  each_lane_of<operation, Result, Sources...>(warp, in, std::index_sequence_for<Sources...>());
}

// The same where all operands have one type, for an operation of one, two or three operands.
template <auto operation, class T>
constexpr Execute same_type() {
  if constexpr (std::is_invocable_v<decltype(operation), T>)
    return each_lane<operation, T, T>;
  else if constexpr (std::is_invocable_v<decltype(operation), T, T>)
    return each_lane<operation, T, T, T>;
  else
    return each_lane<operation, T, T, T, T>;
}

// Of what depends on the sign.
template <auto operation>
Execute integers(const Form& form, Instruction&) {
  switch (form.type) {
    case Type::u16: return same_type<operation, uint16_t>();
    case Type::s16: return same_type<operation, int16_t>();
    case Type::u32: return same_type<operation, uint32_t>();
    case Type::s32: return same_type<operation, int32_t>();
    case Type::u64: return same_type<operation, uint64_t>();
    case Type::s64: return same_type<operation, int64_t>();
    default: return nullptr;
  }
}

// Of what is the same for both signs: numbers modulo 2^16, 2^32 or 2^64.
template <auto operation>
Execute bits(const Form& form, Instruction&) {
  switch (bytes_of(form.type)) {
    case 2: return same_type<operation, uint16_t>();
    case 4: return same_type<operation, uint32_t>();
    case 8: return same_type<operation, uint64_t>();
    default: return nullptr;
  }
}

// float32 of which subnormal inputs and results are 0 (.ftz).
template <auto operation>
constexpr auto flushed = [](auto... inputs) { return flush_subnormal(operation(flush_subnormal(inputs)...)); };

template <auto operation>
Execute float32(const Form& form, Instruction&) {
  if (!form.has("ftz")) return same_type<operation, float>();
  if constexpr (std::is_invocable_v<decltype(operation), float>)
    return each_lane<[](float a) { return flushed<operation>(a); }, float, float>;
  else if constexpr (std::is_invocable_v<decltype(operation), float, float>)
    return each_lane<[](float a, float b) { return flushed<operation>(a, b); }, float, float, float>;
  else
    return each_lane<[](float a, float b, float c) { return flushed<operation>(a, b, c); }, float, float, float, float>;
}

template <auto operation>
Execute float64(const Form&, Instruction&) {
  return same_type<operation, double>();
}

}  // namespace ptx
