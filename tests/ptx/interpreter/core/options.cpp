#include "core/options.h"

namespace ptx {

Options options;

bool set_option(std::string_view name, double value) {
  if (name == "check_races") return options.check_races = value != 0, true;
  if (name == "check_global") return options.check_global = value != 0, true;
  if (name == "stats") return options.stats = value != 0, true;
  if (name == "noise") return options.noise = int(value), true;
  if (name == "mma_mode") return options.mma_mode = int(value), true;
  if (name == "mma_extra_bits") return options.mma_extra_bits = int(value), true;
  if (name == "mma_group") return options.mma_group = int(value), true;
  if (name == "seed") return options.seed = uint64_t(value), true;
  if (name == "max_blocks") return options.max_blocks = int(value), true;
  if (name == "max_warp_insts") return options.max_warp_insts = uint64_t(value), true;
  return false;
}

}  // namespace ptx
