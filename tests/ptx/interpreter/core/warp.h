// What runs: blocks of warps, and the registers of a warp.
#pragma once
#include <array>
#include <cstring>
#include <vector>

#include "core/program.h"
#include "core/types.h"

namespace ptx {

struct Block;

// Lanes that execute together, until they reach `join`.
struct Path {
  int pc, join;
  Mask lanes;
};

struct AsyncCopy {
  uint32_t destination;  // in shared memory
  uint8_t lane, bytes;
  std::array<uint8_t, 16> data;
};

struct Warp {
  uint8_t* registers = nullptr;
  Mask active = 0;  // lanes that execute the current instruction
  Mask alive = 0;   // lanes that have not exited
  Mask exists = 0;  // lanes that the block has: the last warp may have fewer
  int number = 0;   // in the block
  std::vector<Path> paths;
  Block* block = nullptr;
  uint64_t executed = 0;                          // instructions
  int barrier = -1;                               // it waits at
  uint32_t epoch = 0;                             // grows at every synchronisation of the warp's lanes
  uint32_t proxy_fences = 0;                      // the block's clock at the warp's last fence.proxy.async
  const uint8_t* stored = nullptr;                // while a store is checked: its values, kStoreBytes per lane
  std::vector<AsyncCopy> copies;                  // cp.async since the last commit
  std::vector<std::vector<AsyncCopy>> committed;  // groups of them that nobody has waited for

  template <class T>
  T* lanes(const Operand& operand) {
    return reinterpret_cast<T*>(registers + operand.at);
  }
  bool has(int lane) const { return active >> lane & 1; }
  Mask& predicate_word(const Operand& operand) { return *reinterpret_cast<Mask*>(registers + operand.at); }
  Mask predicate(const Operand& operand) {
    return operand.negated ? ~predicate_word(operand) : predicate_word(operand);
  }
  void set_predicate(const Operand& operand, Mask value) {
    if (operand.sink) return;
    Mask& word = predicate_word(operand);
    word = (word & ~active) | (value & active);
  }
  // The value of one lane, whatever the register's size.
  uint64_t get(const Operand& operand, int lane) const {
    uint64_t value = 0;
    std::memcpy(&value, registers + operand.at + lane * operand.bytes, operand.bytes);
    return value;
  }
  void set(const Operand& operand, int lane, uint64_t value) {
    if (!operand.sink) std::memcpy(registers + operand.at + lane * operand.bytes, &value, operand.bytes);
  }
};

constexpr int kStoreBytes = 32;  // the widest store of a lane

// Of a byte of shared memory: who touched it last, and when. An access of an epoch before the block's or, in a warp,
// before the warp's is ordered by a barrier.
struct SharedByte {
  uint32_t write_epoch = 0, write_warp_epoch = 0, write_fence = 0;
  uint32_t read_epoch = 0, read_warp_epoch = 0, other_read_epoch = 0;
  uint32_t atomic_epoch = 0, atomic_warp_epoch = 0;
  uint16_t writer = 0, reader = 0, other_reader = 0, adder = 0;  // threads; other_reader: of another warp than reader
};

struct Block {
  Kernel* kernel = nullptr;
  std::array<uint32_t, 3> index, grid, size;  // %ctaid, %nctaid, %ntid
  uint64_t number = 0;                        // in the grid
  uint32_t threads = 0;
  const uint8_t* parameters = nullptr;
  std::vector<Warp> warps;
  std::vector<uint8_t> shared;
  std::vector<SharedByte> shared_history;
  uint32_t first_epoch = 0;  // epochs grow through all blocks of a launch: what is older, another block did
  uint32_t epoch = 0;        // grows at every barrier
  uint32_t proxy_clock = 0;  // grows at every fence.proxy.async
};

}  // namespace ptx
