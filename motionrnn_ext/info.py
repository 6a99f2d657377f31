"""What `motionrnn info` prints: versions, backends and why one is absent, build flags, threads. Needs torch alone."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from typing import Any

import torch

from . import __version__, backends
from .backends import native, triton

_PACKAGES = ("triton", "lightning", "torchmetrics", "scikit-image", "scikit-learn", "matplotlib", "rich")


def collect() -> dict[str, Any]:
    """Plain types only, as `motionrnn info --json` prints them."""
    reasons = {name: backends.unavailable_reason(name) for name in backends.NAMES}
    return {
        "motionrnn_ext": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "devices": [_device(i) for i in range(torch.cuda.device_count())],
        },
        "packages": {name: _version(name) for name in _PACKAGES},
        "backends": {name: {"available": why is None, "why_not": why} for name, why in reasons.items()},
        "backend_in_force": backends.current_backend(),
        "cpu_instruction_set": None if reasons["cpu"] else native.cpu_instruction_set(),
        "load_errors": {name: _line(error) for name, error in native.load_errors.items()},
        "build": {key: _value(value) for key, value in native.build_info().items()},
        "compiler": _compiler(),
        "triton": {
            "interpreted": triton.INTERPRETED,
            "c_compiler": triton.c_compiler(),
            "python_headers": _optional(triton.python_headers()),
        },
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
    }


def text(facts: dict[str, Any]) -> str:
    torch_facts = facts["torch"]
    cuda = f"CUDA {torch_facts['cuda']}" if torch_facts["cuda"] else "without CUDA"
    lines = [
        f"motionrnn_ext  {facts['motionrnn_ext']}",
        f"python         {facts['python']}, {facts['platform']}",
        f"torch          {torch_facts['version']}, {cuda}",
        f"GPUs           {', '.join(torch_facts['devices']) or 'none'}",
        f"threads        {facts['threads']} on {facts['processors']} processors",
        "",
        f"backends       (in force: {facts['backend_in_force']})",
    ]
    for name, state in facts["backends"].items():
        detail = f" ({facts['cpu_instruction_set']})" if name == "cpu" and state["available"] else ""
        lines.append(
            f"  {name:<12} {'yes' + detail if state['available'] else 'no: ' + _line(state['why_not'])}"
        )
    lines += [f"  {name} library: {error}" for name, error in facts["load_errors"].items()]
    lines += ["", "build" if facts["build"] else "build          pure Python, nothing compiled"]
    lines += [f"  {key:<18} {value}" for key, value in facts["build"].items()]
    lines += [
        "",
        f"compiler       {facts['compiler'] or 'none found; building needs one'}",
        f"triton         {_triton(facts['triton'])}",
    ]
    lines += ["", "packages"]
    lines += [f"  {name:<12} {version or 'not installed'}" for name, version in facts["packages"].items()]
    return "\n".join(lines)


def _device(index: int) -> str:
    """Name and compute capability, in the notation of the architectures that were built."""
    return "{} ({}.{})".format(torch.cuda.get_device_name(index), *torch.cuda.get_device_capability(index))


def _triton(facts: dict[str, Any]) -> str:
    if facts["interpreted"]:
        return "interpreted on the CPU (TRITON_INTERPRET=1)"
    compiler = facts["c_compiler"] or "no C compiler (gcc, clang or CC)"
    return f"at its first launch takes {compiler}, {facts['python_headers'] or 'no Python.h'}"


def _optional(value: object) -> str | None:
    return None if value is None else str(value)


def _value(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _compiler() -> str | None:
    names = (os.environ.get("CXX"), os.environ.get("CC"), "c++", "g++", "clang++", "cc", "gcc", "clang")
    return next((path for name in names if name and (path := shutil.which(name.split()[0]))), None)


def _line(message: object) -> str:
    return " ".join(str(message).split())
