"""The C++ libraries: how they are found and loaded, and how their ops are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..name import PACKAGE
from .registration import direct, register, register_on_cpu

# The namespace of the ops that `call` runs. A library is built for one (MOTIONRNN_EXT_NAMESPACE in CMakeLists.txt).
NAMESPACE = PACKAGE
# The devices that the CUDA kernels run on. Tests on the PTX interpreter add "cpu".
CUDA_KERNELS_ON = {"cuda"}
_FOLDER = Path(__file__).parent.parent / "lib"
_LIBRARIES = {name: _FOLDER / f"libmotionrnn_ext_{name}.so" for name in ("cpu", "cuda")}
# The reason why setup.py left the native library out.
_SKIPPED = Path(__file__).parent.parent / "_build_skipped.txt"

# The reason why a library is missing, in one sentence, and the exception if loading it failed.
_missing: dict[str, str] = {}
load_errors: dict[str, OSError] = {}


def unavailable_reason(name: str) -> str | None:
    """Return the reason why "cpu" or "cuda" cannot run here, in one sentence, or None if it can."""
    return _missing.get(name)


def call(op: str, *arguments: Any) -> Any:
    """Call an op of the libraries."""
    return direct.call(NAMESPACE, op, arguments)


def run(op: str, *arguments: Any) -> Any:
    """Run an op of the libraries below autograd, which then records nothing."""
    return direct.run(getattr(getattr(torch.ops, NAMESPACE), op).default, arguments)


def cpu_instruction_set() -> str:
    """Return the instruction set of the CPU kernels that run: baseline, x86_64_v3 (AVX2) or x86_64_v4 (AVX-512)."""
    return str(getattr(torch.ops, NAMESPACE).cpu_instruction_set())


def build_info() -> dict[str, Any]:
    """Return the versions and options that the libraries were built with; an empty dict for a pure Python install.

    Its keys are those of csrc/build.json.in.
    """
    facts = _FOLDER / "build.json"
    return dict(json.loads(facts.read_text())) if facts.is_file() else {}


def _load(name: str) -> None:
    path = _LIBRARIES[name]
    if not path.is_file():
        skipped = _SKIPPED.read_text().strip() if _SKIPPED.is_file() else ""
        _missing[name] = (
            skipped or build_info().get(f"{name}_left_out") or "this install has no native library for it"
        )
        return
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        load_errors[name] = error
        _missing[name] = f"its library {path.name} does not load: {error.__cause__ or error}"


_load("cpu")
if "cpu" not in _missing:
    register(NAMESPACE)
    register_on_cpu(NAMESPACE)
if torch.version.cuda is None:
    _missing["cuda"] = "this PyTorch was built without CUDA"
elif "cpu" in _missing:
    _missing["cuda"] = _missing["cpu"]
else:
    _load("cuda")
    if "cuda" not in _missing and not torch.cuda.is_available():
        _missing["cuda"] = "PyTorch finds no CUDA device"
