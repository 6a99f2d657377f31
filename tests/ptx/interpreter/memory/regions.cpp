#include "memory/regions.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "core/report.h"

namespace ptx {

namespace {

struct Region {
  uint64_t end;
  std::string label;
};

std::mutex mutex;
std::map<uint64_t, Region> regions;  // by their beginning
std::vector<Extent> current;

// The extent that begins at the address or last before it; current.end() where there is none.
auto last_before(uint64_t address) {
  const auto after = std::upper_bound(current.begin(), current.end(), address,
                                      [](uint64_t value, const Extent& extent) { return value < extent.begin; });
  return after == current.begin() ? current.end() : after - 1;
}

}  // namespace

void register_region(uint64_t begin, uint64_t bytes, const std::string& label) {
  const std::lock_guard lock(mutex);
  regions[begin] = {begin + bytes, label};
}

void unregister_region(uint64_t begin) {
  const std::lock_guard lock(mutex);
  regions.erase(begin);
}

bool is_registered(uint64_t begin, uint64_t bytes) {
  const std::lock_guard lock(mutex);
  auto found = regions.upper_bound(begin);
  return found != regions.begin() && begin + bytes <= (--found)->second.end;
}

void begin_launch_memory(uint64_t cell_bytes) {
  const std::lock_guard lock(mutex);
  current.clear();
  current.reserve(regions.size());
  for (const auto& [begin, region] : regions) current.push_back({begin, region.end, region.label, cell_bytes, {}});
}

std::vector<Extent>& extents() { return current; }

int extent_of(uint64_t begin, uint64_t bytes) {
  const auto found = last_before(begin);
  return found != current.end() && begin + bytes <= found->end ? int(found - current.begin()) : -1;
}

std::string nearest_extent(uint64_t address) {
  const auto found = last_before(address);
  if (found == current.end()) return "no tensor lies below it";
  const int64_t past = int64_t(address - found->end);
  return "nearest below: " + found->label + " of " + std::to_string(found->end - found->begin) + " bytes, " +
         std::to_string(past) + " past its end";
}

}  // namespace ptx
