// Special registers (PTX ISA, 10).
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace ptx {

struct Warp;

enum class SpecialRegister : uint8_t {
  tid_x,
  tid_y,
  tid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid,
  warpid,
  nwarpid,
  lanemask_eq,
  lanemask_le,
  lanemask_lt,
  lanemask_ge,
  lanemask_gt,
  smid,
  clock,
  clock64,
  globaltimer
};

std::optional<SpecialRegister> special_register_named(std::string_view name);
int bytes_of(SpecialRegister which);
uint64_t value_of(SpecialRegister which, const Warp& warp, int lane);

}  // namespace ptx
