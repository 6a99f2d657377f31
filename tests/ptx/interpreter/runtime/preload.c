// LD_PRELOAD: tells the interpreter the exact extent of every allocation that posix_memalign makes, which is where PyTorch
// on the CPU has its tensors from. Each lies between red zones, filled with 0xff (not a number), as is fresh memory.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern void __libc_free(void*);

typedef void (*Note)(uint64_t at, uint64_t bytes, const char* label);
typedef void (*Forget)(uint64_t at);
static Note note;
static Forget forget;

// Allocations are aligned as those of cudaMalloc, so that counts of cache lines are those of the GPU.
enum { kAlignment = 256, kRedZone = 1024, kSlots = 1 << 16, kLargestFilled = 1 << 30 };

// What was allocated: a hash table with open addressing, since malloc may not be called here.
static struct {
  void* user;  // NULL: never used; REMOVED: free again
  void* base;
} table[kSlots];
#define REMOVED ((void*)1)
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t slot_of(const void* user) { return ((uintptr_t)user / kAlignment) * 2654435761u % kSlots; }

// From now on allocations are noted.
__attribute__((visibility("default"))) void ptxsim_hook(void* note_allocation, void* forget_allocation) {
  forget = (Forget)forget_allocation;
  note = (Note)note_allocation;
}

static int remember(void* user, void* base) {
  pthread_mutex_lock(&lock);
  size_t slot = slot_of(user), tries = 0;
  while (table[slot].user && table[slot].user != REMOVED && tries++ < kSlots) slot = (slot + 1) % kSlots;
  const int found = tries < kSlots;
  if (found) {
    table[slot].user = user;
    table[slot].base = base;
  }
  pthread_mutex_unlock(&lock);
  return found;
}

// Return what has to be freed, NULL where the address was not noted.
static void* take(void* user) {
  void* base = NULL;
  pthread_mutex_lock(&lock);
  size_t slot = slot_of(user);
  for (size_t tries = 0; table[slot].user && tries < kSlots; ++tries, slot = (slot + 1) % kSlots)
    if (table[slot].user == user) {
      base = table[slot].base;
      table[slot].user = REMOVED;
      break;
    }
  pthread_mutex_unlock(&lock);
  return base;
}

int posix_memalign(void** out, size_t alignment, size_t bytes) {
  static int (*real)(void**, size_t, size_t);
  if (!real) real = dlsym(RTLD_NEXT, "posix_memalign");
  if (!note || alignment > kRedZone) return real(out, alignment, bytes);
  if (alignment < kAlignment) alignment = kAlignment;
  char* base;
  const int error = real((void**)&base, alignment, bytes + 2 * kRedZone);
  if (error) return error;
  if (bytes < kLargestFilled) memset(base, 0xff, bytes + 2 * kRedZone);
  char* user = base + kRedZone;
  if (!remember(user, base)) {
    __libc_free(base);
    return real(out, alignment, bytes);
  }
  note((uint64_t)user, bytes, "tensor");
  *out = user;
  return 0;
}

void free(void* user) {
  void* base = note && user && (uintptr_t)user % kAlignment == 0 ? take(user) : NULL;
  if (base) forget((uint64_t)user);
  __libc_free(base ? base : user);
}
