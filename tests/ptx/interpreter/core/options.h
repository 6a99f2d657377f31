// What ptxsim_set sets.
#pragma once
#include <cstdint>
#include <string_view>

namespace ptx {

struct Options {
  bool check_races = true;   // in shared memory
  bool check_global = true;  // races in global memory, and ld.global.nc of what is written
  bool stats = true;         // sectors and bank conflicts
  int noise = 0;             // approximations are off by up to so many ulp
  int mma_mode = 0;          // 0: sums of products are exact, rounded once; 1: cut as tensor cores cut them
  int mma_extra_bits = 1;    // that a cut sum keeps below float32's last
  int mma_group = 0;         // products summed at once; 0: as many as the target does
  uint64_t seed = 0;         // of the order of blocks and warps; 0: in order
  int max_blocks = 0;        // run only so many blocks, spread evenly; 0: all
  uint64_t max_warp_insts = 2'000'000'000;  // of a warp; more is a loop that does not end
};
extern Options options;

// Whether there is an option of this name.
bool set_option(std::string_view name, double value);

}  // namespace ptx
