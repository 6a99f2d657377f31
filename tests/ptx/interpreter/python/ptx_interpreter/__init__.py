"""The PTX interpreter in a Python process: PTX of nvcc or Triton runs on the memory of CPU tensors.

    library.py        the interpreter's functions; options, launches
    results.py        what they return: reports, launches, counts, coverage
    triton_driver.py  Triton's compiler with a driver that launches on the interpreter
    mutants.py        wrong instructions, to find out whether tests notice them

Nothing here knows which kernels are run. The process has to be started with LD_PRELOAD=libptx_preload.so, which tells
the interpreter the extent of every tensor.
"""

from .library import Interpreter, Options
from .results import Coverage, InstructionCounts, Kernel, KernelCounts, Launch, Report

__all__ = [
    "Coverage",
    "InstructionCounts",
    "Interpreter",
    "Kernel",
    "KernelCounts",
    "Launch",
    "Options",
    "Report",
]
