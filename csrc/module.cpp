// motionrnn_ext._build tells what was built, with which tools, and what was left out: the text of lib/build.json, which
// Pythons that cannot import this module read. The ops are in libmotionrnn_ext_{cpu,cuda}.so, which need no Python.
#include <pybind11/pybind11.h>

#include "build_config.h"

namespace py = pybind11;

PYBIND11_MODULE(_build, m) {
  m.doc() = "Build information.";
  m.def(
      "info", [] { return py::module_::import("json").attr("loads")(kBuildJson); },
      "What this installation was built from. Keys: torch and abi_target (the PyTorch whose headers were used; the\n"
      "oldest that can load the result), compiler, build_type, flags, instruction_sets (of the CPU kernels), cuda_ops\n"
      "(bool), cuda_left_out (why not, or None), cuda_architectures, nvcc (version, or None).");
}
