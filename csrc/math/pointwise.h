// The description of a pointwise map for the kernels that run it: each tensor's streams of elements and their dtype.
// A map is a struct with `inputs`, `outputs` and a static `apply(in, out, parameters)` over one element of each stream.
#pragma once

#include "scalar.h"

namespace motionrnn_ext::math {

// The numbers that a map takes, at most: motion_update has two.
constexpr int kParameters = 2;

// The dtype of an operand: that of the features, or that of motion state and memory.
enum class Role { feature, state };

// The kind of an output that a call may leave out: its pointers are null then, and nothing is stored.
constexpr bool kOptional = true;

struct Operand {
  Role role;
  // A tensor (B, streams * C, *S) holds its streams one after the other along the channels.
  int streams = 1;
  bool optional = false;
};

template <int n>
constexpr int count_streams(const Operand (&operands)[n]) {
  int streams = 0;
  for (const Operand& operand : operands) streams += operand.streams;
  return streams;
}

template <int n>
constexpr const Operand& operand_of_stream(const Operand (&operands)[n], int stream) {
  int operand = 0;
  while (stream >= operands[operand].streams) stream -= operands[operand++].streams;
  return operands[operand];
}

template <int n>
constexpr Role role_of_stream(const Operand (&operands)[n], int stream) {
  return operand_of_stream(operands, stream).role;
}

template <int n>
constexpr bool is_optional_stream(const Operand (&operands)[n], int stream) {
  return operand_of_stream(operands, stream).optional;
}

}  // namespace motionrnn_ext::math
