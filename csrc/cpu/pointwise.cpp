// One loop for every pointwise map of math/. Compiled once per instruction set.
#include <tuple>
#include <type_traits>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/storage.h"

namespace motionrnn_ext::cpu {
namespace {

using math::Role;

template <Role role, class Feature, class State>
using Stored = std::conditional_t<role == Role::feature, Feature, State>;

// Run the map over n elements of every stream; all pointers are at their first element.
template <class Map, class Feature, class State, size_t... i, size_t... o>
MOTIONRNN_EXT_INLINE void run_block(const void* const* in, void* const* out, int64_t n, const double* parameters,
                                    std::index_sequence<i...>, std::index_sequence<o...>) {
  using T = typename arithmetic<Feature>::type;
  const auto sources =
      std::make_tuple(static_cast<const Stored<math::role_of_stream(Map::inputs, i), Feature, State>*>(in[i])...);
  const auto targets =
      std::make_tuple(static_cast<Stored<math::role_of_stream(Map::outputs, o), Feature, State>*>(out[o])...);
  const T p[math::kParameters] = {static_cast<T>(parameters[0]), static_cast<T>(parameters[1])};
  MOTIONRNN_EXT_INDEPENDENT
  for (int64_t at = 0; at < n; ++at) {
    const T values[] = {static_cast<T>(load(std::get<i>(sources)[at]))...};
    T results[sizeof...(o)];
    Map::apply(values, results, p);
    (store(std::get<o>(targets) + at, results[o]), ...);
  }
}

template <class Map, class Feature, class State>
void run(const PointwiseArguments& a, int64_t begin, int64_t end) {
  constexpr int kIn = math::count_streams(Map::inputs), kOut = math::count_streams(Map::outputs);
  static_assert(kIn <= math::kMaxStreams && kOut <= math::kMaxStreams);
  const auto bytes = [](Role role) { return role == Role::feature ? sizeof(Feature) : sizeof(State); };
  for (int64_t b = begin / a.inner; begin < end; ++b) {
    const int64_t first = begin - b * a.inner;
    const int64_t n = (end - begin < a.inner - first) ? end - begin : a.inner - first;
    const void* in[kIn];
    void* out[kOut];
    for (int i = 0; i < kIn; ++i)
      in[i] = static_cast<const char*>(a.in[i]) +
              (b * a.in_stride[i] + first) * static_cast<int64_t>(bytes(math::role_of_stream(Map::inputs, i)));
    for (int o = 0; o < kOut; ++o)
      out[o] = static_cast<char*>(a.out[o]) +
               (b * a.out_stride[o] + first) * static_cast<int64_t>(bytes(math::role_of_stream(Map::outputs, o)));
    run_block<Map, Feature, State>(in, out, n, a.parameters, std::make_index_sequence<kIn>(),
                                   std::make_index_sequence<kOut>());
    begin += n;
  }
}

template <class Map>
PointwiseKernel kernel_for(Types types) {
  switch (types) {
    case Types::f64: return run<Map, double, double>;
    case Types::f32: return run<Map, float, float>;
    case Types::bf16: return run<Map, bfloat16, bfloat16>;
    case Types::f16: return run<Map, float16, float16>;
    case Types::bf16_f32: return run<Map, bfloat16, float>;
    case Types::f16_f32: return run<Map, float16, float>;
  }
  return nullptr;
}

}  // namespace

PointwiseKernel MOTIONRNN_EXT_ISA::pointwise_kernel(Map map, Types types) {
  switch (map) {
#define MOTIONRNN_EXT_CASE(name) \
  case Map::name: return kernel_for<math::name>(types);
    MOTIONRNN_EXT_POINTWISE_MAPS(MOTIONRNN_EXT_CASE)
#undef MOTIONRNN_EXT_CASE
  }
  return nullptr;
}

}  // namespace motionrnn_ext::cpu
