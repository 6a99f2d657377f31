// The schedule, the points where threads meet, and launches. The sources of this folder are compiled without
// -fsanitize=thread: what happens here must not look like the kernels' own accesses, and ThreadSanitizer is told of
// each thread and of what a barrier orders. Nor does a thread that meets others call memcpy and the like here, which
// ThreadSanitizer sees all the same.
#include "emulator/block.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "emulator/fiber.h"

namespace motionrnn_ext::emulator {

Here here;

namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxSharedBytes = 227 * 1024;

struct Meeting;

struct Thread {
  Fiber fiber;
  uint3 index{};
  bool returned = false;
  Meeting* waits_at = nullptr;
};

// A reusable barrier: of all threads of a block, or of the lanes of a warp that a mask names.
struct Meeting {
  uint32_t mask = 0;
  unsigned expected = 0, arrived = 0;
  Thread* waiting[kMaxThreads];
  const char* operation = nullptr;
  Where where;
  // Two of each, used in turn: a thread that wakes late finds its own round's, as none ends before all left the last.
  unsigned round = 0;
  char order[2];
  Slot slots[2][kWarpSize];
};

struct Launch {
  const std::function<void()>* kernel = nullptr;
  unsigned block_size = 0;
  std::deque<Thread> threads;  // of two blocks: one and the next share none, so that races between them show
  unsigned first_thread = 0;   // of the running block
  unsigned unfinished = 0;
  Thread host;
  Thread* running = &host;
  Thread* ready[kMaxThreads];  // a ring
  unsigned first_ready = 0, count_ready = 0;
  Meeting barrier;
  std::vector<std::deque<Meeting>> warps;
  std::string failure;
  char before, after;  // for ThreadSanitizer; nothing orders one block and the next
  std::mt19937_64 random;

  Thread& thread(unsigned i) { return threads[first_thread + i]; }
};

// The exception that ends a thread after a failure.
struct Abandoned {};

Launch current;
std::mutex one_launch;

uint64_t seed = [] {
  const char* text = std::getenv("MOTIONRNN_EXT_EMULATOR_SEED");
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
}();

// ---- Messages

std::string text(const uint3& index) {
  return std::string("(") + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) +
         ")";
}

std::string text(const char* operation, const Where& where) {
  return operation + std::string(" (") + where.file_name() + ":" + std::to_string(where.line()) + ")";
}

std::string describe_deadlock() {
  std::map<std::string, unsigned> places;
  for (unsigned i = 0; i < current.block_size; ++i)
    if (const Meeting* at = current.thread(i).waits_at) ++places[text(at->operation, at->where)];
  std::string message = "deadlock in block " + text(here.block);
  for (const auto& [place, threads] : places) message += ", " + std::to_string(threads) + " threads wait at " + place;
  return message + ", " + std::to_string(current.block_size - current.unfinished) + " have returned";
}

// ---- Schedule

void make_ready(Thread& thread) {
  thread.waits_at = nullptr;
  current.ready[(current.first_ready + current.count_ready++) % kMaxThreads] = &thread;
}

// The first failure ends the launch: every other thread of the block goes on once more, to leave its kernel.
void record_failure(const std::string& problem) {
  if (!current.failure.empty()) return;
  const sanitizer::Unseen unseen;
  current.failure = "kernel emulator: " + problem;
  current.count_ready = 0;
  for (unsigned i = 0; i < current.block_size; ++i) {
    Thread& thread = current.thread(i);
    if (!thread.returned && &thread != current.running) make_ready(thread);
  }
}

void switch_to(Thread& next) {
  Thread& before = *current.running;
  if (&next == &before) return;
  current.running = &next;
  here.thread = next.index;
  switch_fiber(before.fiber, next.fiber, before.returned);
}

// Runs the next thread, or the host if all have returned.
void run_next() {
  if (current.unfinished == 0) return switch_to(current.host);
  if (current.count_ready == 0) {
    record_failure(describe_deadlock());
    if (!current.running->returned) return;
  }
  Thread& next = *current.ready[current.first_ready];
  current.first_ready = (current.first_ready + 1) % kMaxThreads;
  --current.count_ready;
  switch_to(next);
}

// The function in which every thread starts.
void run_thread() {
  arrive(current.running->fiber);
  sanitizer::acquire(&current.before);
  try {
    if (current.failure.empty()) (*current.kernel)();
  } catch (const Abandoned&) {
  } catch (const std::exception& error) {
    record_failure(error.what());
  }
  sanitizer::release(&current.after);
  current.running->returned = true;
  --current.unfinished;
  run_next();
  __builtin_unreachable();
}

// ---- Meeting

void meet(Meeting& meeting, bool orders_memory) {
  void* const order = &meeting.order[meeting.round % 2];
  if (orders_memory) sanitizer::release(order);
  if (meeting.arrived + 1 == meeting.expected) {
    if (seed != 0) std::shuffle(meeting.waiting, meeting.waiting + meeting.arrived, current.random);
    for (unsigned i = 0; i < meeting.arrived; ++i) make_ready(*meeting.waiting[i]);
    meeting.arrived = 0;
    ++meeting.round;
  } else {
    meeting.waiting[meeting.arrived++] = current.running;
    current.running->waits_at = &meeting;
    run_next();
    if (!current.failure.empty()) throw Abandoned{};
  }
  if (orders_memory) sanitizer::acquire(order);
}

Meeting& meeting_of(uint32_t mask, const char* operation, Where where) {
  const unsigned warp = here.thread.x / kWarpSize, lanes = std::min(kWarpSize, current.block_size - warp * kWarpSize);
  if ((mask >> lane() & 1) == 0) fail(std::string(operation) + " without the calling lane in its mask", where);
  if (mask > 0xffffffffu >> (kWarpSize - lanes))
    fail(std::string(operation) + " with lanes in its mask that the block lacks", where);
  std::deque<Meeting>& meetings = current.warps[warp];
  auto found = std::find_if(meetings.begin(), meetings.end(), [&](const Meeting& m) { return m.mask == mask; });
  if (found == meetings.end()) {
    const sanitizer::Unseen unseen;
    found = meetings.emplace(found);
    found->mask = mask;
    found->expected = __builtin_popcount(mask);
  }
  if (found->arrived != 0 && found->operation != operation)
    fail(text(operation, where) + " meets " + text(found->operation, found->where) + " in the same warp", where);
  found->operation = operation;
  found->where = where;
  return *found;
}

// ---- Launch

void check_launch(dim3 grid, dim3 block, size_t shared_bytes) {
  const auto require = [](bool valid, const std::string& rule) {
    if (!valid) throw Error("kernel emulator: invalid launch: " + rule);
  };
  require(block.y == 1 && block.z == 1 && block.x >= 1 && block.x <= kMaxThreads,
          "a block should have 1 to 1024 threads in one dimension, not " + text({block.x, block.y, block.z}));
  require(grid.x >= 1 && grid.x <= 0x7fffffffu && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535,
          "a grid should have 1 to 2147483647 x 65535 x 65535 blocks, not " + text({grid.x, grid.y, grid.z}));
  require(shared_bytes <= kMaxSharedBytes, "a block should have at most " + std::to_string(kMaxSharedBytes) +
                                               " bytes of shared memory, not " + std::to_string(shared_bytes));
}

void prepare(unsigned block_size, const std::function<void()>& kernel) {
  current.kernel = &kernel;
  current.block_size = block_size;
  if (current.threads.size() < 2 * block_size) current.threads.resize(2 * block_size);
  current.warps.clear();
  current.warps.resize((block_size + kWarpSize - 1) / kWarpSize);
  current.barrier.expected = block_size;
  current.barrier.arrived = 0;
  current.failure.clear();
  current.random.seed(seed);
  start_host(current.host.fiber);
}

// Shared memory is allocated anew for each block, so that a sanitizer knows its end and no earlier block's data is
// read.
struct SharedMemory {
  explicit SharedMemory(size_t bytes) {
    const sanitizer::Unseen unseen;
    if (posix_memalign(&data, 128, std::max<size_t>(bytes, 1)) != 0) throw std::bad_alloc();
    std::memset(data, 0xff, bytes);
  }
  ~SharedMemory() {
    const sanitizer::Unseen unseen;
    std::free(data);
  }
  SharedMemory(const SharedMemory&) = delete;

  void* data = nullptr;
};

void run_block(uint64_t number, size_t shared_bytes) {
  const SharedMemory shared(shared_bytes);
  const uint64_t row = number / here.grid_size.x;
  here.block = {static_cast<unsigned>(number % here.grid_size.x), static_cast<unsigned>(row % here.grid_size.y),
                static_cast<unsigned>(row / here.grid_size.y)};
  here.shared = static_cast<unsigned char*>(shared.data);
  current.first_thread = current.first_thread == 0 ? current.block_size : 0;
  current.unfinished = current.block_size;
  current.first_ready = current.count_ready = 0;
  for (unsigned i = 0; i < current.block_size; ++i) {
    Thread& thread = current.thread(i);
    thread.index = {i, 0, 0};
    thread.returned = false;
    start(thread.fiber, run_thread);
    make_ready(thread);
  }
  if (seed != 0) std::shuffle(current.ready, current.ready + current.count_ready, current.random);
  run_next();
}

}  // namespace

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  check_launch(grid, block, shared_bytes);
  const std::lock_guard lock(one_launch);
  here.grid_size = grid;
  here.block_size = block;
  prepare(block.x, kernel);
  std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (seed != 0) std::shuffle(blocks.begin(), blocks.end(), current.random);
  sanitizer::release(&current.before);
  for (size_t i = 0; i < blocks.size() && current.failure.empty(); ++i) run_block(blocks[i], shared_bytes);
  sanitizer::acquire(&current.after);
  if (!current.failure.empty()) throw Error(current.failure);
}

void note_launch(const void* kernel) {
  const char* file = std::getenv("MOTIONRNN_EXT_LAUNCHES");
  if (file == nullptr) return;
  static std::set<const void*> noted;
  const std::lock_guard lock(one_launch);
  Dl_info library;
  if (!noted.insert(kernel).second || dladdr(kernel, &library) == 0) return;
  // One write appends a whole line, also where several processes append.
  std::ofstream(file, std::ios::app) << static_cast<const char*>(kernel) - static_cast<const char*>(library.dli_fbase)
                                     << std::endl;
}

void synchronize_block(const char* operation, Where where) {
  Meeting& barrier = current.barrier;
  const auto place = [](const Where& at) { return std::tuple(at.file_name(), at.line(), at.column()); };
  if (barrier.arrived != 0 && place(barrier.where) != place(where))
    fail(text(operation, where) + " meets " + text(barrier.operation, barrier.where) + " in the same block", where);
  barrier.operation = operation;
  barrier.where = where;
  meet(barrier, true);
}

void synchronize_warp(uint32_t mask, const char* operation, Where where) {
  meet(meeting_of(mask, operation, where), true);
}

const Slot* exchange(uint32_t mask, const void* value, size_t bytes, const char* operation, Where where) {
  using Word [[gnu::may_alias]] = uint32_t;
  Meeting& meeting = meeting_of(mask, operation, where);
  Slot* const slots = meeting.slots[meeting.round % 2];
  volatile Word* const to = reinterpret_cast<Word*>(slots[lane()].bytes);
  for (size_t i = 0; i < bytes / sizeof(Word); ++i) to[i] = static_cast<const Word*>(value)[i];
  meet(meeting, false);
  return slots;
}

void fail(const std::string& problem, Where where) {
  record_failure(problem + ", at " + where.file_name() + ":" + std::to_string(where.line()) + ", block " +
                 text(here.block) + ", thread " + std::to_string(here.thread.x));
  throw Abandoned{};
}

}  // namespace motionrnn_ext::emulator

// From the next launch on, blocks and the threads within them run in a random order of this seed; 0 is their own order.
// The environment variable MOTIONRNN_EXT_EMULATOR_SEED sets the first seed.
extern "C" __attribute__((visibility("default"))) void motionrnn_ext_emulator_seed(uint64_t value) {
  motionrnn_ext::emulator::seed = value;
}
