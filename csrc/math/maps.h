// Every pointwise map, forward and backward: the list that the kernels of every backend are made from.
#pragma once

#include <cstdint>

#include "lstm_steps.h"
#include "motion_gru.h"
#include "recurrent_gates.h"

#define MOTIONRNN_EXT_POINTWISE_MAPS(_) \
  _(MotionReset)                        \
  _(MotionResetBackward)                \
  _(MotionUpdate)                       \
  _(MotionUpdateBackward)               \
  _(MemoryUpdate)                       \
  _(MemoryUpdateBackward)               \
  _(GatedOutput)                        \
  _(GatedOutputBackward)                \
  _(HighwayOutput)                      \
  _(HighwayOutputBackward)              \
  _(GatedBlend)                         \
  _(GatedBlendBackward)                 \
  _(StLstmUpdate)                       \
  _(StLstmUpdateBackward)               \
  _(SummedGatedOutput)                  \
  _(SummedHighwayOutput)                \
  _(ConvLstmUpdate)                     \
  _(ConvLstmUpdateBackward)             \
  _(ConvLstmHighwayUpdate)              \
  _(ConvLstmHighwayUpdateBackward)

namespace motionrnn_ext::math {

enum class Map {
#define MOTIONRNN_EXT_ENUMERATE(map) map,
  MOTIONRNN_EXT_POINTWISE_MAPS(MOTIONRNN_EXT_ENUMERATE)
#undef MOTIONRNN_EXT_ENUMERATE
};

template <class MapOf>
constexpr Map kMap{};
#define MOTIONRNN_EXT_NAME(map) \
  template <>                   \
  inline constexpr Map kMap<map> = Map::map;
MOTIONRNN_EXT_POINTWISE_MAPS(MOTIONRNN_EXT_NAME)
#undef MOTIONRNN_EXT_NAME

// The dtype of the features, and that of motion state or memory where it differs.
enum class Types { f64, f32, bf16, f16, bf16_f32, f16_f32 };

constexpr int kMaxStreams = 16;

// The elements that a kernel runs a map over: rows of `inner` contiguous elements of each stream. A row is a batch
// entry of a contiguous tensor, or a pixel of a channels_last tensor.
struct PointwiseArguments {
  const void* in[kMaxStreams];     // a stream's first element
  int64_t in_stride[kMaxStreams];  // elements from one row to the next
  void* out[kMaxStreams];
  int64_t out_stride[kMaxStreams];
  int64_t rows, inner;
  double parameters[kParameters];
};

}  // namespace motionrnn_ext::math
