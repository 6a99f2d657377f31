// Aligned memory for a kernel's own use during one call.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "cpu/vector.h"

namespace motionrnn_ext::cpu {
namespace {

template <class T>
struct Free {
  void operator()(T* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free<T>>;

template <class T>
Buffer<T> allocate(int64_t count, bool zero) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + kAlignment) / kAlignment * kAlignment;
  T* p = static_cast<T*>(std::aligned_alloc(kAlignment, bytes));
  if (p == nullptr) throw std::bad_alloc();  // parallel_for carries it to the caller
  if (zero) std::memset(p, 0, bytes);
  return Buffer<T>(p);
}

}  // namespace
}  // namespace motionrnn_ext::cpu
