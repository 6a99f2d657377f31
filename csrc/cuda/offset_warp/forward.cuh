// offset_warp forward in one launch: taps, samples and their contraction, without intermediates in device memory.
//
// A block keeps the weight in shared memory, in the order in which mma's lanes read it, or reads it as it was packed
// for many launches (packing.cuh). Each of its warps goes through tiles of 16 pixels on its own: it finds the 9 taps of
// its pixels (each by one lane: one sigmoid per pixel and tap), then for each tap the lanes load corners, interpolate
// and multiply. Small maps give a tile to all four warps of a block, which share out the taps and add up.
#pragma once

#include "cuda/offset_warp/common.cuh"

namespace motionrnn_ext::cuda {
namespace {

constexpr int kForwardWarps = 4;
constexpr int kTile = 16;
constexpr int kTapChunk = 9;    // taps whose weights are in shared memory at a time: all of k = 3
constexpr int kTapPlaces = 10;  // taps in a warp's shared memory: kTapChunk, rounded up to whole steps of one or two

// Of each tap a warp's shared memory holds the indices of its corners, and kTapsOfWarp places behind them the corners'
// weights, mask times bilinear weight. In a struct of both, the lanes' stores of 16 bytes would be 32 bytes apart and
// reach half of the banks. Taps are one place further apart than they need, so that stores of neighbouring taps reach
// different banks.
constexpr int kTapDistance = kTile + 1;
constexpr int kTapsOfWarp = kTapPlaces * kTapDistance;
constexpr size_t kTapsBytes = kTapsOfWarp * (sizeof(CornerIndices) + sizeof(float4));

template <int taps_of_warp = kTapsOfWarp>
__device__ __forceinline__ float4& weights_of(CornerIndices* tap) {
  return *reinterpret_cast<float4*>(tap + taps_of_warp);
}

template <class T, int N>
struct ForwardShape {
  using In = Step<T, N, sizeof(T) == 4 || N <= 16 ? 4 : 8>;
  // Output channels of a block, whose weight then fits into 99 KB.
  static constexpr int kOut = sizeof(T) == 4 && N == 64 ? 32 : N;
  using Out = Columns<T, kOut>;
  static constexpr int kLanesOfTap = 8 * In::kLanes;
  static constexpr int kFragments = In::kMmas * Out::kTiles * kLanesOfTap;  // uint2 of a tap
  // A packed weight is [tap][tile and product, by kTogether][column g][lane of the tap][kTogether], so that a lane
  // reads 16 bytes if it has as much. Return the place in a tap; `fragment` is tile * kMmas + product.
  static constexpr int kTogether = In::kMmas * Out::kTiles > 1 ? 2 : 1;
  static __device__ __forceinline__ constexpr int place(int fragment, int g, int t) {
    return fragment / kTogether * kTogether * kLanesOfTap + (g * In::kLanes + t) * kTogether + fragment % kTogether;
  }
  static constexpr size_t kWeightBytes = size_t(kTapChunk) * kFragments * sizeof(uint2);
  static constexpr size_t kSharedBytes = kWeightBytes + kForwardWarps * kTapsBytes;
};

// Stage part of the weight as mma's second operand, [tap][product][tile][column g][lane of the tap], 0 beyond the
// channels. A thread has the same place in each of its taps, and loads several of them before it waits.
template <class T, int N>
__device__ __forceinline__ void stage_part_of_weight(const WarpArguments& a, int first_tap, int first_in, int first_out,
                                                     uint2* fragments) {
  using Shape = ForwardShape<T, N>;
  using In = typename Shape::In;
  using Out = typename Shape::Out;
  static_assert(In::kVector % In::kSlotsOfMma == 0);  // the slots of a product are neighbouring channels
  constexpr int kThreads = kForwardWarps * kWarp, kPerTap = Shape::kFragments;
  static_assert(kThreads % kPerTap == 0 || kPerTap % kThreads == 0);
  constexpr int kTapsAtOnce = std::max(kThreads / kPerTap, 1), kRounds = (kTapChunk + kTapsAtOnce - 1) / kTapsAtOnce;
  // Rounds whose loads are in flight together. Registers hold the loaded values.
  constexpr int kTogether = N <= 16 ? kRounds : 3;
  const int taps = a.k * a.k, count = std::min(taps - first_tap, +kTapChunk);
#pragma unroll 1
  for (int first = 0; first < kPerTap; first += kThreads) {
    const int i = first + threadIdx.x % std::min(kThreads, kPerTap), first_of_mine = threadIdx.x / kPerTap;
    const int t = i % In::kLanes, g = i / In::kLanes % 8, tile = i / (In::kLanes * 8) % Out::kTiles;
    const int product = i / (In::kLanes * 8 * Out::kTiles);
    const int o = first_out + Out::channel(g >> 1, 2 * tile + (g & 1));
    const int c = first_in + In::channel(t, product * In::kSlotsOfMma);
    const int slots = o < a.out_channels ? a.channels - c : 0;
    const T* from = static_cast<const T*>(a.weight) + (int64_t(o) * a.channels + c) * taps + first_tap;
#pragma unroll 1
    for (int tap = first_of_mine; tap < kTapChunk; tap += kTogether * kTapsAtOnce) {
      T slot[kTogether][In::kSlotsOfMma];
#pragma unroll
      for (int j = 0; j < kTogether; ++j)
#pragma unroll
        for (int s = 0; s < In::kSlotsOfMma; ++s) {
          const int place = tap + j * kTapsAtOnce;
          slot[j][s] = s < slots && place < count ? __ldg(from + (s * taps + place)) : from_float<T>(0.0f);
        }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const int place = tap + j * kTapsAtOnce;
        if (place < kTapChunk) memcpy(fragments + place * kPerTap + i, slot[j], sizeof(uint2));
      }
    }
  }
}

// Stage the weight of k = 3. A place's elements of all taps are neighbours in memory, 72 bytes, which a thread loads at
// once.
template <class T, int N>
__device__ __forceinline__ void stage_weight(const WarpArguments& a, int first_out, uint2* fragments) {
  using Shape = ForwardShape<T, N>;
  using In = typename Shape::In;
  using Out = typename Shape::Out;
  constexpr int kSlots = In::kSlotsOfMma;
  static_assert(kSlots * sizeof(T) == sizeof(uint2));
  if (a.k * a.k != kTapChunk || a.channels % kSlots != 0 || reinterpret_cast<uintptr_t>(a.weight) % sizeof(uint2) != 0)
    return stage_part_of_weight<T, N>(a, 0, 0, first_out, fragments);
#pragma unroll 1
  for (int i = threadIdx.x; i < Shape::kFragments; i += kForwardWarps * kWarp) {
    const int t = i % In::kLanes, g = i / In::kLanes % 8, tile = i / (In::kLanes * 8) % Out::kTiles;
    const int product = i / (In::kLanes * 8 * Out::kTiles);
    const int o = first_out + Out::channel(g >> 1, 2 * tile + (g & 1)), c = In::channel(t, product * kSlots);
    const bool exists = o < a.out_channels && c < a.channels;
    const auto* from =
        reinterpret_cast<const uint2*>(static_cast<const T*>(a.weight) + (int64_t(o) * a.channels + c) * kTapChunk);
    uint2 word[kTapChunk];
#pragma unroll
    for (int n = 0; n < kTapChunk; ++n) word[n] = exists ? __ldg(from + n) : make_uint2(0, 0);
    T value[kSlots][kTapChunk];
    static_assert(sizeof(value) == sizeof(word));
    memcpy(value, word, sizeof(value));
#pragma unroll
    for (int tap = 0; tap < kTapChunk; ++tap) {
      T slot[kSlots];
#pragma unroll
      for (int s = 0; s < kSlots; ++s) slot[s] = value[s][tap];
      memcpy(fragments + tap * Shape::kFragments + i, slot, sizeof(uint2));
    }
  }
}

// Deals a warp's taps at its pixels to lanes, one by one, such that neighbouring lanes have neighbours in memory. Where
// the channels of motion maps come last, these are the taps of a pixel, else the pixels of a tap. Where k is 1, a warp
// may have no tap.
struct DealtTaps {
  bool last;
  int inner, outer, size, end;  // a lane's place, and the ends of both
  int inner_step, outer_step;   // to the lane's next place

  __device__ __forceinline__ DealtTaps(const Image& map, int taps)
      : last(map.channel == 1 && taps > 0), size(last ? taps : kTile), end(last ? kTile : taps) {
    // Quotients of small integers: half of one is far more than the error of a float.
    const int lane = threadIdx.x % kWarp;
    const float reciprocal = __fdividef(1.0f, static_cast<float>(size));
    outer = static_cast<int>((static_cast<float>(lane) + 0.5f) * reciprocal), inner = lane - outer * size;
    outer_step = static_cast<int>((kWarp + 0.5f) * reciprocal), inner_step = kWarp - outer_step * size;
  }
  __device__ __forceinline__ bool exists() const { return outer < end; }
  __device__ __forceinline__ int tap() const { return last ? inner : outer; }
  __device__ __forceinline__ int pixel() const { return last ? outer : inner; }
  __device__ __forceinline__ void advance() {
    inner += inner_step, outer += outer_step;
    if (inner >= size) inner -= size, outer += 1;
  }
};

// Find the warp's taps of a chunk at its 16 pixels: taps[n][pixel] is tap first_tap + n * stride. Taps from end_tap on
// read nothing. Without motion, all loads come first and without a branch, so that one wait serves them. The loaded
// values are kept in shared memory until the second loop, in which a lane has one pixel.
template <class T>
__device__ __forceinline__ void find_taps(const WarpArguments& a, int b, int first_pixel, int first_tap, int stride,
                                          int end_tap, int places, bool alive, CornerIndices* taps) {
  constexpr int kAtOnce = kWarp / kTile, kRounds = kTapPlaces / kAtOnce;
  static_assert(kTapPlaces % kAtOnce == 0);
  const int lane = threadIdx.x % kWarp, pixels = a.height * a.width, all_taps = a.k * a.k;
  if (!alive) end_tap = 0;
  DealtTaps at(a.offset, places);
  const Pixels<T> mask_logits(a.mask_logits, b);
  if (a.motion.given()) {
#pragma unroll 1
    for (; at.exists(); at.advance()) {
      const int tap = first_tap + at.tap() * stride, pixel = first_pixel + at.pixel();
      if (tap >= end_tap || pixel >= pixels) continue;
      const float mask_logit = mask_logits.read(tap, pixel);
      float offset[2];
      update_motion<T>(a, b, tap, pixel, blockIdx.y == 0, offset);
      weights_of(taps + at.tap() * kTapDistance + at.pixel()) = make_float4(offset[0], offset[1], mask_logit, 0.0f);
    }
  } else {
    const Pixels<float> offset(a.offset, b);
    float4 found[kRounds];
    int place[kRounds];
#pragma unroll
    for (int i = 0; i < kRounds; ++i, at.advance()) {
      const int tap = first_tap + at.tap() * stride, pixel = first_pixel + at.pixel();
      const bool exists = at.exists() && tap < end_tap && pixel < pixels;
      place[i] = at.exists() ? at.tap() * kTapDistance + at.pixel() : -1;
      found[i].x = exists ? offset.read(tap, pixel) : 0.0f;
      found[i].y = exists ? offset.read(all_taps + tap, pixel) : 0.0f;
      found[i].z = exists ? mask_logits.read(tap, pixel) : 0.0f;
      found[i].w = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kRounds; ++i)
      if (place[i] >= 0) weights_of(taps + place[i]) = found[i];
  }
  __syncwarp();
  const int pixel = first_pixel + lane % kTile, row = pixel / a.width, col = pixel - row * a.width;
  if (pixel >= pixels) end_tap = 0;
  first_tap += lane / kTile * stride;
  taps += lane / kTile * kTapDistance + lane % kTile;
  stride *= kAtOnce;
  int tap_row = first_tap / a.k, tap_col = first_tap - tap_row * a.k;  // stepped: a division takes 20 instructions
  const int row_step = stride / a.k, col_step = stride - row_step * a.k;
#pragma unroll 1
  for (int n = lane / kTile, tap = first_tap; n < places; n += kAtOnce, tap += stride, taps += kAtOnce * kTapDistance) {
    CornerIndices corner{{-1, -1, -1, -1}};
    float4 weight = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (tap < end_tap) {
      const float4 motion = weights_of(taps);
      const Place place = locate(a, tap_row, tap_col, row, col, motion.x, motion.y, motion.z);
      const auto weights = math::bilinear_weights<float>(place.row.fraction, place.col.fraction);
      corner = corner_indices(a, place);
      weight = make_float4(place.mask * weights.v00, place.mask * weights.v01, place.mask * weights.v10,
                           place.mask * weights.v11);
    }
    *taps = corner, weights_of(taps) = weight;
    tap_row += row_step, tap_col += col_step;
    if (tap_col >= a.k) tap_row += 1, tap_col -= a.k;
  }
}

// A lane's fragments of a step, or part of its channels (`Part`), where they are packed: also of taps beyond the last
// one, which fill up a step.
template <class T, int N, class Part>
struct PackedFragments {
  using Shape = ForwardShape<T, N>;
  static constexpr int kTogether = Shape::kTogether, kCount = Shape::Out::kTiles * Part::kMmas;
  // They are loaded before the samples, so that one wait serves both, where registers allow it.
  static constexpr bool kAhead = sizeof(T) == 2 && N <= 16;
  const uint2* of_lane;
  uint32_t loaded[kAhead ? kCount / kTogether : 1][2 * kTogether];

  __device__ __forceinline__ PackedFragments(const void* packed, int tap, int part)
      : of_lane(static_cast<const uint2*>(packed) + tap * Shape::kFragments +
                part * (Part::kMmas * Shape::kLanesOfTap) +
                Shape::place(0, threadIdx.x % kWarp / 4, threadIdx.x % Shape::In::kLanes)) {
    if constexpr (kAhead)
#pragma unroll
      for (int i = 0; i < kCount; i += kTogether) load(i, loaded[i / kTogether]);
  }
  __device__ __forceinline__ void load(int i, uint32_t (&word)[2 * kTogether]) const {
    const int fragment = i / Part::kMmas * Shape::In::kMmas + i % Part::kMmas;
    load_words<2 * kTogether>(of_lane + fragment * Shape::kLanesOfTap, word);
  }
  // Tiles come in turn, and the products of each.
  __device__ __forceinline__ uint2 operator()(int tile, int product) {
    const int i = tile * Part::kMmas + product, at = i % kTogether;
    auto& word = loaded[kAhead ? i / kTogether : 0];
    if (!kAhead && at == 0) load(i, word);
    return make_uint2(word[2 * at], word[2 * at + 1]);
  }
};

// Fetch the packed weight into the first-level cache, where it waits for the taps.
template <class T, int N>
__device__ __forceinline__ void prefetch_weight(const WarpArguments& a) {
  const int bytes = a.k * a.k * int(ForwardShape<T, N>::kFragments * sizeof(uint2));
  for (int i = threadIdx.x; i * kLine < bytes; i += kForwardWarps * kWarp)
    prefetch(static_cast<const char*>(a.packed) + i * kLine);
}

// Make the samples of a step, or part of its channels (`In`), at 16 pixels: load and interpolate. `taps` is the lane's
// tap at the first of its pixels.
template <class T, class In, int taps_of_warp, class Reader>
__device__ __forceinline__ void sample_step(const Reader& x, CornerIndices* taps, uint32_t (&sample)[2][In::kWords]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    CornerIndices* tap = taps + 8 * h;
    const int4 corner = *reinterpret_cast<const int4*>(tap->at);
    const float4 weight = weights_of<taps_of_warp>(tap);
    const int at[4] = {corner.x, corner.y, corner.z, corner.w};
    uint32_t word[4][In::kWords];
#pragma unroll
    for (int q = 0; q < 4; ++q) x(at[q], at[q] >= 0, word[q]);
    interpolate<T>(word, {weight.x, weight.y, weight.z, weight.w}, sample[h]);
  }
}

// Run one step by a staged weight. `fragments` are those of the lane's tap.
template <class T, int N, class Reader>
__device__ __forceinline__ void add_step(const Reader& x, CornerIndices* taps, const uint2* fragments, bool weighted,
                                         float (&sum)[ForwardShape<T, N>::Out::kTiles][4]) {
  using In = typename ForwardShape<T, N>::In;
  using Out = typename ForwardShape<T, N>::Out;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  uint32_t sample[2][In::kWords];
  sample_step<T, In, kTapsOfWarp>(x, taps + g, sample);
  const uint2* lane_fragments = fragments + g * In::kLanes + t % In::kLanes;
#pragma unroll
  for (int tile = 0; tile < Out::kTiles; ++tile)
    add_products<T>(sum[tile], [&](float (&chain)[4]) {
#pragma unroll
      for (int product = 0; product < In::kMmas; ++product) {
        uint2 b = make_uint2(0, 0);
        if (weighted) b = lane_fragments[(product * Out::kTiles + tile) * 8 * In::kLanes];
        multiply<T>(chain, sample[0] + 2 * product, sample[1] + 2 * product, b);
      }
    });
}

// The channels that a lane loads at a time. All eight of a lane's floats at both pixels and four corners would take 64
// registers.
template <class T, int N>
constexpr int kPartsOfStep = sizeof(T) == 4 && N == 32 ? 2 : 1;

// Run one step by a packed weight.
template <class T, int N, bool vectors, int taps_of_warp>
__device__ __forceinline__ void add_packed_step(const WarpArguments& a, int b, int tap, CornerIndices* taps,
                                                float (&sum)[ForwardShape<T, N>::Out::kTiles][4]) {
  using In = typename ForwardShape<T, N>::In;
  constexpr int kParts = kPartsOfStep<T, N>, kChannels = N / kParts;
  using Part = Step<T, kChannels, In::kVector>;
  static_assert(Part::kLanes == In::kLanes);
#pragma unroll 1
  for (int i = 0; i < kParts; ++i) {
    PackedFragments<T, N, Part> fragments(a.packed, tap, i);
    const LaneReader<T, Part, vectors> reader(a.x, b, i * kChannels, a.channels);
    uint32_t sample[2][Part::kWords];
    sample_step<T, Part, taps_of_warp>(reader, taps + threadIdx.x % kWarp / 4, sample);
    // ptxas would load fragments ahead where registers lack.
    if constexpr (!fragments.kAhead) __syncwarp();
#pragma unroll
    for (int tile = 0; tile < ForwardShape<T, N>::Out::kTiles; ++tile)
      add_products<T>(sum[tile], [&](float (&chain)[4]) {
#pragma unroll
        for (int product = 0; product < Part::kMmas; ++product)
          multiply<T>(chain, sample[0] + 2 * product, sample[1] + 2 * product, fragments(tile, product));
      });
  }
}

template <class T, int N, bool vectors>
__device__ __forceinline__ void store_tile(const WarpArguments& a, int b, int first_pixel, int first_out,
                                           const float (&sum)[ForwardShape<T, N>::Out::kTiles][4]) {
  using Out = typename ForwardShape<T, N>::Out;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int pixel = first_pixel + g + 8 * h;
    if (pixel >= a.height * a.width) continue;
    T* out = &element<T>(a.out, b, 0, pixel);
#pragma unroll
    for (int v = 0; v < Out::kSlots; v += Out::kVector) {
      float value[Out::kVector];
#pragma unroll
      for (int s = 0; s < Out::kVector; ++s) value[s] = sum[(v + s) / 2][2 * h + (v + s) % 2];
      const int channel = first_out + Out::channel(t, v);
      if constexpr (vectors) {
        constexpr int words = Out::kVector / kPerWord<T>;
        uint32_t word[words];
#pragma unroll
        for (int i = 0; i < words; ++i) word[i] = pack<T>(value + i * kPerWord<T>);
        if (channel < a.out_channels) store_words<words>(out + channel, word);
      } else {
#pragma unroll
        for (int s = 0; s < Out::kVector; ++s)
          if (channel + s < a.out_channels) out[int64_t(channel + s) * a.out.channel] = from_float<T>(value[s]);
      }
    }
  }
}

// Add up the results of a block's warps for one tile; the first warp has the sum. `mine` is this warp's shared
// memory and is overwritten. The next warp's memory lies `stride` bytes further.
template <int tiles>
__device__ __forceinline__ void add_warps(float (&sum)[tiles][4], void* mine, size_t stride) {
  const int lane = threadIdx.x % kWarp;
  float* own = static_cast<float*>(mine);
#pragma unroll
  for (int i = 0; i < tiles * 4; ++i) own[i * kWarp + lane] = sum[i / 4][i % 4];
  __syncthreads();
  if (threadIdx.x < kWarp) {
    for (int other = 1; other < kForwardWarps; ++other) {
      const float* theirs = reinterpret_cast<const float*>(static_cast<const char*>(mine) + other * stride);
#pragma unroll
      for (int i = 0; i < tiles * 4; ++i) sum[i / 4][i % 4] += theirs[i * kWarp + lane];
    }
  }
  __syncthreads();
}

// Blocks per multiprocessor for __launch_bounds__: as many as fit without a spill and into shared memory. 0 leaves the
// choice to the compiler, which would take fewer in some kernels and spill in others.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kBlocksOf16Floats = __CUDA_ARCH__ >= 1200 ? 3 : 6, kBlocksOf8 = 4;  // more is kept in registers there
constexpr bool kKeepsMore = true;
#else
constexpr int kBlocksOf16Floats = 0, kBlocksOf8 = 7;
constexpr bool kKeepsMore = false;
#endif
template <class T, int N, bool vectors, bool chunked>
constexpr int forward_blocks() {
  if (chunked || N > 16) return kMayUseAllRegisters<(!vectors || chunked || N == 64)>;
  if (!vectors) return N == 8 ? kBlocksOf8 : 4;
  if (sizeof(T) == 4) return N == 8 ? 0 : kBlocksOf16Floats;
  return N == 8 ? 9 : 8;
}

// The same for a packed weight.
template <class T, int N>
constexpr int packed_forward_blocks() {
  if (kKeepsMore) return N == 32 ? 5 : 6;
  return N == 32 ? 6 : N == 8 && sizeof(T) == 2 ? 9 : 8;
}

// `sharing` is the number of warps that share a tile, 1 or all. `chunked`: shared memory cannot hold the weight of all
// taps and channels, so it is staged chunk by chunk; all warps of a block run the same loops, to meet at its barriers.
// `packed`: it is not staged.
template <class T, int N, bool vectors, bool chunked, bool packed>
__device__ __forceinline__ void run_forward(const WarpArguments& a, const int sharing, unsigned char* shared) {
  using Shape = ForwardShape<T, N>;
  using In = typename Shape::In;
  uint2* fragments = reinterpret_cast<uint2*>(shared);
  const int warp = threadIdx.x / kWarp, part = warp % sharing, tiles_at_once = sharing == 1 ? kForwardWarps : 1;
  auto* taps = reinterpret_cast<CornerIndices*>(shared + (packed ? 0 : Shape::kWeightBytes) + warp * kTapsBytes);
  const int first_out = blockIdx.y * Shape::kOut;
  const int taps_in_all = a.k * a.k, tap_chunks = chunked ? (taps_in_all + kTapChunk - 1) / kTapChunk : 1;
  const int in_chunks = chunked ? (a.channels + N - 1) / N : 1;
  const Tiles tiles(a, kTile);
  if (packed) {
    prefetch_weight<T, N>(a);
  } else if (!chunked) {
    stage_weight<T, N>(a, first_out, fragments);
    __syncthreads();
  }
  for (int first = blockIdx.x * tiles_at_once; first < tiles.count; first += gridDim.x * tiles_at_once) {
    const int tile = first + (sharing == 1 ? warp : 0);
    const bool alive = tile < tiles.count;
    const int b = alive ? tile / tiles.per_image : 0, first_pixel = alive ? (tile - b * tiles.per_image) * kTile : 0;
    float sum[Shape::Out::kTiles][4] = {};
    for (int tap_chunk = 0; tap_chunk < tap_chunks; ++tap_chunk) {
      const int first_tap = tap_chunk * kTapChunk, end_tap = std::min(first_tap + kTapChunk, taps_in_all);
      const int steps = ((end_tap - first_tap - part + sharing - 1) / sharing + In::kTaps - 1) / In::kTaps;
      find_taps<T>(a, b, first_pixel, first_tap + part, sharing, end_tap, steps * In::kTaps, alive, taps);
      __syncwarp();
      for (int in_chunk = 0; in_chunk < in_chunks; ++in_chunk) {
        if (chunked) {
          __syncthreads();
          stage_part_of_weight<T, N>(a, first_tap, in_chunk * N, first_out, fragments);
          __syncthreads();
        }
        const LaneReader<T, In, vectors> x(a.x, b, in_chunk * N, a.channels);
        int tap = part + In::tap(threadIdx.x % 4) * sharing;
        CornerIndices* lane_taps = taps + In::tap(threadIdx.x % 4) * kTapDistance;
        const uint2* tap_fragments = fragments + tap * Shape::kFragments;
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
          const bool exists = In::kTaps == 1 || first_tap + tap < end_tap;  // the last step may be half empty
          if constexpr (packed)
            add_packed_step<T, N, vectors, kTapsOfWarp>(a, b, tap, lane_taps, sum);
          else
            add_step<T, N>(x, lane_taps, tap_fragments, exists, sum);
          tap += In::kTaps * sharing, lane_taps += In::kTaps * kTapDistance;
          tap_fragments += In::kTaps * sharing * Shape::kFragments;
        }
      }
      __syncwarp();
    }
    if (sharing > 1) add_warps(sum, taps, kTapsBytes);
    if (alive && part == 0) store_tile<T, N, vectors>(a, b, first_pixel, first_out, sum);
  }
}

template <class T, int N, bool vectors, bool chunked>
__global__ void __launch_bounds__(kForwardWarps* kWarp, forward_blocks<T, N, vectors, chunked>())
    warp_forward(const WarpArguments a, const int sharing) {
  MOTIONRNN_EXT_SHARED(shared);
  run_forward<T, N, vectors, chunked, false>(a, sharing, shared);
}

// The kernel for images in whole vectors and a packed weight.
template <class T, int N>
__global__ void __launch_bounds__(kForwardWarps* kWarp, packed_forward_blocks<T, N>())
    packed_warp_forward(const WarpArguments a, const int sharing) {
  MOTIONRNN_EXT_SHARED(shared);
  run_forward<T, N, true, false, true>(a, sharing, shared);
}

// The most blocks of a launch, times N. More blocks hide more latency, but each stages the weight once.
constexpr int kForwardBlocks = 16384;
// Below this many tiles of 16 pixels, sharing a tile keeps more of the card busy. Sharing changes the order of
// summation, so the bound is a constant: the order is the same on every card.
constexpr int kSharedTiles = 1024;

template <class T, int N, bool vectors, bool chunked>
void launch_forward(const WarpArguments& a, Stream stream) {
  using Shape = ForwardShape<T, N>;
  const Tiles tiles(a, kTile);
  const int sharing = tiles.count < kSharedTiles ? kForwardWarps : 1, tiles_at_once = kForwardWarps / sharing;
  const int blocks = std::min((tiles.count + tiles_at_once - 1) / tiles_at_once, kForwardBlocks / N);
  // Without output channels, motion_warp still updates the motion.
  const dim3 grid(blocks, std::max((a.out_channels + Shape::kOut - 1) / Shape::kOut, 1));
  if constexpr (vectors && !chunked && N <= 32)
    if (a.packed != nullptr)
      return launch(packed_warp_forward<T, N>, grid, kForwardWarps * kWarp, kForwardWarps * kTapsBytes, stream, a,
                    sharing);
  launch(warp_forward<T, N, vectors, chunked>, grid, kForwardWarps * kWarp, Shape::kSharedBytes, stream, a, sharing);
}

template <class T, int N, bool chunked = false>
void launch_forward(const WarpArguments& a, Stream stream) {
  using Shape = ForwardShape<T, N>;
  if (takes_vectors<T>(a.x, a.channels, Shape::In::kVector) &&
      takes_vectors<T>(a.out, a.out_channels, Shape::Out::kVector))
    launch_forward<T, N, true, chunked>(a, stream);
  else
    launch_forward<T, N, false, chunked>(a, stream);
}

template <class T>
void launch_forward(const WarpArguments& a, Stream stream) {
  const int channels = std::max(a.channels, a.out_channels);
  if (a.k * a.k > kTapChunk || a.channels > 64) return launch_forward<T, 32, true>(a, stream);
  if (channels <= 8) return launch_forward<T, 8>(a, stream);
  if (channels <= 16) return launch_forward<T, 16>(a, stream);
  if (channels <= 32) return launch_forward<T, 32>(a, stream);
  return launch_forward<T, 64>(a, stream);
}

}  // namespace
}  // namespace motionrnn_ext::cuda
