"""The Triton kernels for NVIDIA and AMD GPUs, which need no nvcc, no C++ compiler and no native library.

    launch.py              kernels as ops of torch, their launch, block sizes
    tuning.py, measured.py block sizes that were measured, kept on disk and in the package
    scalar.py              functions of one element and their derivatives, loads and stores
    bilinear.py            one tap of the warp: its cell, the corners of that, their derivatives
    images.py              the layout of images, tiles of pixels and channels
    pointwise.py           the layout of a pointwise kernel's operands
    fixed_point.py         sums that do not depend on the order of their addends
    tap_gates.py           the kernels of motion_gates.py for convolutions of any size
    pixel_gates.py         the same for 1x1 convolutions
    motion_gru.py, motion_gates.py, recurrent_gates.py, lstm_steps.py, offset_warp.py, offset_warp_backward.py
                           a stem each: forward kernel, backward kernel, launch
    offset_warp_finish.py  the last launch of the warp's backward, and its parts for the gates' kernels
    gated_warp.py          gates and warp with packed weights, as ops for the node of a MotionGRU step
    decode_blend.py        the end of a step with an output gate of 1x1, as ops for the same node

A kernel is compiled for the GPU at hand when it is first launched; Triton needs a C compiler for that. Under Triton's
interpreter (TRITON_INTERPRET=1 before triton is imported) kernels run on CPU tensors instead, slowly, for tests.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from ...name import PACKAGE
from ..registration import direct

NAMESPACE = f"{PACKAGE}_triton"


def is_on(variable: str) -> bool:
    """Return whether an environment variable is set to one of the words that Triton takes for yes."""
    return os.environ.get(variable, "").lower() in ("1", "true", "on", "y", "yes")


def is_off(variable: str) -> bool:
    """Return whether an environment variable is set to one of the words that Triton takes for no."""
    return os.environ.get(variable, "").lower() in ("0", "false", "off", "n", "no")


# Whether kernels run on CPU tensors.
INTERPRETED = is_on("TRITON_INTERPRET")
_IS_INSTALLED = importlib.util.find_spec("triton") is not None


def c_compiler() -> str | None:
    """Return the C compiler that Triton uses at the first launch on a machine, or None if there is none.

    It compiles the code between Python and the driver.
    """
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def python_headers() -> Path | None:
    """Return the folder with Python.h, which that code includes, or None if there is none."""
    import sysconfig

    # The folder of Debian's own scheme does not hold it.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    folder = Path(sysconfig.get_path("include", scheme))
    return folder if (folder / "Python.h").is_file() else None


def _missing_tool() -> str | None:
    if c_compiler() is None:
        return "Triton needs a C compiler at its first launch: install gcc or clang, or name one in CC"
    if python_headers() is None:
        return "Triton needs Python.h at its first launch: install Python's headers (Debian, Ubuntu: python3-dev)"
    return None


# The search takes 3 ms of the import, and only a build of PyTorch for GPUs needs it.
_MISSING_TOOL = _missing_tool() if torch.backends.cuda.is_built() else None


def unavailable_reason() -> str | None:
    """Return the reason why the Triton kernels cannot run here, in one sentence, or None if they can.

    In that case their ops have been defined.
    """
    if not _IS_INSTALLED:
        return "the package triton is not installed"
    if not INTERPRETED:
        if not torch.cuda.is_available():
            return "PyTorch finds no GPU (TRITON_INTERPRET=1 runs Triton's kernels on the CPU, slowly)"
        if _MISSING_TOOL is not None:
            return _MISSING_TOOL
    # The import is here because importing Triton takes a while. Dynamo can trace this statement.
    from . import ops  # noqa: F401

    return None


def call(op: str, *arguments: Any) -> Any:
    """Call an op of the Triton kernels."""
    return direct.call(NAMESPACE, op, arguments)
