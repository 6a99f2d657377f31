"""Backends: the implementations of the ops, and the choice between them.

    reference   pure PyTorch, any device, any order of derivative: the specification
    cpu         C++ kernels
    cuda        CUDA kernels
    triton      Triton kernels

`auto`, the default, takes the fastest backend (cuda, triton, cpu, reference) for the tensor's device and dtype. It
warns once if that is `reference` because there are no kernels. Cases that the kernels do not support run on reference:
forward-mode differentiation, torch.func's transforms other than vmap, numbers that are tensors, an export to ONNX. A
name chosen by `backend`, `set_backend` or the environment variable MOTIONRNN_EXT_BACKEND never falls back. Backward
runs on the backend of its forward.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import native, onnx_warp, reference, triton
from .transforms import is_for_onnx, is_transformed

NAMES = ("reference", "cpu", "cuda", "triton")

_VARIABLE = "MOTIONRNN_EXT_BACKEND"
# Blanks count as unset, as in every variable of the package.
_named = os.environ.get(_VARIABLE, "").strip()
# The choice of a thread is kept in a thread-local, that of all others in a global: Dynamo cannot trace a ContextVar.
_chosen = _named or "auto"
_local = threading.local()
_warned: set[str] = set()


def available_backends() -> tuple[str, ...]:
    """Return the backends that can run on this machine, `reference` first."""
    return tuple(name for name in NAMES if unavailable_reason(name) is None)


def unavailable_reason(name: str) -> str | None:
    """Return the reason why a backend cannot run here, in one sentence, or None if it can."""
    if name == "reference":
        return None
    if name == "triton":
        return triton.unavailable_reason()
    return native.unavailable_reason(name)


def set_backend(name: str) -> None:
    """Choose the backend of all threads that have no choice of their own: "auto" or one of `available_backends()`.

    Raises:
        ValueError: the name is unknown, or that backend cannot run here; the message says why.
    """
    global _chosen
    _check_name(name)
    _chosen = name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the backend of this thread within a `with` block. The errors are those of `set_backend`."""
    _check_name(name)
    before = getattr(_local, "chosen", None)
    _local.chosen = name
    try:
        yield
    finally:
        _local.chosen = before


def check_variables() -> None:
    """Raise the error that would be raised later if MOTIONRNN_EXT_BACKEND, MOTIONRNN_EXT_CPU_ISA or
    MOTIONRNN_EXT_WINOGRAD has a wrong value.

    A program calls this before its work, since importing the package never raises.

    Raises:
        ValueError: the backend is unknown, or cannot run here; MOTIONRNN_EXT_WINOGRAD is neither 0 nor 1.
        RuntimeError: the instruction set is unknown, or this CPU does not have it.
    """
    from . import convolution  # it asks this module for the backend in force

    _check_name(current_backend())
    convolution.is_winograd_wanted()
    if unavailable_reason("cpu") is None:
        native.cpu_instruction_set()


def current_backend() -> str:
    """Return the choice in force in this thread: "auto" or the name of a backend."""
    return getattr(_local, "chosen", None) or _chosen


def dispatch(op: str, first: Tensor, *arguments: Any) -> Any:
    """Run an op, whose arguments have been checked, on the backend in force."""
    name = current_backend()
    if name == "auto":
        name = _automatic(first)
    else:
        _check_fits(name, first)
    if name == "reference":
        return _reference(op, first, *arguments)
    return (triton if name == "triton" else native).call(op, first, *arguments)


def dispatch_formulas(op: str, first: Tensor, *arguments: Any) -> Any:
    """Run an op that has a tensor in place of a number on reference, which differentiates by it.

    Raises:
        TypeError: another backend was chosen; its kernels take numbers.
    """
    name = current_backend()
    _check_name(name)
    if name not in ("auto", "reference"):
        raise TypeError(
            f"{op}: backend '{name}' was chosen, but it takes alpha or forget_bias as a number, without gradient; give "
            "float(...) of the tensor, or choose 'auto' or 'reference'"
        )
    return _reference(op, first, *arguments)


def kernels(first: Tensor) -> Any | None:
    """Return the namespace of the ops of the backend in force, `torch.ops.<namespace>`; None for reference.

    Raises:
        ValueError, TypeError: a backend was chosen that cannot run on this tensor.
    """
    name = _in_force(first)
    if name == "reference":
        return None
    _check_fits(name, first)
    return getattr(torch.ops, triton.NAMESPACE if name == "triton" else native.NAMESPACE)


def runs_cuda_kernels(first: Tensor) -> bool:
    """Return whether the CUDA kernels are in force, which join motion_update and offset_warp."""
    name = _in_force(first)
    return first.device.type in native.CUDA_KERNELS_ON and name not in ("reference", "triton")


def runs_kernels(first: Tensor) -> bool:
    """Return whether kernels are in force, which join the gates' convolutions and motion_update."""
    return _in_force(first) != "reference"


def runs_cpu_kernels(first: Tensor) -> bool:
    """Return whether the C++ kernels are in force, which have Winograd's convolutions."""
    return _in_force(first) == "cpu" and "cpu" not in native.CUDA_KERNELS_ON


def runs_gpu_kernels(first: Tensor) -> bool:
    """Return whether CUDA or Triton kernels are in force, which keep channels_last and are fastest with it."""
    return runs_cuda_kernels(first) or _in_force(first) == "triton"


def _in_force(first: Tensor) -> str:
    name = current_backend()
    return _automatic(first) if name == "auto" else name


def _automatic(first: Tensor) -> str:
    device = first.device.type
    if device not in ("cpu", "cuda") or (device == "cuda" and first.dtype == torch.float64):
        return "reference"
    if is_transformed() or is_for_onnx():
        return "reference"
    if native.unavailable_reason(device) is None:
        return device
    if device == "cuda" and triton.unavailable_reason() is None:
        return "triton"
    if device not in _warned and not torch.compiler.is_compiling():
        _warned.add(device)
        names = ("cuda", "triton") if device == "cuda" else (device,)
        reasons = "; ".join(str(unavailable_reason(name)) for name in names)
        warnings.warn(
            f"motionrnn_ext: tensors on {device} run on the slow 'reference' backend, because "
            f"{reasons}. `motionrnn info` says more.",
            stacklevel=4,
        )
    return "reference"


def _check_fits(name: str, first: Tensor) -> None:
    _check_name(name)
    if name == "reference":
        return
    if first.device.type != _device_of(name):
        raise ValueError(
            f"backend '{name}' was chosen, but the tensors are on {first.device}; move them or choose 'auto'"
        )
    if is_transformed():
        raise RuntimeError(
            f"backend '{name}' was chosen, but it has no forward-mode derivatives, and of torch.func's transforms "
            "vmap alone; choose 'auto' or 'reference'"
        )
    if first.device.type == "cuda" and first.dtype == torch.float64:
        raise TypeError(f"backend '{name}' was chosen, but it has no float64; choose 'auto' or 'reference'")


def _device_of(name: str) -> str:
    """Return the device type of a backend's tensors. A ROCm build of PyTorch names its devices cuda, too."""
    if name == "triton":
        return "cpu" if triton.INTERPRETED else "cuda"
    return name


def _check_name(name: str) -> None:
    if name == "auto":
        return
    if name not in NAMES:
        raise ValueError(f"unknown backend '{name}'{_origin(name)}; known are: auto, {', '.join(NAMES)}")
    reason = unavailable_reason(name)
    if reason is not None:
        raise ValueError(
            f"backend '{name}'{_origin(name)} is not available: {reason}; "
            f"available are: auto, {', '.join(available_backends())}"
        )


def _origin(name: str) -> str:
    """Return the variable's name in parentheses, for a message, if a name is in force because it stands there."""
    return f" ({_VARIABLE})" if current_backend() == name == _named else ""


def _reference(op: str, first: Tensor, *arguments: Any) -> Any:
    device = first.device.type
    formula = onnx_warp.offset_warp if op == "offset_warp" and is_for_onnx() else getattr(reference, op)
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        # Autocast would round the reference's arithmetic to half precision.
        with torch.autocast(device, enabled=False):
            return formula(first, *arguments)
    return formula(first, *arguments)
