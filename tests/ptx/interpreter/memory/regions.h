// Global memory is host memory in registered regions: exactly what a tensor covers may be touched.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace ptx {

void register_region(uint64_t begin, uint64_t bytes, const std::string& label);
void unregister_region(uint64_t begin);
bool is_registered(uint64_t begin, uint64_t bytes);

// Some bytes of global memory in the launch in progress (see begin_launch_memory): who wrote them last, and what was
// done to them.
struct GlobalCell {
  uint32_t block = 0, epoch = 0;  // of the last writer
  uint16_t thread = 0;
  uint8_t was = 0;  // Access bits
};

// A region during a launch.
struct Extent {
  static constexpr uint64_t kPageCells = 2048;
  using Page = std::array<GlobalCell, kPageCells>;

  uint64_t begin, end;
  std::string label;
  uint64_t cell_bytes;
  std::vector<std::unique_ptr<Page>>
      pages;  // made where they are touched: regions may be larger than the machine's memory

  GlobalCell& cell(uint64_t number) {
    if (pages.empty()) pages.resize((end - begin) / cell_bytes / kPageCells + 1);
    auto& page = pages[number / kPageCells];
    if (!page) page = std::make_unique<Page>();
    return (*page)[number % kPageCells];
  }
};

// Takes the registered regions as they are: those of other threads may come and go during the launch. Races are looked
// for by cells of `cell_bytes`, no more than the smallest access has.
void begin_launch_memory(uint64_t cell_bytes);
std::vector<Extent>& extents();  // by address
// Return the index of the extent that holds all the bytes, or -1.
int extent_of(uint64_t begin, uint64_t bytes);
// In words, how far the address is from the nearest region below it.
std::string nearest_extent(uint64_t address);

}  // namespace ptx
