// What an access costs: sectors of global memory, wavefronts of shared memory.
#include <algorithm>
#include <bit>

#include "memory/access.h"

namespace ptx {

namespace {

// Distinct numbers, few enough to look through.
template <int capacity>
class Distinct {
 public:
  // Whether it is new.
  bool add(uint64_t number) {
    for (int i = size_ - 1; i >= 0; --i)
      if (numbers_[i] == number) return false;
    numbers_[size_++] = number;
    return true;
  }
  int size() const { return size_; }

 private:
  uint64_t numbers_[capacity];
  int size_ = 0;
};

}  // namespace

void count_global(Count& count, const Addresses& addresses, Mask lanes, int bytes) {
  Distinct<2 * kLanes> sectors, lines;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    for (uint64_t sector = addresses[lane] / 32; sector <= (addresses[lane] + uint64_t(bytes) - 1) / 32; ++sector)
      if (sectors.add(sector)) lines.add(sector / 4);
  }
  count.sectors += uint64_t(sectors.size());
  count.lines += uint64_t(lines.size());
  count.ideal_sectors += uint64_t(std::popcount(lanes) * bytes + 31) / 32;
}

// The 32 banks are 4 bytes wide. Accesses of 8 bytes take two steps of 16 lanes, of 16 bytes four of 8; within a step,
// different words of one bank take a wavefront each.
void count_shared(Count& count, const Addresses& addresses, Mask lanes, int bytes) {
  const int step = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  for (int first = 0; first < kLanes; first += step) {
    Distinct<4 * kLanes> words;
    int of_bank[32] = {}, most = 0;
    for (int lane = first; lane < first + step; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (int i = 0; i < std::max(bytes / 4, 1); ++i) {
        const uint64_t word = addresses[lane] / 4 + uint64_t(i);
        if (words.add(word)) most = std::max(most, ++of_bank[word % 32]);
      }
    }
    count.wavefronts += uint64_t(most);
    count.ideal_wavefronts += words.size() > 0;
  }
}

}  // namespace ptx
