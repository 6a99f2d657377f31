// motionrnn_ext._build tells what was built, with which tools, and what was left out. The ops themselves are in
// libmotionrnn_ext_{cpu,cuda}.so, which need no Python.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "build_config.h"

namespace py = pybind11;

namespace {

py::list split(const std::string& semicolon_list) {
  py::list items;
  std::istringstream stream(semicolon_list);
  for (std::string item; std::getline(stream, item, ';');) items.append(item);
  return items;
}

py::object text_or_none(const std::string& text) {
  if (text.empty()) return py::none();
  return py::str(text);
}

py::dict info() {
  py::dict d;
  d["torch"] = BUILD_TORCH_VERSION;
  d["abi_target"] = BUILD_ABI_TARGET;
  d["compiler"] = BUILD_COMPILER;
  d["build_type"] = BUILD_TYPE;
  d["flags"] = BUILD_CXX_FLAGS;
  d["instruction_sets"] = split(BUILD_INSTRUCTION_SETS);
  d["cuda_ops"] = std::string(BUILD_CUDA_LEFT_OUT).empty();
  d["cuda_left_out"] = text_or_none(BUILD_CUDA_LEFT_OUT);
  d["cuda_architectures"] = split(BUILD_CUDA_ARCHITECTURES);
  d["nvcc"] = text_or_none(BUILD_NVCC_VERSION);
  return d;
}

}  // namespace

PYBIND11_MODULE(_build, m) {
  m.doc() = "Build information.";
  m.def(
      "info", &info,
      "What this installation was built from. Keys: torch and abi_target (the PyTorch whose headers were used; the\n"
      "oldest that can load the result), compiler, build_type, flags, instruction_sets (of the CPU kernels), cuda_ops\n"
      "(bool), cuda_left_out (why not, or None), cuda_architectures, nvcc (version, or None).");
}
