"""Float64 cases recorded from the public implementations: values, cotangents and every gradient.

tests/recorded holds a few, made by `record_cases.py`; MOTIONRNN_EXT_GOLDEN may name a folder of more. A file
is an .npz of `param/`, `in/`, `out/`, `cot/`, `grad_in/`, `grad_param/`, `aux/` arrays and `meta/json`, where
gradients are those of the sum over outputs of out * cot.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from repository import TESTS
from torch import Tensor

RECORDED = TESTS / "recorded"
FOLDER = os.environ.get("MOTIONRNN_EXT_GOLDEN")
# Relative to max|reference|; measured worst cases stand in test_golden.py.
FLOAT64_TOLERANCE = 1e-9
FLOAT32_FLOOR = 2e-6

Tensors = dict[str, Tensor]
Run = Callable[["GoldenCase", Tensors, Tensors], tuple[Tensors, Tensors]]


def golden_cases(*patterns: str) -> list[object]:
    """pytest parameters: the files that match, of both folders, or one skip that gives the reason."""
    folders = {RECORDED, Path(FOLDER).resolve()} if FOLDER else {RECORDED}
    found = [path for folder in sorted(folders) for path in sorted(folder.glob("*.npz"))]
    paths = [path for path in found if any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)]
    if not paths:
        more = f"nor in {FOLDER}" if FOLDER else "and MOTIONRNN_EXT_GOLDEN, a folder of more, is unset"
        skip = pytest.mark.skip(reason=f"no {' or '.join(patterns)} in tests/recorded {more}")
        return [pytest.param(None, id="none", marks=skip)]
    return [pytest.param(path, id=path.stem) for path in paths]


class GoldenCase:
    """One file: its groups of arrays as float64 tensors by name, and its metadata."""

    def __init__(self, path: Path) -> None:
        import numpy as np

        with np.load(path) as file:
            self.meta = json.loads(str(file["meta/json"]))
            arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta/json"}
        self.arrays: Tensors = arrays

    def group(self, name: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensors:
        prefix = f"{name}/"
        return {k[len(prefix) :]: v.to(device, dtype) for k, v in self.arrays.items() if k.startswith(prefix)}

    def errors(self, run: Run, dtype: torch.dtype, device: str = "cpu") -> dict[str, tuple[float, float]]:
        """(relative error, tolerance) of every output and gradient.

        `run(case, parameters, inputs)` returns the outputs and, by official name, the tensors whose gradients
        are the parameters'. Where the reference is all zero, anything but zero (or no gradient) counts as
        infinite error.
        """
        inputs = {name: t.requires_grad_() for name, t in self.group("in", dtype, device).items()}
        outputs, parameters = run(self, self.group("param", dtype, device), inputs)
        cotangents = self.group("cot", dtype, device)
        total = sum((outputs[name] * cotangents[name]).sum() for name in cotangents)
        found = {f"out/{name}": outputs[name] for name in self.group("out")}
        for group, tensors in (("grad_in", inputs), ("grad_param", parameters)):
            gradients = torch.autograd.grad(
                total, list(tensors.values()), allow_unused=True, retain_graph=True
            )
            found.update({f"{group}/{name}": g for name, g in zip(tensors, gradients)})
        checked = [key for key in self.arrays if key.split("/")[0] in ("out", "grad_in", "grad_param")]
        return {
            key: (relative_error(found.get(key), self.arrays[key]), self.tolerance(key, dtype))
            for key in checked
        }

    def tolerance(self, key: str, dtype: torch.dtype) -> float:
        if dtype == torch.float64:
            return FLOAT64_TOLERANCE
        # The file's own error is one draw: a layer norm's weight of MIM's differs 11.1 times as much on the emulated
        # kernels, beside torch's convolutions of AVX-512.
        return max(12 * self.meta["fp32_relerr"].get(key, 0.0), FLOAT32_FLOOR)


def relative_error(found: Tensor | None, reference: Tensor) -> float:
    """max|found - reference| / max|reference|; where the reference is 0 throughout: 0 if found is too, else
    inf."""
    scale = largest(reference)
    if found is None:
        return 0.0 if scale == 0 else float("inf")
    if found.shape != reference.shape:
        raise AssertionError(f"shape {tuple(found.shape)}, expected {tuple(reference.shape)}")
    error = largest(found.detach().cpu().double() - reference)
    if scale == 0:
        return 0.0 if error == 0 else float("inf")
    return error / scale


def largest(tensor: Tensor) -> float:
    """max|tensor|, 0 if it is empty."""
    return tensor.abs().max().item() if tensor.numel() else 0.0
