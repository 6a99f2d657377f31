// The blocks that define ops and bind kernels to them, in a namespace that can be changed in a built library.
//
// Several versions of a kernel of the Hugging Face Hub run in one process, each with a namespace of its own. For that,
// hub/layout.py writes another name into a copy of the library, behind the mark of `kNamespace`.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>

#if !defined(MOTIONRNN_EXT_NAMESPACE)
#define MOTIONRNN_EXT_NAMESPACE "motionrnn_ext"
#endif
#define MOTIONRNN_EXT_MARK "MOTIONRNN_EXT_NAMESPACE="

namespace motionrnn_ext {

// Volatile: the compiler must not assume that it knows the characters. The rest of the array is room for longer names.
inline const volatile char kNamespace[96] = MOTIONRNN_EXT_MARK MOTIONRNN_EXT_NAMESPACE;

// Return the namespace of this library's ops.
inline std::string op_namespace() {
  std::string name;
  for (const volatile char* c = kNamespace + sizeof(MOTIONRNN_EXT_MARK) - 1; *c != '\0'; ++c) name += *c;
  return name;
}

}  // namespace motionrnn_ext

#define MOTIONRNN_EXT_JOIN_(a, b) a##b
#define MOTIONRNN_EXT_JOIN(a, b) MOTIONRNN_EXT_JOIN_(a, b)
// As STABLE_TORCH_LIBRARY and STABLE_TORCH_LIBRARY_IMPL, whose namespace the preprocessor has to know.
#define MOTIONRNN_EXT_BLOCK(kind, key, m)                                                             \
  static void MOTIONRNN_EXT_JOIN(fill_library_, __LINE__)(torch::stable::detail::StableLibrary&);     \
  static const torch::stable::detail::StableTorchLibraryInit MOTIONRNN_EXT_JOIN(library_, __LINE__)(  \
      torch::stable::detail::StableLibrary::Kind::kind, &MOTIONRNN_EXT_JOIN(fill_library_, __LINE__), \
      motionrnn_ext::op_namespace().c_str(), key, __FILE__, __LINE__);                                \
  void MOTIONRNN_EXT_JOIN(fill_library_, __LINE__)(torch::stable::detail::StableLibrary & m)
#define MOTIONRNN_EXT_DEFINE_OPS(m) MOTIONRNN_EXT_BLOCK(DEF, nullptr, m)
#define MOTIONRNN_EXT_IMPLEMENT_OPS(key, m) MOTIONRNN_EXT_BLOCK(IMPL, key, m)
