// offset_warp backward in three launches at most. Forward kept nothing, so backward samples again.
//
//   prepare   zeroes the sums of grad_x (deterministic: and finds a bound of what is added to them)
//   main      has a warp of a block per step of taps, all at the same pixels, 32 at a time. The block's threads share
//             out the taps when they are found and their gradients stored. In between, tensor cores compute
//             grad_column = W^T grad_out, in the lanes that gather its channels. Its products with the four corners,
//             summed over the channels inside the warp, give the gradients of offset and mask. The gradient of x is
//             added to the corners, four channels at a time. grad_weight = grad_out column^T, again on tensor cores,
//             stays in registers
//   finish    sums grad_weight over the blocks, in a fixed order; converts grad_x
#pragma once

#include "cuda/offset_warp/finish.cuh"
#include "cuda/offset_warp/sums.cuh"

namespace motionrnn_ext::cuda {
namespace {

// The most warps of a block: the steps of k = 3, or of a row of its taps. Of the smaller blocks more warps fit into a
// multiprocessor's registers, and small maps make more blocks.
template <int N>
constexpr int kBackwardWarps = N == 8 ? 5 : 3;
// The most blocks, a constant: the order of summation is the same on every card.
constexpr int kBackwardBlocks = 256;
// Pixels that a warp takes at a time: two tiles of mma.
constexpr int kPixels = 32;

struct alignas(16) BackwardTap {
  CornerIndices corner;
  float row_fraction, col_fraction, mask;
  int32_t fixed;                 // bit 0: the row's offset is at motion_update's bound; bit 1: the column's
  math::Corners<float> product;  // <grad_column, corner>
};

// A tap of a block in shared memory. Neighbouring taps start in different banks.
struct BackwardTaps {
  BackwardTap at[kPixels];
  float4 gap;
};

// The shared memory of a warp's taps.
template <class T, int N>
constexpr size_t kTapBytes = BackwardShape<T, N>::In::kTaps * sizeof(BackwardTaps);

template <class T, int N, bool chunked>
size_t backward_shared_bytes(int warps) {
  return warps * (kTapBytes<T, N> + (chunked ? 0 : BackwardShape<T, N>::kFragments * sizeof(uint2)));
}

// The role of a block in a chunked launch: role 0 does all but grad_weight, each other role one chunk of it. Without
// chunks, role 0 does everything.
struct Role {
  bool gathers, sums_weight;
  int in_chunk, out_chunk, in_end, out_chunks;

  template <int N, int kOut, bool chunked>
  __device__ static Role of(const WarpArguments& a) {
    const bool gathers = a.grad_x.data || a.grad_offset.data || a.grad_mask_logits.data, weight = a.grad_weight;
    if constexpr (!chunked) return {gathers, weight, 0, 0, 1, 1};
    const int in_chunks = (a.channels + N - 1) / N, out_chunks = (a.out_channels + kOut - 1) / kOut;
    if (blockIdx.z == 0) return {gathers, false, 0, 0, in_chunks, out_chunks};
    const int pair = blockIdx.z - 1, in_chunk = pair / out_chunks;
    return {false, weight, in_chunk, pair - in_chunk * out_chunks, in_chunk + 1, out_chunks};
  }
};

// W as mma's second operand for grad_column: rows are output channels, columns the slots of the step.
template <class T, int N>
__device__ __forceinline__ uint2 weight_fragment(const WarpArguments& a, int first_tap, int first_in, int first_out,
                                                 int product, int tile, int lane) {
  using Shape = BackwardShape<T, N>;
  static_assert(Shape::Out::kVector % Shape::kSlotsOfMma == 0);  // the slots of a product are neighbouring channels
  const int g = lane / 4, t = lane % 4, taps = a.k * a.k, row = a.channels * taps;
  const int tap = first_tap + Shape::In::tap(g >> 1), c = first_in + Shape::In::channel(g >> 1, 2 * tile + (g & 1));
  const int o = first_out + Shape::Out::channel(t, product * Shape::kSlotsOfMma);
  const int slots = c < a.channels && tap < taps ? a.out_channels - o : 0;
  const T* from = static_cast<const T*>(a.weight) + (int64_t(o) * a.channels + c) * taps + tap;
  T slot[Shape::kSlotsOfMma];
#pragma unroll
  for (int s = 0; s < Shape::kSlotsOfMma; ++s)
    slot[s] = s < slots ? __ldg(from + int64_t(s) * row) : from_float<T>(0.0f);
  uint2 fragment;
  memcpy(&fragment, slot, sizeof fragment);
  return fragment;
}

// The taps of a thread, of those of a block at 32 pixels: as many as a step has. Neighbouring threads have neighbours
// in memory: taps of a pixel where the channels of motion maps come last, else pixels of a tap.
template <int kTaps>
struct ThreadTaps {
  const bool last;
  int first_tap, first_pixel;

  __device__ __forceinline__ explicit ThreadTaps(const Image& map) : last(map.channel == 1) {
    const unsigned size = last ? blockDim.x / kWarp * kTaps : kPixels;
    const int outer = threadIdx.x / size, inner = threadIdx.x - outer * size;
    first_tap = last ? inner : outer, first_pixel = last ? outer : inner;
  }
  __device__ __forceinline__ int tap(int i) const { return last ? first_tap : first_tap + i * int(blockDim.x / kWarp); }
  __device__ __forceinline__ int pixel(int i) const { return last ? first_pixel + i * (kPixels / kTaps) : first_pixel; }
};

// Find the block's taps at 32 pixels.
template <class T, int kTaps>
__device__ __forceinline__ void find_backward_taps(const WarpArguments& a, int b, int first_pixel, int first_tap,
                                                   const ThreadTaps<kTaps>& of_thread, BackwardTaps* found_taps) {
  const int all_taps = a.k * a.k;
  const Pixels<float> offset(a.offset, b);
  const Pixels<T> mask_logits(a.mask_logits, b);
#pragma unroll 1
  for (int i = 0; i < kTaps; ++i) {
    const int tap = first_tap + of_thread.tap(i), pixel = first_pixel + of_thread.pixel(i);
    BackwardTap found{{{-1, -1, -1, -1}}, 0.0f, 0.0f, 0.0f, 0, {}};
    if (pixel < a.height * a.width && tap < all_taps) {
      const int row = pixel / a.width, col = pixel - row * a.width, tap_row = tap / a.k;
      const float by_row = offset.read(tap, pixel), by_col = offset.read(all_taps + tap, pixel);
      const Place place =
          locate(a, tap_row, tap - tap_row * a.k, row, col, by_row, by_col, mask_logits.read(tap, pixel));
      found.fixed = math::is_at_limit(by_row, a.motion.max_offset) | math::is_at_limit(by_col, a.motion.max_offset)
                                                                         << 1;
      found.corner = corner_indices(a, place);
      found.row_fraction = place.row.fraction, found.col_fraction = place.col.fraction, found.mask = place.mask;
    }
    found_taps[of_thread.tap(i)].at[of_thread.pixel(i)] = found;
  }
}

// Backward of motion_update, from the warp's gradients of a tap's new offset, row and column. An offset fixed at its
// bound hands no gradient on. All loads come before the first store, so that one wait serves both axes.
template <class T>
__device__ __forceinline__ void store_update(const WarpArguments& a, int b, int tap, int pixel, const float (&grad)[2],
                                             int32_t fixed) {
  const Motion& m = a.motion;
  const Pixels<float> by_offset(m.grad_offset, b), by_trend(m.grad_trend, b), previous(m.offset, b);
  const Pixels<T> update(m.update_logits, b), candidate(m.candidate_logits, b);
  float in[2][6];
#pragma unroll
  for (int axis = 0; axis < 2; ++axis) {
    const int channel = axis * a.k * a.k + tap;
    in[axis][0] = fixed & 1 << axis ? 0.0f : grad[axis] + by_offset.read(channel, pixel);
    in[axis][1] = by_trend.read(channel, pixel);
    in[axis][2] = update.read(channel, pixel), in[axis][3] = candidate.read(channel, pixel);
    in[axis][4] = previous.read(channel, pixel), in[axis][5] = 0.0f;
  }
#pragma unroll
  for (int axis = 0; axis < 2; ++axis) {
    const int channel = axis * a.k * a.k + tap;
    float out[4];
    math::MotionUpdateBackward::apply<float>(in[axis], out, {m.alpha, INFINITY});
    Pixels<T>(m.grad_update_logits, b)(channel, pixel) = from_float<T>(out[0]);
    Pixels<T>(m.grad_candidate_logits, b)(channel, pixel) = from_float<T>(out[1]);
    Pixels<float>(a.grad_offset, b)(channel, pixel) = out[2];
    Pixels<float>(m.grad_previous_trend, b)(channel, pixel) = out[3];
  }
}

// Make the gradients of offset and mask from the products of the block's taps; with motion, its backward follows.
template <class T, int kTaps>
__device__ __forceinline__ void store_motion(const WarpArguments& a, int b, int first_pixel, int first_tap,
                                             const ThreadTaps<kTaps>& of_thread, const BackwardTaps* found_taps) {
  const int all_taps = a.k * a.k;
#pragma unroll 1
  for (int i = 0; i < kTaps; ++i) {
    const int tap = first_tap + of_thread.tap(i), pixel = first_pixel + of_thread.pixel(i);
    if (pixel >= a.height * a.width || tap >= all_taps) continue;
    const BackwardTap& at = found_taps[of_thread.tap(i)].at[of_thread.pixel(i)];
    if (a.grad_mask_logits.data != nullptr) {
      const auto weights = math::bilinear_weights<float>(at.row_fraction, at.col_fraction);
      Pixels<T>(a.grad_mask_logits, b)(tap, pixel) =
          from_float<T>(math::d_sigmoid(at.mask) * math::bilinear_value(weights, at.product));
    }
    if (a.grad_offset.data == nullptr) continue;
    const float grad[2] = {at.mask * math::bilinear_row_derivative(at.col_fraction, at.product),
                           at.mask * math::bilinear_col_derivative(at.row_fraction, at.product)};
    if (a.motion.given()) {
      store_update<T>(a, b, tap, pixel, grad, at.fixed);
    } else {
      const Pixels<float> grad_offset(a.grad_offset, b);
      grad_offset(tap, pixel) = grad[0], grad_offset(all_taps + tap, pixel) = grad[1];
    }
  }
}

// Return `product` plus the lane's part of <grad_column, corner>, for one corner of a pixel's tap.
template <class T, int words>
__device__ __forceinline__ float multiply_corner(const uint32_t (&word)[words],
                                                 const float (&grad)[words * kPerWord<T>], float product) {
#pragma unroll
  for (int i = 0; i < words; ++i) {
    float value[kPerWord<T>];
    unpack<T>(word[i], value);
#pragma unroll
    for (int j = 0; j < kPerWord<T>; ++j) product = fmaf(grad[i * kPerWord<T> + j], value[j], product);
  }
  return product;
}

// grad_weight += column^T grad_out over 16 pixels.
template <class T, int N>
__device__ __forceinline__ void add_weight(const uint32_t (&column)[2][BackwardShape<T, N>::In::kWords],
                                           const uint32_t (&grad)[2][BackwardShape<T, N>::Out::kWords],
                                           WeightSums<T, N>& sum) {
  using Shape = BackwardShape<T, N>;
  constexpr int kPairWords = 2 / kPerWord<T>;
#pragma unroll
  for (int out = 0; out < Shape::kOutPairs; ++out) {
    const Transposed<T> g(grad[0] + out * kPairWords, grad[1] + out * kPairWords);
#pragma unroll
    for (int row = 0; row < Shape::kRows; ++row) {
      const Transposed<T> upper(column[0] + 2 * row * kPairWords, column[1] + 2 * row * kPairWords);
      const Transposed<T> lower(column[0] + (2 * row + 1) * kPairWords, column[1] + (2 * row + 1) * kPairWords);
      add_products<T>(sum[row][out], [&](float (&chain)[4]) {
#pragma unroll
        for (int i = 0; i < Transposed<T>::kMmas; ++i)
          multiply<T>(chain, upper.word[i], lower.word[i], make_uint2(g.word[i][0], g.word[i][1]));
      });
    }
  }
}

// Stage the weight of the block's steps: a copy where it was packed. Else neighbouring threads load neighbouring taps.
template <class T, int N>
__device__ __forceinline__ void stage_backward_weight(const WarpArguments& a, int first_tap, uint2* weight) {
  using Shape = BackwardShape<T, N>;
  const unsigned steps = blockDim.x / kWarp, lane = threadIdx.x / steps, step = threadIdx.x - lane * steps;
  if (a.packed != nullptr) {
    const auto* from = static_cast<const uint2*>(a.packed) + first_tap / Shape::In::kTaps * Shape::kFragments;
#pragma unroll 1
    for (unsigned i = 2 * threadIdx.x; i < steps * Shape::kFragments; i += 2 * blockDim.x)
      *reinterpret_cast<uint4*>(weight + i) = __ldg(reinterpret_cast<const uint4*>(from + i));
    return;
  }
#pragma unroll 2
  for (int i = 0; i < Shape::kMmas * Shape::kTiles; ++i)
    weight[step * Shape::kFragments + i * kWarp + lane] =
        weight_fragment<T, N>(a, first_tap + step * Shape::In::kTaps, 0, 0, i / Shape::kTiles, i % Shape::kTiles, lane);
}

// A warp, its step of taps, and the state it keeps from tile to tile.
template <class T, int N, bool vectors, bool chunked, bool deterministic>
struct BackwardWarp {
  using Shape = BackwardShape<T, N>;
  using In = typename Shape::In;
  using Out = typename Shape::Out;

  const WarpArguments& a;
  const Role role;
  const int first_tap;
  const float unit;     // see LaneSums
  BackwardTaps* taps;   // in shared memory: the taps of the warp's step
  const uint2* weight;  // in shared memory: the step's, as fragments
  WeightSums<T, N> grad_weight = {};
  // Whether the loads for both pixels of a lane come before the first sum, so that one wait serves both.
  static constexpr bool kBothAtOnce = N * sizeof(T) <= 32;

  // grad_column = W^T grad for 16 pixels. Afterwards grad holds the gradient of the role's output chunk.
  __device__ __forceinline__ void multiply_grad(int b, int first_pixel, int first_in, uint32_t (&grad)[2][Out::kWords],
                                                float (&grad_column)[Shape::kTiles][4]) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll 1
    for (int i = 0; i < role.out_chunks; ++i) {
      const int first_out = chunked ? (role.sums_weight ? role.out_chunk : i) * Shape::kOut : 0;
      const LaneReader<T, Out, vectors> reader(a.grad_out, b, first_out, a.out_channels);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int pixel = first_pixel + lane / 4 + 8 * h;
        reader(pixel, pixel < a.height * a.width, grad[h]);
      }
      if (!role.gathers) break;
#pragma unroll
      for (int p = 0; p < Shape::kMmas; ++p)
#pragma unroll
        for (int tile = 0; tile < Shape::kTiles; ++tile)
          multiply<T>(grad_column[tile], grad[0] + 2 * p, grad[1] + 2 * p,
                      chunked ? weight_fragment<T, N>(a, first_tap, first_in, first_out, p, tile, lane)
                              : weight[(p * Shape::kTiles + tile) * kWarp + lane]);
    }
  }

  // The corners of a pixel's tap, as a lane reads them.
  struct LaneCorners {
    CornerIndices index;
    uint32_t word[4][In::kWords];

    __device__ __forceinline__ void load(const BackwardTap& tap, const LaneReader<T, In, vectors>& x) {
      index = tap.corner;
#pragma unroll
      for (int q = 0; q < 4; ++q) x(index.at[q], index.at[q] >= 0, word[q]);
    }
  };

  // Process one pixel's tap: make the column, add to the products with the corners and to grad_x.
  __device__ __forceinline__ void add_pixel(const BackwardTap& tap, const LaneCorners& corner,
                                            const LaneSums<In, deterministic>& sums, const float (&grad)[In::kSlots],
                                            uint32_t (&column)[In::kWords], float (&product)[4]) const {
    // Where two pixels' corners are loaded at once, reading the indices again takes fewer registers.
    const CornerIndices index = kBothAtOnce ? tap.corner : corner.index;
    const auto w = math::bilinear_weights<float>(tap.row_fraction, tap.col_fraction);
    const float weight[4] = {tap.mask * w.v00, tap.mask * w.v01, tap.mask * w.v10, tap.mask * w.v11};
    if (role.sums_weight) interpolate<T>(corner.word, weight, column);
    if (!role.gathers) return;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      product[q] = multiply_corner<T>(corner.word[q], grad, product[q]);
      sums.add(index.at[q], weight[q], grad);
    }
  }

  // Process 16 pixels, from number `first` on of the 32 whose taps were found.
  __device__ __forceinline__ void add_tile(int b, int first_pixel, int first) {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
    BackwardTap* lane_taps = taps[In::tap(t)].at + first + g;
    float product[2][4] = {};
#pragma unroll 1
    for (int in_chunk = role.in_chunk; in_chunk < role.in_end; ++in_chunk) {
      const int first_in = chunked ? in_chunk * N : 0;
      uint32_t grad[2][Out::kWords], column[2][In::kWords];
      float grad_column[Shape::kTiles][4] = {};
      multiply_grad(b, first_pixel + first, first_in, grad, grad_column);
      const LaneReader<T, In, vectors> x(a.x, b, first_in, a.channels);
      const LaneSums<In, deterministic> sums(a, b, first_in, unit);
      LaneCorners corners[2];
      if (kBothAtOnce) corners[0].load(lane_taps[0], x), corners[1].load(lane_taps[8], x);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (!kBothAtOnce) corners[h].load(lane_taps[8 * h], x);
        float slot[In::kSlots];
#pragma unroll
        for (int s = 0; s < In::kSlots; ++s) slot[s] = grad_column[s / 2][2 * h + s % 2];
        add_pixel(lane_taps[8 * h], corners[h], sums, slot, column[h], product[h]);
      }
      if (role.sums_weight) add_weight<T, N>(column, grad, grad_weight);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const DealtSums<In::kLanes> sum(product[h]);
      float* to = &lane_taps[8 * h].product.v00 + sum.first();
#pragma unroll
      for (int i = 0; i < sum.kKept; ++i) to[i] = sum.kept[i];
    }
  }
};

// Blocks per multiprocessor for __launch_bounds__: as many as fit without a spill on the fast path; slow forms may
// spill a few registers. Where fewer are demanded on newer architectures, these keep more in registers.
#if defined(__CUDA_ARCH__)
constexpr int kArchitecture = __CUDA_ARCH__;
#else
constexpr int kArchitecture = 0;
#endif
template <class T, int N, bool vectors, bool chunked, bool deterministic>
constexpr int backward_blocks() {
  constexpr bool kHalves = sizeof(T) == 2;
  if (N == 8) return kArchitecture >= 1000 || (kHalves && (vectors || !deterministic)) ? 4 : 1;
  if (N == 32) return kHalves && vectors && !chunked ? 5 : 4;
  if (vectors && !deterministic) return kHalves ? (kArchitecture >= 1000 ? 6 : 8) : 0;
  return !vectors && (deterministic || kArchitecture >= 1000) ? 5 : 6;
}

template <class T, int N, bool vectors, bool chunked, bool deterministic>
__global__ void __launch_bounds__(kBackwardWarps<N>* kWarp, backward_blocks<T, N, vectors, chunked, deterministic>())
    warp_backward(const WarpArguments a) {
  using Shape = BackwardShape<T, N>;
  MOTIONRNN_EXT_SHARED(shared);
  const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp;
  const int first_tap = blockIdx.y * kBackwardWarps<N> * Shape::In::kTaps,
            own_tap = first_tap + warp * Shape::In::kTaps;
  auto* found_taps = reinterpret_cast<BackwardTaps*>(shared);
  auto* weight = reinterpret_cast<uint2*>(shared + warps * kTapBytes<T, N>);
  BackwardWarp<T, N, vectors, chunked, deterministic> self{a,
                                                           Role::of<N, Shape::kOut, chunked>(a),
                                                           own_tap,
                                                           deterministic ? unit_of(unit_exponent(a)) : 0.0f,
                                                           found_taps + warp * Shape::In::kTaps,
                                                           weight + warp * Shape::kFragments};
  if constexpr (!chunked) stage_backward_weight<T, N>(a, first_tap, weight);
  const ThreadTaps<Shape::In::kTaps> of_thread(a.offset);
  const Tiles tiles(a, kPixels);
  for (int tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    const int b = tile / tiles.per_image, first_pixel = (tile - b * tiles.per_image) * kPixels;
    find_backward_taps<T>(a, b, first_pixel, first_tap, of_thread, found_taps);
    __syncthreads();
#pragma unroll 1
    for (int first = 0; first < kPixels; first += 16) self.add_tile(b, first_pixel, first);
    // After this, a thread reads and then writes no taps but those that it finds.
    __syncthreads();
    if (self.role.gathers) store_motion<T>(a, b, first_pixel, first_tap, of_thread, found_taps);
  }
  if (self.role.sums_weight && own_tap < a.k * a.k)
    store_weight<T, N, chunked>(a, self.grad_weight, own_tap / Shape::In::kTaps);
}

// ---- Launches

// Return whether the sums can be made in grad_x itself.
template <class T>
bool sums_in_place(const WarpArguments& a) {
  return sizeof(T) == 4 && !a.deterministic && takes_vectors<T>(a.grad_x, a.channels, 4) &&
         a.grad_x.pixel == a.channels && (a.batch == 1 || a.grad_x.batch == int64_t(a.height) * a.width * a.channels);
}

template <class T, int N, bool chunked>
struct BackwardPlan {
  using Shape = BackwardShape<T, N>;
  int blocks, steps, in_chunks, out_chunks, elements;

  explicit BackwardPlan(const WarpArguments& a)
      : steps((a.k * a.k + Shape::In::kTaps - 1) / Shape::In::kTaps),
        in_chunks(chunked ? (a.channels + N - 1) / N : 1),
        out_chunks(chunked ? (a.out_channels + Shape::kOut - 1) / Shape::kOut : 1) {
    const int64_t all = int64_t(in_chunks) * out_chunks * steps * Shape::kPartial;
    elements = static_cast<int>(all);
    if (a.grad_weight != nullptr && elements != all)
      throw std::runtime_error("motionrnn_ext: too many channels for the gradient of the weight");
    // Fewer blocks where their parts of grad_weight would take more than 256 MiB.
    const int parts = std::max((1 << 26) / std::max(elements, 1), 16);
    blocks = std::min({Tiles(a, kPixels).count, kBackwardBlocks, parts});
  }
};

template <class T, int N, bool chunked>
struct Backward {
  using Plan = BackwardPlan<T, N, chunked>;

  static WarpWorkspace workspace(const WarpArguments& a) {
    WarpWorkspace bytes{};
    if (wants_x(a) && !sums_in_place<T>(a)) bytes.sums = sums_count(a) * (a.deterministic ? 8 : 4);
    if (wants_x(a) && a.deterministic) bytes.maxima = 2 * kPrepareBlocks * sizeof(uint32_t);
    const Plan plan(a);
    if (a.grad_weight != nullptr) bytes.partials = size_t(plan.blocks) * plan.elements * sizeof(float);
    return bytes;
  }

  static bool wants_x(const WarpArguments& a) { return a.grad_x.data != nullptr && a.channels > 0; }

  static void run(const WarpArguments& a, Stream stream) {
    const Plan plan(a);
    launch_main(a, plan, stream);
    launch_finish(a, plan, stream);
  }

  static void launch_main(const WarpArguments& a, const Plan& plan, Stream stream) {
    if (wants_x(a) && a.deterministic)
      launch(prepare_backward<T>, dim3(kPrepareBlocks), kPrepareThreads, kPrepareThreads * sizeof(uint32_t), stream, a,
             PreparePlan(a));
    else if (wants_x(a))
      fill_zero(a.sums, sums_count(a) * sizeof(float), stream);

    const int warps = std::min(plan.steps, kBackwardWarps<N>);
    const int roles = chunked && a.grad_weight != nullptr ? 1 + plan.in_chunks * plan.out_chunks : 1;
    if (roles > 65535) throw std::runtime_error("motionrnn_ext: too many channels for the gradient of the weight");
    const dim3 grid(plan.blocks, (plan.steps + kBackwardWarps<N> - 1) / kBackwardWarps<N>, roles);
    const bool vectors = takes_vectors<T>(a.x, a.channels, Plan::Shape::In::kVector) &&
                         takes_vectors<T>(a.grad_out, a.out_channels, Plan::Shape::Out::kVector);
    const auto kernel =
        wants_x(a) && a.deterministic
            ? (vectors ? warp_backward<T, N, true, chunked, true> : warp_backward<T, N, false, chunked, true>)
            : (vectors ? warp_backward<T, N, true, chunked, false> : warp_backward<T, N, false, chunked, false>);
    launch(kernel, grid, warps * kWarp, backward_shared_bytes<T, N, chunked>(warps), stream, a);
  }

  static void launch_finish(const WarpArguments& a, const Plan& plan, Stream stream) {
    const int64_t pixels = int64_t(a.height) * a.width, groups = sums_channels(a) / 4;
    const bool rows = a.grad_x.channel == 1;
    const int64_t vectors = wants_x(a) && !sums_in_place<T>(a) ? a.batch * pixels * groups : 0;
    const int64_t weight_threads = a.grad_weight != nullptr ? int64_t(plan.elements) * kSumLanes : 0;
    const FinishPlan finish{static_cast<int>((weight_threads + kFinishThreads - 1) / kFinishThreads),
                            plan.blocks,
                            plan.elements,
                            plan.out_chunks,
                            rows,
                            takes_vectors<T>(a.grad_x, a.channels, 4),
                            vectors,
                            Division(std::max<int64_t>(pixels * groups, 1)),
                            Division(std::max<int64_t>(rows ? groups : pixels, 1))};
    const int blocks = finish.weight_blocks + static_cast<int>(std::min<int64_t>(
                                                  (vectors + kFinishThreads - 1) / kFinishThreads, kFinishBlocks));
    if (blocks > 0)
      launch(finish_backward<T, N>, dim3(blocks), kFinishThreads, kFinishThreads * sizeof(float), stream, a, finish);
  }
};

// Call `use` with the Backward for these channels.
template <class T, class Use>
auto choose_backward(const WarpArguments& a, Use&& use) {
  const int channels = std::max(a.channels, a.out_channels);
  if (channels <= 8) return use(Backward<T, 8, false>());
  if (channels <= 16) return use(Backward<T, 16, false>());
  if (channels <= 32) return use(Backward<T, 32, false>());
  return use(Backward<T, 32, true>());
}

}  // namespace
}  // namespace motionrnn_ext::cuda
