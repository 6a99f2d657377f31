// One kernel for every pointwise map of math/: one launch, every input read once and every output written once.
#include <type_traits>
#include <utility>

#include "cuda/division.h"
#include "cuda/kernels.h"
#include "cuda/storage.h"
#include "math/coarse.h"

namespace motionrnn_ext::cuda {
namespace {

using math::Role;

template <Role role, class Feature, class State>
using Stored = std::conditional_t<role == Role::feature, Feature, State>;

// Threads of a block: so few that small maps still give every multiprocessor a block.
constexpr int kBlock = 128;

template <class T, class Data>
__device__ __forceinline__ T* stream(Data* first, int64_t at) {
  return static_cast<T*>(first) + at;
}

// A thread takes `width` elements of every stream: 16 bytes of the narrower dtype, or one element.
template <class MapOf, class Feature, class State, int width, size_t... i, size_t... o>
__device__ __forceinline__ void run(const PointwiseArguments& a, int64_t row, int64_t at, std::index_sequence<i...>,
                                    std::index_sequence<o...>) {
  constexpr int kIn = sizeof...(i), kOut = sizeof...(o);
  using Scalar = std::conditional_t<sizeof(Feature) == 2 && sizeof(State) == 2, math::Coarse, float>;
  const Scalar parameters[] = {static_cast<float>(a.parameters[0]), static_cast<float>(a.parameters[1])};
  float in[kIn][width], out[kOut][width];
  (load_floats(
       stream<const Stored<math::role_of_stream(MapOf::inputs, i), Feature, State>>(a.in[i], row * a.in_stride[i] + at),
       in[i]),
   ...);
#pragma unroll
  for (int e = 0; e < width; ++e) {
    const Scalar values[kIn] = {in[i][e]...};
    Scalar results[kOut];
    MapOf::template apply<Scalar>(values, results, parameters);
    ((out[o][e] = static_cast<float>(results[o])), ...);
  }
  (store_floats(
       stream<Stored<math::role_of_stream(MapOf::outputs, o), Feature, State>>(a.out[o], row * a.out_stride[o] + at),
       out[o]),
   ...);
}

// The least blocks per multiprocessor for __launch_bounds__, 0 for no demand. For the maps that read the most streams,
// the compiler would otherwise load everything before it computes, and take so many registers that fewer blocks fit.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ / 10 % 10 != 0 || __CUDA_ARCH__ >= 1100)
constexpr int kAllBlocks = 1536 / kBlock;  // of a multiprocessor
#else
constexpr int kAllBlocks = 2048 / kBlock;
#endif
template <class MapOf, int width>
constexpr int blocks_at_once() {
  constexpr bool motion = std::is_same_v<MapOf, math::MotionUpdateBackward>;
  constexpr bool memory = std::is_same_v<MapOf, math::MemoryUpdateBackward>;
  if (width == 4) return motion || memory ? kAllBlocks : 0;
  return motion && width == 8 ? 10 : 0;
}

// Vectors of 16 bytes are counted in 32 bits, which reach 64 GiB. A larger map goes element by element.
template <int width>
using IndexOf = std::conditional_t<width == 1, uint64_t, uint32_t>;

template <class MapOf, class Feature, class State, int width>
__global__ void __launch_bounds__(kBlock, blocks_at_once<MapOf, width>())
    pointwise_kernel(const PointwiseArguments a, const DivisionOf<IndexOf<width>> row_of) {
  const auto i = IndexOf<width>(blockIdx.x) * kBlock + threadIdx.x, row = row_of(i);
  if (row >= uint64_t(a.rows)) return;
  run<MapOf, Feature, State, width>(a, row, int64_t(i - row * row_of.divisor) * width,
                                    std::make_index_sequence<math::count_streams(MapOf::inputs)>(),
                                    std::make_index_sequence<math::count_streams(MapOf::outputs)>());
}

// Return whether every row of every stream starts at a multiple of 16 bytes and holds whole vectors.
template <class MapOf>
bool is_aligned(const PointwiseArguments& a, int width) {
  if (a.inner % width != 0) return false;
  const auto fits = [&](const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && (a.rows == 1 || stride % width == 0);
  };
  for (int i = 0; i < math::count_streams(MapOf::inputs); ++i)
    if (!fits(a.in[i], a.in_stride[i])) return false;
  for (int o = 0; o < math::count_streams(MapOf::outputs); ++o)
    if (!fits(a.out[o], a.out_stride[o])) return false;
  return true;
}

template <class MapOf, class Feature, class State, int width>
void launch_map(const PointwiseArguments& a, Stream stream) {
  const uint64_t in_row = a.inner / width, threads = a.rows * in_row, blocks = (threads + kBlock - 1) / kBlock;
  if (blocks > 0x7fffffffu) throw std::runtime_error("motionrnn_ext: a tensor is too large for one launch");
  launch(pointwise_kernel<MapOf, Feature, State, width>, dim3(static_cast<unsigned>(blocks)), kBlock, 0, stream, a,
         DivisionOf<IndexOf<width>>(in_row));
}

template <class MapOf, class Feature, class State>
void launch_map(const PointwiseArguments& a, Stream stream) {
  constexpr int kWidth = 16 / sizeof(Feature);  // the state is never narrower
  const bool fits = uint64_t(a.rows) * a.inner / kWidth < (uint64_t(1) << 32) - kBlock;
  if (fits && is_aligned<MapOf>(a, kWidth))
    launch_map<MapOf, Feature, State, kWidth>(a, stream);
  else
    launch_map<MapOf, Feature, State, 1>(a, stream);
}

// Motion state is always float, an LSTM's memory may be half. A map over features alone has no state of another dtype.
template <class MapOf>
constexpr bool has_state() {
  for (const math::Operand& operand : MapOf::inputs)
    if (operand.role == Role::state) return true;
  return false;
}
template <class MapOf>
constexpr bool kIsOfMotion =
    std::is_same_v<MapOf, math::MotionReset> || std::is_same_v<MapOf, math::MotionResetBackward> ||
    std::is_same_v<MapOf, math::MotionUpdate> || std::is_same_v<MapOf, math::MotionUpdateBackward>;

template <class MapOf>
void launch_map(Types types, const PointwiseArguments& a, Stream stream) {
  constexpr bool kHalves = !kIsOfMotion<MapOf>, kMixed = has_state<MapOf>();
  if (types == Types::f32) return launch_map<MapOf, float, float>(a, stream);
  if constexpr (kHalves) {
    if (types == Types::bf16) return launch_map<MapOf, __nv_bfloat16, __nv_bfloat16>(a, stream);
    if (types == Types::f16) return launch_map<MapOf, __half, __half>(a, stream);
  }
  if constexpr (kMixed) {
    if (types == Types::bf16_f32) return launch_map<MapOf, __nv_bfloat16, float>(a, stream);
    if (types == Types::f16_f32) return launch_map<MapOf, __half, float>(a, stream);
  }
  throw std::runtime_error("motionrnn_ext: no CUDA kernel for these dtypes");
}

}  // namespace

void pointwise(Map map, Types types, const PointwiseArguments& a, void* stream) {
  switch (map) {
#define MOTIONRNN_EXT_CASE(name) \
  case Map::name: return launch_map<math::name>(types, a, static_cast<Stream>(stream));
    MOTIONRNN_EXT_POINTWISE_MAPS(MOTIONRNN_EXT_CASE)
#undef MOTIONRNN_EXT_CASE
  }
}

}  // namespace motionrnn_ext::cuda
