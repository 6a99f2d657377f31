"""The Triton kernels: NVIDIA and AMD GPUs, with no nvcc, no C++ compiler and no native library.

    launch.py              how a kernel becomes an op, how it is launched, block sizes
    scalar.py              functions of one element and their derivatives, storage; forward and backward share them
    bilinear.py            one tap of the warp: the cell it falls in, its corners, their derivatives
    pointwise.py           where the elements of a pointwise kernel lie
    motion_gru.py, recurrent_gates.py, offset_warp.py, offset_warp_backward.py
                           a stem each: forward kernel, backward kernel, launch

Kernels are compiled for the GPU at hand when they are first launched, for which Triton needs a C compiler. Under its
interpreter (TRITON_INTERPRET=1 before triton is imported) they run on CPU tensors instead, slowly: for tests.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch

NAMESPACE = "motionrnn_ext_triton"


def is_on(variable: str) -> bool:
    """Whether an environment variable says yes, in the words that Triton takes for it."""
    return os.environ.get(variable, "").lower() in ("1", "true", "on", "y", "yes")


INTERPRETED = is_on("TRITON_INTERPRET")  # kernels run on CPU tensors
_IS_INSTALLED = importlib.util.find_spec("triton") is not None


def c_compiler() -> str | None:
    """The compiler that Triton takes for the C code between Python and the driver, at the first launch on a machine."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def python_headers() -> Path | None:
    """The folder with Python.h, which that code includes."""
    # Debian's own scheme names a folder that holds none.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    folder = Path(sysconfig.get_path("include", scheme))
    return folder if (folder / "Python.h").is_file() else None


def _missing_tool() -> str | None:
    if c_compiler() is None:
        return "Triton needs a C compiler at its first launch: install gcc or clang, or name one in CC"
    if python_headers() is None:
        return "Triton needs Python.h at its first launch: install Python's headers (Debian, Ubuntu: python3-dev)"
    return None


_MISSING_TOOL = _missing_tool()


def unavailable_reason() -> str | None:
    """Why the Triton kernels cannot run here, in one sentence; None if they can, and then their ops are there."""
    if not _IS_INSTALLED:
        return "the package triton is not installed"
    if not INTERPRETED:
        if not torch.cuda.is_available():
            return "PyTorch finds no GPU (TRITON_INTERPRET=1 runs Triton's kernels on the CPU, slowly)"
        if _MISSING_TOOL is not None:
            return _MISSING_TOOL
    from . import ops  # noqa: F401  # importing Triton takes a while, and Dynamo can trace this statement

    return None


def run(op: str, *arguments: Any) -> Any:
    return getattr(getattr(torch.ops, NAMESPACE), op)(*arguments)
