// Races in shared memory, and reads of what was never written.
#include <string>

#include "core/report.h"
#include "memory/access.h"

namespace ptx {

namespace {

enum class Order { ordered, within_warp, within_block };

// How an earlier access by `thread` stands to one of this lane now. Barriers order what lies in epochs before.
Order order_of(const Warp& warp, uint32_t me, uint32_t thread, uint32_t epoch, uint32_t warp_epoch) {
  if (thread == me || epoch < warp.block->epoch) return Order::ordered;
  if (thread / kLanes != uint32_t(warp.number)) return Order::within_block;
  return warp_epoch < warp.epoch ? Order::ordered : Order::within_warp;
}

void report_race(Warp& warp, const Instruction& in, Order order, const char* hazard, uint64_t address, int lane,
                 const char* verb, uint32_t thread) {
  const std::string kind =
      std::string(order == Order::within_warp ? "race in a warp (" : "race in a block (") + hazard + ")";
  report(warp, in, kind.c_str(),
         "byte " + std::to_string(address) + " lane " + std::to_string(lane) + ", " + verb + " by thread " +
             std::to_string(thread));
}

// A write of an epoch before the block's first was by another block, and means nothing. In the first epoch itself
// nothing runs: it marks what was reported as uninitialised.
bool is_written(const Block& block, const SharedByte& byte) { return byte.write_epoch >= block.first_epoch; }

Order order_of_write(const Warp& warp, uint32_t me, const SharedByte& byte) {
  return order_of(warp, me, byte.writer, byte.write_epoch, byte.write_warp_epoch);
}
Order order_of_atomic(const Warp& warp, uint32_t me, const SharedByte& byte) {
  return order_of(warp, me, byte.adder, byte.atomic_epoch, byte.atomic_warp_epoch);
}

// Of the last reader, or of the last one of another warp.
Order order_of_reads(const Warp& warp, uint32_t me, const SharedByte& byte) {
  const Order last = order_of(warp, me, byte.reader, byte.read_epoch, byte.read_warp_epoch);
  if (last != Order::ordered) return last;
  const bool other_is_recent = byte.other_read_epoch == warp.block->epoch;
  return other_is_recent && byte.other_reader / kLanes != warp.number ? Order::within_block : Order::ordered;
}

// Atomics are ordered among themselves; they keep records of their own.
void check_atomic(Warp& warp, const Instruction& in, SharedByte& byte, uint64_t address, int lane, uint32_t me) {
  if (const Order order = order_of_reads(warp, me, byte); order != Order::ordered)
    report_race(warp, in, order, "write after read", address, lane, "read", byte.reader);
  byte.adder = uint16_t(me);
  byte.atomic_epoch = warp.block->epoch;
  byte.atomic_warp_epoch = warp.epoch;
}

void check_read(Warp& warp, const Instruction& in, SharedByte& byte, uint64_t address, int lane, uint32_t me,
                int kind) {
  Block& block = *warp.block;
  if (!is_written(block, byte)) {
    report(warp, in, "uninitialised shared memory",
           "byte " + std::to_string(address) + " lane " + std::to_string(lane));
    byte.write_epoch = block.first_epoch;
  } else if ((kind & kAsyncProxy) && byte.write_epoch > block.first_epoch) {
    // PTX ISA, 9.7.15.2: the async proxy sees writes of the generic proxy after a fence, by either side of a barrier.
    if (block.warps[byte.writer / kLanes].proxy_fences <= byte.write_fence && warp.proxy_fences <= byte.write_fence)
      report(warp, in, "async proxy reads what no fence.proxy.async followed",
             "byte " + std::to_string(address) + ", written by thread " + std::to_string(byte.writer));
  }
  if (const Order order = order_of_write(warp, me, byte); order != Order::ordered)
    report_race(warp, in, order, "read after write", address, lane, "written", byte.writer);
  if (kind & kAtomic) {
    check_atomic(warp, in, byte, address, lane, me);
    return;
  }
  if (const Order order = order_of_atomic(warp, me, byte); order != Order::ordered)
    report_race(warp, in, order, "read after write", address, lane, "changed", byte.adder);
  if (byte.reader != me && byte.read_epoch == block.epoch && byte.reader / kLanes != warp.number) {
    byte.other_reader = byte.reader;
    byte.other_read_epoch = byte.read_epoch;
  }
  byte.reader = uint16_t(me);
  byte.read_epoch = block.epoch;
  byte.read_warp_epoch = warp.epoch;
}

void check_write(Warp& warp, const Instruction& in, SharedByte& byte, uint64_t address, int lane, uint32_t me,
                 const uint8_t* stored) {
  Block& block = *warp.block;
  const Order after_write = order_of_write(warp, me, byte), after_atomic = order_of_atomic(warp, me, byte),
              after_read = order_of_reads(warp, me, byte);
  const bool is_race = after_write != Order::ordered || after_atomic != Order::ordered || after_read != Order::ordered;
  const bool changes_nothing = stored && is_written(block, byte) && block.shared[address] == *stored;
  if (stored) block.shared[address] = *stored;
  // Compilers let several threads write copies of the same value.
  if (is_race && changes_nothing) return;
  if (after_write != Order::ordered)
    report_race(warp, in, after_write, "write after write", address, lane, "written", byte.writer);
  if (after_atomic != Order::ordered)
    report_race(warp, in, after_atomic, "write after write", address, lane, "changed", byte.adder);
  if (after_read != Order::ordered)
    report_race(warp, in, after_read, "write after read", address, lane, "read", byte.reader);
  byte.writer = uint16_t(me);
  byte.write_epoch = block.epoch;
  byte.write_warp_epoch = warp.epoch;
  byte.write_fence = block.proxy_clock;
}

}  // namespace

void check_shared_races(Warp& warp, const Instruction& in, uint64_t address, int lane, int bytes, int kind) {
  const uint32_t me = uint32_t(warp.number) * kLanes + uint32_t(lane);
  const uint8_t* stored = warp.stored ? warp.stored + lane * kStoreBytes : nullptr;
  SharedByte* history = &warp.block->shared_history[address];
  for (int i = 0; i < bytes; ++i) {
    if (kind & (kRead | kAtomic)) check_read(warp, in, history[i], address + i, lane, me, kind);
    if (kind & kWrite) check_write(warp, in, history[i], address + i, lane, me, stored ? stored + i : nullptr);
  }
}

}  // namespace ptx
