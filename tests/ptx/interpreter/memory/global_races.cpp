// Races in global memory: between the threads of a launch nothing but a barrier of one block orders accesses.
#include <string>

#include "core/report.h"
#include "memory/access.h"

namespace ptx {

namespace {

struct Me {
  uint32_t block, epoch;
  uint16_t thread;

  // Whether another thread wrote the cell, and no barrier lies between.
  bool races_with(const GlobalCell& cell) const {
    if (!(cell.was & kWrite)) return false;
    if (cell.block != block) return true;
    return cell.thread != thread && cell.epoch >= epoch;
  }
};

std::string writer_of(const GlobalCell& cell) {
  return " written by thread " + std::to_string(cell.thread) + " of block " + std::to_string(cell.block);
}

}  // namespace

void check_global_races(Warp& warp, const Instruction& in, Extent& extent, uint64_t address, int lane, int bytes,
                        int kind) {
  const Block& block = *warp.block;
  const Me me{uint32_t(block.number), block.epoch, uint16_t(warp.number * kLanes + lane)};
  const auto found = [&](const char* what, const std::string& detail = "") {
    report(warp, in, what, hexadecimal(address) + detail);
  };
  const uint64_t first = (address - extent.begin) / extent.cell_bytes,
                 last = (address + uint64_t(bytes) - 1 - extent.begin) / extent.cell_bytes;
  for (uint64_t i = first; i <= last; ++i) {
    GlobalCell& cell = extent.cell(i);
    if (kind & kReadOnly) {
      if (cell.was & (kWrite | kAtomic)) found("ld.global.nc of what this launch writes");
      cell.was |= kReadOnly;
    } else if (kind & kRead) {
      if (cell.was & kAtomic)
        found("global read of what this launch adds to");
      else if (me.races_with(cell))
        found("global race (read after write)", writer_of(cell));
      cell.was |= kRead;
    } else if (kind & kWrite) {
      if (cell.was & kReadOnly) found("write of what this launch reads by ld.global.nc");
      if (cell.was & kAtomic) found("write of what this launch adds to");
      if (me.races_with(cell)) found("global race (write after write)", writer_of(cell));
      cell = {me.block, me.epoch, me.thread, uint8_t(cell.was | kWrite)};
    } else if (kind & kAtomic) {
      if (cell.was & kReadOnly) found("atomic on what this launch reads by ld.global.nc");
      if (me.races_with(cell)) found("atomic on what this launch writes", writer_of(cell));
      cell.was |= kAtomic;
    }
  }
}

}  // namespace ptx
