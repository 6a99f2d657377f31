// The description of a pointwise map for the kernels that run it: each tensor's streams of elements and their dtype.
// A map is a struct with `inputs`, `outputs` and a static `apply(in, out, parameters)` over one element of each stream.
#pragma once

#include "scalar.h"

namespace motionrnn_ext::math {

// The numbers that a map takes, at most: motion_update has two.
constexpr int kParameters = 2;

// The dtype of an operand: that of the features, or that of motion state and memory.
enum class Role { feature, state };

struct Operand {
  Role role;
  // A tensor (B, streams * C, *S) holds its streams one after the other along the channels.
  int streams = 1;
};

template <int n>
constexpr int count_streams(const Operand (&operands)[n]) {
  int streams = 0;
  for (const Operand& operand : operands) streams += operand.streams;
  return streams;
}

template <int n>
constexpr Role role_of_stream(const Operand (&operands)[n], int stream) {
  for (const Operand& operand : operands) {
    if (stream < operand.streams) return operand.role;
    stream -= operand.streams;
  }
  return Role::feature;
}

}  // namespace motionrnn_ext::math
