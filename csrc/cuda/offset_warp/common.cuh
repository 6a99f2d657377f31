// The parts that both directions share: how the lanes of a warp divide the work, where the taps fall, the samples.
//
// A warp takes 16 pixels at a time, the rows of mma's first operand: lane = 4 g + t has pixels g and g + 8. The
// summation index of out = columns W runs over taps and channels in any order, so each lane loads just the channels
// that mma wants from it. The four lanes of a pixel read adjacent 8 or 16 bytes of a corner, whole sectors of memory.
// The samples are in the registers of mma's operand already, and need no shared memory.
//
// For bfloat16 and 16 channels: a step is one tap, lane t loads channels 4t .. 4t + 3 of its two pixels (8 bytes of
// each corner, the pixel's four lanes 32), and one mma takes all 16 channels: its places 2t, 2t + 1 and 2t + 8, 2t + 9
// of the summation index stand for those four. The weight is laid out to match, and so are the output's columns: lane t
// ends with output channels 4t .. 4t + 3.
#pragma once

#include <algorithm>

#include "cuda/images.cuh"
#include "cuda/tensor_cores.cuh"
#include "math/bilinear.h"

namespace motionrnn_ext::cuda {
namespace {

// The least blocks per multiprocessor for __launch_bounds__: 1, or 0 for no demand. Without a demand, ptxas 13.0 spills
// a few registers of some kernels to fit one more block. If told that one block is enough, it does not. The kernels on
// the fast path have no such spills, and use fewer registers without a demand.
template <bool yes>
constexpr int kMayUseAllRegisters = yes ? 1 : 0;

// Channels are dealt to lanes in vectors of `vector` channels, round robin over `lanes` lanes.
template <int vector, int lanes>
__device__ __forceinline__ constexpr int dealt_channel(int lane, int slot) {
  return slot / vector * (lanes * vector) + lane * vector + slot % vector;
}

// A step of the summation: up to N channels of one tap, or 8 channels of two. A lane has kSlots places in it.
template <class T, int N, int vector>
struct Step {
  static constexpr int kVector = vector;                            // channels of one load, 8 or 16 bytes
  static constexpr int kLanes = N / kVector < 4 ? N / kVector : 4;  // lanes that share a tap
  static constexpr int kTaps = 4 / kLanes;
  static constexpr int kSlots = N / kLanes;
  static constexpr int kWords = kSlots / kPerWord<T>;
  static constexpr int kMmas = kWords / 2;  // mma takes two words of each lane
  static constexpr int kSlotsOfMma = kSlots / kMmas;

  // t: the lane's place among the four of its pixel
  static __device__ __forceinline__ constexpr int tap(int t) { return t / kLanes; }
  static __device__ __forceinline__ constexpr int channel(int t, int slot) {
    return dealt_channel<kVector, kLanes>(t % kLanes, slot);
  }
};

// N channels of an image as columns of mma, dealt to the four lanes of a pixel so that each can read or write them by
// vectors. Column 2t + i of mma's tile j is slot 2j + i of lane t.
template <class T, int N>
struct Columns {
  static constexpr int kSlots = N / 4;
  static constexpr int kVector = kSlots * sizeof(T) <= 16 ? kSlots : 16 / sizeof(T);
  static constexpr int kWords = kSlots / kPerWord<T>;
  static constexpr int kTiles = N / 8;

  static __device__ __forceinline__ constexpr int channel(int t, int slot) {
    return dealt_channel<kVector, 4>(t, slot);
  }
};

// ---- Images

// Reads a lane's channels of a pixel, 0 for channels from `end` on. With `vectors` they are adjacent and aligned.
template <class T, class Layout, bool vectors>
struct LaneReader {
  static constexpr int kVectorWords = Layout::kVector / kPerWord<T>;
  const char* first;    // the lane's first channel at pixel 0
  int32_t pixel_bytes;  // 32 bits, like a pixel: an address then takes one instruction
  int32_t channel;      // stride in elements
  int32_t left;         // channels from the lane's first on

  __device__ __forceinline__ LaneReader(const Image& image, int b, int begin, int end) {
    const int lane_channel = begin + Layout::channel(threadIdx.x % 4, 0);
    first = reinterpret_cast<const char*>(static_cast<const T*>(image.data) + b * image.batch +
                                          int64_t(lane_channel) * image.channel);
    pixel_bytes = image.pixel * int32_t(sizeof(T)), channel = image.channel, left = end - lane_channel;
  }

  __device__ __forceinline__ void operator()(int32_t pixel, bool inside, uint32_t (&word)[Layout::kWords]) const {
    const T* from = reinterpret_cast<const T*>(first + uint64_t(uint32_t(pixel)) * uint32_t(pixel_bytes));
#pragma unroll
    for (int v = 0; v < Layout::kSlots / Layout::kVector; ++v) {
      if constexpr (vectors) {
        const int at = Layout::channel(0, v * Layout::kVector);
        if (inside && at < left) {
          load_words<kVectorWords>(from + at, word + v * kVectorWords);
        } else {
#pragma unroll
          for (int i = 0; i < kVectorWords; ++i) word[v * kVectorWords + i] = 0;
        }
      } else {
#pragma unroll
        for (int i = 0; i < kVectorWords; ++i) {
          // Elements are put together as they are: what depends on a condition may wait for each load in turn.
          T value[kPerWord<T>];
#pragma unroll
          for (int j = 0; j < kPerWord<T>; ++j) {
            const int at = Layout::channel(0, v * Layout::kVector + i * kPerWord<T> + j);
            value[j] = inside && at < left ? __ldg(from + int64_t(at) * channel) : from_float<T>(0.0f);
          }
          memcpy(word + v * kVectorWords + i, value, sizeof(uint32_t));
        }
      }
    }
  }
};

// ---- Taps

// The place of a pixel's tap: the cell it falls in, with the fractions in the cell, and its mask, s(m).
struct Place {
  math::BilinearCell<float> row, col;
  float mask;
};

// A cell's pixels as indices into the image, -1 outside.
struct alignas(16) CornerIndices {
  int32_t at[4];  // in the order of math::Corners
};

__device__ __forceinline__ CornerIndices corner_indices(const WarpArguments& a, const Place& place) {
  const int32_t y = place.row.lower, x = place.col.lower, at = y * a.width + x;
  const bool top = unsigned(y) < unsigned(a.height), bottom = unsigned(y + 1) < unsigned(a.height);
  const bool left = unsigned(x) < unsigned(a.width), right = unsigned(x + 1) < unsigned(a.width);
  return {{top && left ? at : -1, top && right ? at + 1 : -1, bottom && left ? at + a.width : -1,
           bottom && right ? at + a.width + 1 : -1}};
}

// Make the new offset of a tap, row and column, from the update's logits. Where several blocks take these pixels, one
// of them (`writes`) stores it and the new trend. All loads come before the first store, so that one wait serves both
// axes.
template <class T>
__device__ __forceinline__ void update_motion(const WarpArguments& a, int b, int tap, int pixel, bool writes,
                                              float (&offset)[2]) {
  const Pixels<T> update(a.motion.update_logits, b), candidate(a.motion.candidate_logits, b);
  const Pixels<float> previous(a.motion.offset, b), trend(a.motion.trend, b);
  float in[2][4];
#pragma unroll
  for (int axis = 0; axis < 2; ++axis) {
    const int channel = axis * a.k * a.k + tap;
    in[axis][0] = update.read(channel, pixel), in[axis][1] = candidate.read(channel, pixel);
    in[axis][2] = previous.read(channel, pixel), in[axis][3] = trend.read(channel, pixel);
  }
#pragma unroll
  for (int axis = 0; axis < 2; ++axis) {
    float out[2];
    math::MotionUpdate::apply<float>(in[axis], out, {a.motion.alpha, a.motion.max_offset});
    offset[axis] = out[0];
    if (!writes) continue;
    const int channel = axis * a.k * a.k + tap;
    Pixels<float>(a.offset, b)(channel, pixel) = out[0];
    Pixels<float>(a.motion.new_trend, b)(channel, pixel) = out[1];
  }
}

__device__ __forceinline__ Place locate(const WarpArguments& a, int tap_row, int tap_col, int row, int col,
                                        float row_offset, float col_offset, float mask_logit) {
  const int32_t reach = std::max(a.height, a.width) + a.k;
  const int radius = (a.k - 1) / 2;
  return {math::bilinear_cell<float>(row + tap_row - radius, row_offset, reach),
          math::bilinear_cell<float>(col + tap_col - radius, col_offset, reach), math::sigmoid(mask_logit)};
}

// Return the sample of every slot, from the words of its four corners.
template <class T, int words>
__device__ __forceinline__ void interpolate(const uint32_t (&corner)[4][words], const float (&weight)[4],
                                            uint32_t (&sample)[words]) {
#pragma unroll
  for (int i = 0; i < words; ++i) {
    float sum[kPerWord<T>] = {};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      float value[kPerWord<T>];
      unpack<T>(corner[q][i], value);
#pragma unroll
      for (int j = 0; j < kPerWord<T>; ++j) sum[j] = fmaf(weight[q], value[j], sum[j]);
    }
    sample[i] = pack<T>(sum);
  }
}

// ---- Tiles: pixels of one image. So the batch stride may be any, and indices fit 32 bits.

struct Tiles {
  int32_t per_image, count;
  __host__ __device__ Tiles(const WarpArguments& a, int size)
      : per_image((a.height * a.width + size - 1) / size), count(per_image * a.batch) {}
};

}  // namespace
}  // namespace motionrnn_ext::cuda
