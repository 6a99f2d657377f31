"""The facts that `motionrnn info` prints and that a bug report needs.

These are versions, devices, build flags, environment variables and the backends: why one is absent, and whether each
other agrees with the reference. This module needs only torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from .. import __version__, backends, ops
from ..backends import native, triton

# Variables that change what is computed or how. None of them holds a secret.
_VARIABLES = re.compile(
    "(MOTIONRNN_EXT|TRITON|PYTORCH|TORCH|CUDA|CUBLAS|CUDNN|NCCL|MALLOC|OMP|KMP|GOMP|MKL|ONEDNN|DNNL)_[A-Z0-9_]+"
    "|CC|CXX|LD_PRELOAD|GLIBC_TUNABLES"
)
_TOLERANCE = 5e-5  # the largest relative error in float32
_DRIVER = Path("/proc/driver/nvidia/version")
_PACKAGES = (
    "triton",
    "lightning",
    "torchmetrics",
    "scikit-image",
    "scikit-learn",
    "scipy",
    "matplotlib",
    "rich",
)


def collect() -> dict[str, Any]:
    """Return all facts in plain types, as `motionrnn info --json` prints them."""
    reasons = {name: backends.unavailable_reason(name) for name in backends.NAMES}
    facts = {
        "motionrnn_ext": __version__,
        "installed": _installed(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "devices": [_device(i) for i in range(torch.cuda.device_count())],
        },
        "packages": {name: _version(name) for name in _PACKAGES},
        "backends": {name: {"available": why is None, "why_not": why} for name, why in reasons.items()},
        "smoke_runs": {name: smoke_run(name) for name, why in reasons.items() if why is None},
        "backend_in_force": backends.current_backend(),
        "cpu_instruction_set": _instruction_set() if reasons["cpu"] is None else None,
        "cpu_capability_of_torch": torch.backends.cpu.get_cpu_capability(),
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
        "environment": {n: v for n, v in sorted(os.environ.items()) if _VARIABLES.fullmatch(n)},
    }
    return _without_home(facts)


def smoke_run(name: str) -> dict[str, Any]:
    """Compare one op on a backend, forward and backward in float32, with the reference in float64.

    Return the largest `error` of a tensor relative to its largest value, or the error message that was `raised`.
    """
    device = "cuda" if name == "cuda" or (name == "triton" and not triton.INTERPRETED) else "cpu"
    try:
        generator = torch.Generator().manual_seed(0)
        shapes = ((1, 8, 5, 6), (1, 18, 5, 6), (1, 9, 5, 6), (8, 8, 3, 3))
        drawn = [torch.randn(shape, generator=generator) for shape in shapes]
        with backends.backend(name):
            found = _warp_and_gradients([t.to(device) for t in drawn])
        with backends.backend("reference"):
            expected = _warp_and_gradients([t.double() for t in drawn])
        errors = [float((f.cpu() - e).abs().max() / e.abs().max()) for f, e in zip(found, expected)]
    except Exception as error:
        return {"raised": f"{type(error).__name__}: {_line(error)}"}
    if not all(map(math.isfinite, errors)):
        return {"raised": "the result is not finite"}
    return {"error": max(errors)}


def _warp_and_gradients(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [t.requires_grad_() for t in tensors]
    out = ops.offset_warp(*leaves)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


def _instruction_set() -> str | None:
    """Return the instruction set of the CPU kernels, or None if MOTIONRNN_EXT_CPU_ISA is wrong, which `smoke_run`
    reports."""
    try:
        return native.cpu_instruction_set()
    except RuntimeError:
        return None


def text(facts: dict[str, Any]) -> str:
    """Return the facts as lines for a reader."""
    torch_facts = facts["torch"]
    lines = [
        f"motionrnn_ext  {facts['motionrnn_ext']}, {facts['installed']}",
        f"python         {facts['python']}, {facts['platform']}",
        f"torch          {torch_facts['version']}, {_toolkit(torch_facts)}",
        f"deterministic  {'yes' if torch_facts['deterministic'] else 'no'}",
        f"GPUs           {', '.join(torch_facts['devices']) or 'none'}",
        f"threads        {facts['threads']} on {facts['processors']} processors",
        f"instructions   {facts['cpu_instruction_set'] or 'none'} here, {facts['cpu_capability_of_torch']} in torch",
        "",
        f"backends       (in force: {facts['backend_in_force']})",
    ]
    for name, state in facts["backends"].items():
        said = _result(facts["smoke_runs"][name]) if state["available"] else f"no: {_line(state['why_not'])}"
        lines.append(f"  {name:<12} {said}")
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
    lines += ["", "environment" if facts["environment"] else "environment    nothing set that matters"]
    lines += [f"  {name}={value}" for name, value in facts["environment"].items()]
    return "\n".join(lines)


def markdown(facts: dict[str, Any]) -> str:
    """Return the text as a Markdown block, for an issue."""
    return f"```\n{text(facts)}\n```"


def _result(run: dict[str, Any]) -> str:
    if "raised" in run:
        return f"FAILS: {run['raised']}"
    return f"{'yes' if run['error'] <= _TOLERANCE else 'WRONG'}, error {run['error']:.0e}"


def _toolkit(facts: dict[str, Any]) -> str:
    if facts["hip"]:
        return f"HIP {facts['hip']}"
    if not facts["cuda"]:
        return "without CUDA"
    return f"CUDA {facts['cuda']}, cuDNN {facts['cudnn'] or 'none'}, driver {facts['driver'] or 'none'}"


def _driver() -> str | None:
    """Return the version of NVIDIA's driver from its kernel module, or None."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", _DRIVER.read_text())
    except OSError:
        return None
    return found and found[0]


def _installed() -> str:
    try:
        distribution = importlib.metadata.distribution("motionrnn-ext")
    except importlib.metadata.PackageNotFoundError:
        return "not installed, run from its folder"
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    return "editable" if origin.get("dir_info", {}).get("editable") else "installed"


def _without_home(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_home(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without_home(entry) for entry in value]
    try:
        home = str(Path.home())
    except RuntimeError:  # a container's user may have neither HOME nor an entry in passwd
        return value
    return value.replace(home, "~") if isinstance(value, str) and home != "/" else value


def _device(index: int) -> str:
    """Return the name and compute capability of a GPU, in the notation of the build's architectures."""
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
