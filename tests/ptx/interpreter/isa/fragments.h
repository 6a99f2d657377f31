// Where the elements of a matrix lie among the registers of a warp.
#pragma once
#include <array>
#include <cstdint>

#include "core/types.h"

namespace ptx {

struct Place {
  uint8_t row, column;
};

// Place of each element that a lane holds, in the order of its registers, lower halves first.
template <int elements>
using Fragment = std::array<std::array<Place, elements>, kLanes>;

// From the place of element i in lane 4 `group` + `member`.
template <int elements, class PlaceOf>
constexpr Fragment<elements> fragment(PlaceOf place_of) {
  Fragment<elements> made{};
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < elements; ++i) {
      const auto [row, column] = place_of(lane / 4, lane % 4, i);
      made[lane][i] = {uint8_t(row), uint8_t(column)};
    }
  return made;
}

struct RowColumn {
  int row, column;
};

// PTX ISA, 9.7.14.5.8: mma.m16n8k16 with .f16 and .bf16; m16n8k8 is its first half.
constexpr auto kA16 = fragment<8>(
    [](int group, int member, int i) { return RowColumn{group + 8 * (i / 2 % 2), 2 * member + i % 2 + 8 * (i / 4)}; });
constexpr auto kB16 =
    fragment<4>([](int group, int member, int i) { return RowColumn{2 * member + i % 2 + 8 * (i / 2), group}; });
// 9.7.14.5.6: mma.m16n8k8 with .tf32; m16n8k4 is its first half.
constexpr auto kATF32 =
    fragment<4>([](int group, int member, int i) { return RowColumn{group + 8 * (i % 2), member + 4 * (i / 2)}; });
constexpr auto kBTF32 = fragment<2>([](int group, int member, int i) { return RowColumn{member + 4 * i, group}; });
// The accumulators of all of them, and of wgmma for every 8 columns (9.7.15.5.1).
constexpr auto kC =
    fragment<4>([](int group, int member, int i) { return RowColumn{group + 8 * (i / 2), 2 * member + i % 2}; });
// A matrix of 8 x 8 halves: ldmatrix, stmatrix and movmatrix (9.7.14.5.15).
constexpr auto kMatrix = fragment<2>([](int group, int member, int i) { return RowColumn{group, 2 * member + i}; });

}  // namespace ptx
