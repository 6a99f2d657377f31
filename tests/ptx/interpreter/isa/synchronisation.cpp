// PTX ISA, 9.7.13: barriers and fences.
#include "core/report.h"
#include "isa/convergence.h"
#include "isa/lanes.h"

namespace ptx {

void check_converged(const Warp& warp, const Instruction& in, Mask members) {
  if ((warp.active & members) == members) return;
  report(warp, in, "divergence",
         "active lanes " + hexadecimal(warp.active) + ", wanted " + hexadecimal(members) + ", alive " +
             hexadecimal(warp.alive));
}

Mask members_of(Warp& warp, const Instruction& in, const Operand& operand) {
  const uint32_t* masks = warp.lanes<uint32_t>(operand);
  const Mask members = masks[std::countr_zero(warp.active)];
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.has(lane)) continue;
    if (!(masks[lane] >> lane & 1)) report(warp, in, "member mask", "the calling lane is not in its member mask");
    if (masks[lane] != members) {
      // Groups of lanes with masks of their own may execute together; each has to be complete.
      check_converged(warp, in, masks[lane] & warp.alive);
    }
  }
  return members;
}

namespace {

// Lanes that have exited are not waited for, and lanes beyond the block's threads do not exist.
void synchronise_warp(Warp& warp, const Instruction& in) {
  const Mask members = members_of(warp, in, in.s[0]);
  check_converged(warp, in, members & warp.exists & warp.alive);
  if ((members & warp.alive) == warp.alive) ++warp.epoch;
}

Execute synchronise_block(const Form&, Instruction& in) {
  in.flow = Flow::barrier;
  return [](Warp&, const Instruction&) {};
}

void fence_proxy(Warp& warp, const Instruction&) { warp.proxy_fences = ++warp.block->proxy_clock; }

// Memory is consistent as it is: a fence adds no order between threads.
Execute nothing(const Form&, Instruction&) {
  return [](Warp&, const Instruction&) {};
}

constexpr Opcode kOpcodes[] = {
    {"bar", "warp sync", "s4", Class::warpsync, [](const Form&, Instruction&) -> Execute { return synchronise_warp; }},
    {"bar", "cta? sync", "s4", Class::bar, synchronise_block},
    {"barrier", "cta? sync aligned?", "s4", Class::bar, synchronise_block},
    {"membar", "cta|gl|sys", "", Class::other, nothing},
    {"fence", "sc|acq_rel|acquire|release? <scope>", "", Class::other, nothing},
    {"fence", "proxy async shared::cta|global?", "", Class::other,
     [](const Form&, Instruction&) -> Execute { return fence_proxy; }},
    {"nanosleep", "u32", "s4", Class::other, nothing},
    {"griddepcontrol", "launch_dependents|wait", "", Class::other, nothing},
};

}  // namespace

std::span<const Opcode> synchronisation() { return kOpcodes; }

}  // namespace ptx
