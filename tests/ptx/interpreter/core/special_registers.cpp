#include "core/special_registers.h"

#include "core/warp.h"

namespace ptx {

namespace {

using enum SpecialRegister;

struct Named {
  std::string_view name;
  SpecialRegister which;
};
constexpr Named kNames[] = {
    {"%tid.x", tid_x},
    {"%tid.y", tid_y},
    {"%tid.z", tid_z},
    {"%ntid.x", ntid_x},
    {"%ntid.y", ntid_y},
    {"%ntid.z", ntid_z},
    {"%ctaid.x", ctaid_x},
    {"%ctaid.y", ctaid_y},
    {"%ctaid.z", ctaid_z},
    {"%nctaid.x", nctaid_x},
    {"%nctaid.y", nctaid_y},
    {"%nctaid.z", nctaid_z},
    {"%laneid", laneid},
    {"%warpid", warpid},
    {"%nwarpid", nwarpid},
    {"%lanemask_eq", lanemask_eq},
    {"%lanemask_le", lanemask_le},
    {"%lanemask_lt", lanemask_lt},
    {"%lanemask_ge", lanemask_ge},
    {"%lanemask_gt", lanemask_gt},
    {"%smid", smid},
    {"%clock", clock},
    {"%clock64", clock64},
    {"%globaltimer", globaltimer},
};

}  // namespace

std::optional<SpecialRegister> special_register_named(std::string_view name) {
  for (const Named& named : kNames)
    if (named.name == name) return named.which;
  return std::nullopt;
}

int bytes_of(SpecialRegister which) { return which == clock64 || which == globaltimer ? 8 : 4; }

uint64_t value_of(SpecialRegister which, const Warp& warp, int lane) {
  const Block& block = *warp.block;
  const uint32_t thread = uint32_t(warp.number) * kLanes + lane;
  const uint32_t below = (1u << lane) - 1, from = ~below;
  switch (which) {
    case tid_x: return thread % block.size[0];
    case tid_y: return thread / block.size[0] % block.size[1];
    case tid_z: return thread / block.size[0] / block.size[1];
    case ntid_x: return block.size[0];
    case ntid_y: return block.size[1];
    case ntid_z: return block.size[2];
    case ctaid_x: return block.index[0];
    case ctaid_y: return block.index[1];
    case ctaid_z: return block.index[2];
    case nctaid_x: return block.grid[0];
    case nctaid_y: return block.grid[1];
    case nctaid_z: return block.grid[2];
    case laneid: return lane;
    case warpid: return warp.number;
    case nwarpid: return block.warps.size();
    case lanemask_eq: return 1u << lane;
    case lanemask_le: return below | 1u << lane;
    case lanemask_lt: return below;
    case lanemask_ge: return from;
    case lanemask_gt: return from & ~(1u << lane);
    // Time does not pass, and there is one multiprocessor.
    case smid:
    case clock:
    case clock64:
    case globaltimer: return 0;
  }
  return 0;
}

}  // namespace ptx
