#include "core/launch.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <numeric>
#include <random>
#include <string>

#include "core/options.h"
#include "core/report.h"
#include "core/warp_execution.h"
#include "memory/regions.h"

namespace ptx {

namespace {

uint64_t volume(Size size) { return uint64_t(size[0]) * size[1] * size[2]; }

std::string text_of(Size size) {
  return std::to_string(size[0]) + " x " + std::to_string(size[1]) + " x " + std::to_string(size[2]);
}

// The limits of compute capability 8.0 to 9.0 (CUDA C++ Programming Guide, technical specifications per compute
// capability). Whether the launch can be run at all.
bool check_limits(const Kernel& kernel, Size grid, Size block, uint32_t shared) {
  const auto refuse = [&](const std::string& why) { report(kernel.name, "launch", kernel.name + ": " + why); };
  const uint64_t threads = volume(block);
  if (grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535 || !volume(grid)) {
    refuse("grid or block out of range: " + text_of(grid) + " blocks");
    return false;
  }
  if (block[0] > 1024 || block[1] > 1024 || block[2] > 64 || threads > 1024 || !threads) {
    refuse("grid or block out of range: blocks of " + text_of(block) + " threads");
    return false;
  }
  if (kernel.max_threads && threads > kernel.max_threads)
    refuse(std::to_string(threads) + " threads, more than the " + std::to_string(kernel.max_threads) + " of .maxntid");
  else if (kernel.exact_threads && threads != kernel.max_threads)
    refuse(std::to_string(threads) + " threads, not the " + std::to_string(kernel.max_threads) + " of .reqntid");
  if (shared > largest_shared(kernel.target))
    refuse("more shared memory than there is: " + std::to_string(shared) + " bytes of " +
           std::to_string(largest_shared(kernel.target)));
  if (kernel.static_shared > kSharedWithoutAsking)
    refuse(std::to_string(kernel.static_shared) + " bytes of static shared memory, more than 48 KB");
  return true;
}

// Whether it loads or stores single bytes of global memory.
bool accesses_bytes(const Kernel& kernel) {
  return std::any_of(kernel.code.begin(), kernel.code.end(), [](const Instruction& in) {
    return (in.counted == Class::ldg || in.counted == Class::stg) && in.element_bytes * in.vector == 1;
  });
}

// Numbers of the blocks that are run, in their order.
std::vector<uint64_t> blocks_to_run(uint64_t total, std::mt19937_64& random) {
  const uint64_t most = options.max_blocks > 0 ? uint64_t(options.max_blocks) : total;
  std::vector<uint64_t> numbers(std::min(total, most));
  for (uint64_t i = 0; i < numbers.size(); ++i) numbers[i] = total <= most ? i : total * i / most;
  if (options.seed) std::shuffle(numbers.begin(), numbers.end(), random);
  return numbers;
}

class Launch {
 public:
  Launch(Kernel& kernel, Size grid, Size block, uint32_t shared, const uint8_t* parameters) : random_(options.seed) {
    block_.kernel = &kernel;
    block_.grid = grid;
    block_.size = block;
    block_.threads = uint32_t(volume(block));
    block_.parameters = parameters;
    block_.warps.resize((block_.threads + kLanes - 1) / kLanes);
    block_.shared.resize(shared);
    if (options.check_races) block_.shared_history.resize(shared);
    place_registers();
  }

  void run() {
    Kernel& kernel = *block_.kernel;
    for (uint64_t number : blocks_to_run(volume(block_.grid), random_)) {
      begin_block(number);
      run_block();
      ++kernel.blocks;
      kernel.warps += block_.warps.size();
    }
    ++kernel.launches;
  }

 private:
  void place_registers() {
    const Kernel& kernel = *block_.kernel;
    const size_t constants = kernel.constants.size(), stride = kernel.register_bytes + 64;
    registers_.resize(stride * block_.warps.size() + 64, 0xff);
    uint8_t* begin = registers_.data() + (64 - reinterpret_cast<uintptr_t>(registers_.data()) % 64) % 64;
    for (Warp& warp : block_.warps) {
      warp.registers = begin;
      std::memcpy(begin, kernel.constants.data(), constants);
      begin += stride;
    }
  }

  void begin_block(uint64_t number) {
    const Size grid = block_.grid;
    block_.number = number;
    block_.index = {uint32_t(number % grid[0]), uint32_t(number / grid[0] % grid[1]),
                    uint32_t(number / grid[0] / grid[1])};
    std::fill(block_.shared.begin(), block_.shared.end(), 0xff);
    block_.first_epoch = block_.epoch + 1;
    block_.epoch = block_.first_epoch + 1;
    block_.proxy_clock = 0;
    for (size_t i = 0; i < block_.warps.size(); ++i) begin_warp(block_.warps[i], int(i));
  }

  void begin_warp(Warp& warp, int number) {
    const uint32_t left = block_.threads - uint32_t(number) * kLanes;
    warp.number = number;
    warp.block = &block_;
    warp.exists = warp.alive = left >= kLanes ? kAllLanes : (1u << left) - 1;
    warp.paths.assign(1, {0, -1, warp.alive});
    warp.executed = 0;
    warp.barrier = -1;
    warp.epoch = 1;
    warp.proxy_fences = 0;
    warp.copies.clear();
    warp.committed.clear();
    for (const auto& [place, special] : block_.kernel->specials) {
      const size_t bytes = size_t(bytes_of(special));
      for (int lane = 0; lane < kLanes; ++lane) {
        const uint64_t value = value_of(special, warp, lane);
        std::memcpy(warp.registers + place + size_t(lane) * bytes, &value, bytes);
      }
    }
  }

  // Warps run in turns, each to its next barrier.
  void run_block() {
    std::vector<Warp*> running;
    for (Warp& warp : block_.warps) running.push_back(&warp);
    while (!running.empty()) {
      if (options.seed) std::shuffle(running.begin(), running.end(), random_);
      std::erase_if(running, [](Warp* warp) { return run_warp(*warp) == Stop::done; });
      if (!running.empty()) pass_barrier(running);
    }
  }

  void pass_barrier(const std::vector<Warp*>& waiting) {
    const std::string& kernel = block_.kernel->name;
    const bool at_one =
        std::all_of(waiting.begin(), waiting.end(), [&](Warp* w) { return w->barrier == waiting[0]->barrier; });
    if (!at_one) report(kernel, "barrier", "warps of a block wait at different barriers");
    if (waiting.size() != block_.warps.size())
      report(kernel, "barrier", "warps wait at a barrier that others have left out by returning");
    ++block_.epoch;
    for (Warp& warp : block_.warps) {
      ++warp.epoch;
      warp.barrier = -1;
    }
  }

  Block block_;
  std::vector<uint8_t> registers_;
  std::mt19937_64 random_;
};

std::mutex running;  // one launch at a time, whichever threads of the host launch

}  // namespace

uint32_t largest_shared(int target) {
  // A block's largest, of compute capability 8.0, 8.6 and 8.9, and 9.0 on
  return target >= 90 ? 227 * 1024 : target > 80 && target != 87 ? 99 * 1024 : 163 * 1024;
}

bool launch(Kernel& kernel, Size grid, Size block, uint32_t dynamic_shared, const uint8_t* parameters) {
  const std::lock_guard lock(running);
  const uint32_t shared = kernel.static_shared + dynamic_shared;
  if (!check_limits(kernel, grid, block, shared)) return false;
  begin_launch_memory(accesses_bytes(kernel) ? 1 : 2);
  for (Instruction& in : kernel.code) in.extent_begin = 1, in.extent_end = 0, in.extent = -1;
  Launch(kernel, grid, block, shared, parameters).run();
  return true;
}

}  // namespace ptx
