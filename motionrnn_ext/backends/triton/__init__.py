"""The Triton kernels: NVIDIA and AMD GPUs, with no nvcc, no C++ compiler and no native library.

    launch.py              how a kernel becomes an op, how it is launched, block sizes
    scalar.py              functions of one element and their derivatives, storage; forward and backward share them
    bilinear.py            one tap of the warp: the cell it falls in, its corners, their derivatives
    pointwise.py           where the elements of a pointwise kernel lie
    motion_gru.py, recurrent_gates.py, offset_warp.py, offset_warp_backward.py
                           a stem each: forward kernel, backward kernel, launch

Kernels are compiled for the GPU at hand when they are first launched, which takes a C compiler. Under Triton's
interpreter (TRITON_INTERPRET=1 before triton is imported) they run on CPU tensors instead, slowly: for tests.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch

NAMESPACE = "motionrnn_ext_triton"
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"  # kernels run on CPU tensors
_IS_INSTALLED = importlib.util.find_spec("triton") is not None


def unavailable_reason() -> str | None:
    """Why the Triton kernels cannot run here, in one sentence; None if they can, and then their ops are there."""
    if not _IS_INSTALLED:
        return "the package triton is not installed"
    if not (INTERPRETED or torch.cuda.is_available()):
        return "PyTorch finds no GPU (TRITON_INTERPRET=1 runs Triton's kernels on the CPU, slowly)"
    from . import ops  # noqa: F401  # importing Triton takes a while, and Dynamo can trace this statement

    return None


def run(op: str, *arguments: Any) -> Any:
    return getattr(getattr(torch.ops, NAMESPACE), op)(*arguments)
