#include "core/warp_execution.h"

#include <bit>
#include <string>

#include "core/options.h"
#include "core/report.h"

namespace ptx {

namespace {

void branch(Warp& warp, const Instruction& in, Mask taken) {
  Path& path = warp.paths.back();
  const Mask others = path.lanes & ~taken;
  if (!others) {
    path.pc = in.target;
    return;
  }
  if (!taken) {
    ++path.pc;
    return;
  }
  const int join = warp.block->kernel->join[in.index];  // -1: the paths meet at the exit only
  const Path whole = path;
  const int next = whole.pc + 1;
  warp.paths.pop_back();
  if (join >= 0 && join != whole.join)
    warp.paths.push_back({join, whole.join, whole.lanes});  // goes on when both are there
  warp.paths.push_back({next, join, others});
  warp.paths.push_back({in.target, join, taken});
}

void exit_lanes(Warp& warp, Mask leaving) {
  ++warp.paths.back().pc;
  warp.alive &= ~leaving;
  for (Path& path : warp.paths) path.lanes &= ~leaving;
}

void arrive_at_barrier(Warp& warp, const Instruction& in, Mask arriving) {
  if (arriving != warp.exists)
    report(warp, in, "divergence",
           "active lanes " + hexadecimal(arriving) + " of " + hexadecimal(warp.exists) + " at a barrier");
  warp.barrier = in.s.empty() ? 0 : int(warp.lanes<uint32_t>(in.s[0])[0]);
  ++warp.paths.back().pc;
}

}  // namespace

Stop run_warp(Warp& warp) {
  Kernel& kernel = *warp.block->kernel;
  const Instruction* const code = kernel.code.data();
  Count* const counts = kernel.counts.data();
  while (!warp.paths.empty()) {
    Path& path = warp.paths.back();
    if (path.pc == path.join || !path.lanes) {
      warp.paths.pop_back();
      continue;
    }
    const Instruction& in = code[path.pc];
    Mask lanes = path.lanes;
    if (in.guarded) lanes &= warp.predicate(in.guard);
    ++counts[path.pc].issued;
    counts[path.pc].lanes += uint64_t(std::popcount(lanes));
    if (++warp.executed == options.max_warp_insts) {
      report(warp, in, "does not end", std::to_string(options.max_warp_insts) + " instructions of a warp");
      warp.paths.clear();
      warp.alive = 0;
      break;
    }
    warp.active = lanes;
    switch (in.flow) {
      case Flow::next:
        ++path.pc;
        if (lanes) in.execute(warp, in);
        break;
      case Flow::branch: branch(warp, in, lanes); break;
      case Flow::exit: exit_lanes(warp, lanes); break;
      case Flow::barrier:
        // A barrier waits for all threads of the block, also where a guard is false (PTX ISA, 9.7.13.1).
        arrive_at_barrier(warp, in, lanes);
        return Stop::at_barrier;
    }
  }
  return Stop::done;
}

}  // namespace ptx
