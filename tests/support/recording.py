"""How one case becomes one file of tests/recorded: draws, evaluation in float64 and float32, rounding.

A case is one .npz of float64 arrays: parameters and inputs (all exact in float32), outputs, one random
cotangent per output, and the gradients of sum(out * cot); `golden.py` reads it. Results are rounded by at most
2^-34 = 6e-11 of their largest value, below the tightest tolerance, which makes the files a third smaller.
"""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden import largest, relative_error
from torch import Tensor, nn

Tensors = dict[str, Tensor]
Call = Callable[[nn.Module, Tensors], tuple[Tensors, Tensors]]  # -> outputs, intermediates

# Nearest an offset may come to an integer: float32 then takes the same floor, so the same one-sided derivative.
MARGIN = 1e-4


@dataclass
class Program:
    """A public program at one commit; `blobs` are git's hashes of the files that are run."""

    repository: str
    commit: str
    blobs: dict[str, str]

    def verify(self, checkout: Path) -> None:
        """Ends the run if a file of the checkout is not the commit's."""
        for file, known in self.blobs.items():
            content = (checkout / file).read_bytes() if (checkout / file).is_file() else b""
            if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != known:
                raise SystemExit(f"{checkout / file} is not that of {self.repository} at {self.commit}")


@dataclass
class Case:
    """One call of a program: `call(module, inputs)`."""

    source: str
    kwargs: dict[str, Any]
    module: nn.Module
    inputs: Tensors
    call: Call
    meta: dict[str, Any] = field(default_factory=dict)
    margin: float = MARGIN


# Draws. Multiples of 2^-8 (offsets: odd multiples of 2^-9) are exact in float32, and compress well.


def grid(tensor: Tensor) -> Tensor:
    return (tensor * 256).round() / 256


def normal(g: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return grid(scale * torch.randn(shape, generator=g, dtype=torch.float64))


def uniform(g: torch.Generator, *shape: int) -> Tensor:
    return grid(torch.rand(shape, generator=g, dtype=torch.float64))


def offsets(g: torch.Generator, *shape: int, scale: float) -> Tensor:
    return normal(g, *shape, scale=scale) + 2**-9


def redrawn(module: nn.Module, g: torch.Generator) -> nn.Module:
    """The module in float64 with random parameters: the official initial weights are partly 0."""
    module.double()
    with torch.no_grad():
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                if isinstance(owner, nn.LayerNorm):
                    drawn = normal(g, *parameter.shape, scale=0.3 if name == "weight" else 0.2)
                    drawn += name == "weight"
                elif name == "weight":
                    drawn = normal(g, *parameter.shape, scale=parameter[0].numel() ** -0.5)
                else:
                    drawn = normal(g, *parameter.shape, scale=0.3)
                parameter.copy_(drawn)
    return module


def sampling_mask(g, kind: str, b: int, t: int, h: int, w: int, folded: int) -> Tensor:
    """0 or 1 throughout ("zero", "one"), by sample and step ("bt"), by element ("binary"), or between."""
    full = b, t, h, w, folded
    if kind in ("zero", "one"):
        return torch.full(full, float(kind == "one"), dtype=torch.float64)
    if kind == "bt":
        return (uniform(g, b, t, 1, 1, 1) < 0.5).double().expand(full).contiguous()
    return uniform(g, *full) if kind == "cont" else (uniform(g, *full) < 0.5).double()


# Recording.


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)  # the program's net makes its states in it
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def evaluate(case: Case, cotangents: Tensors, dtype: torch.dtype) -> tuple[Tensors, list[str]]:
    """Outputs, intermediates and gradients by key; and the keys whose gradient is None, given as zeros."""
    module = copy.deepcopy(case.module).to(dtype)
    inputs = {name: t.to(dtype, copy=True).requires_grad_() for name, t in case.inputs.items()}
    with default_dtype(dtype):
        outputs, between = case.call(module, inputs)
    total = sum((outputs[name] * cot.to(dtype)).sum() for name, cot in cotangents.items())
    leaves = {f"grad_in/{name}": t for name, t in inputs.items()}
    leaves |= {f"grad_param/{name}": p for name, p in module.named_parameters()}
    gradients = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()), allow_unused=True)))
    missing = [key for key, gradient in gradients.items() if gradient is None]
    found = {f"out/{name}": t for name, t in outputs.items()} | {f"aux/{n}": t for n, t in between.items()}
    found |= {key: torch.zeros_like(leaves[key]) if t is None else t for key, t in gradients.items()}
    return {key: t.detach().double() for key, t in found.items()}, missing


def margin(case: Case) -> float:
    """Smallest distance of an offset that a warp reads to an integer; 1 without a warp."""
    with torch.no_grad(), default_dtype(torch.float64):
        outputs, between = case.call(case.module, case.inputs)
    named = {**(case.inputs if "outc" in case.kwargs else outputs), **between}
    used = [t for name, t in named.items() if name.split("/")[-1] == "offset"]
    return min(((t - t.round()).abs().min().item() for t in used), default=1.0)


def rounded(tensor: Tensor) -> Tensor:
    scale = largest(tensor)
    if scale == 0:
        return tensor
    step = 2.0 ** (np.ceil(np.log2(scale)) - 34)
    return (tensor / step).round() * step


def record(folder: Path, name: str, make: Callable[[torch.Generator], Case], program: Program) -> Path:
    """Write one case; seeds are tried until no offset is nearer to an integer than the case's margin."""
    for seed in range(200):
        g = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
        case = make(g)
        distance = margin(case)
        if distance >= case.margin:
            break
    else:
        raise SystemExit(f"{name}: an offset is always within {case.margin} of an integer; make it smaller")
    with torch.no_grad(), default_dtype(torch.float64):
        shapes = {key: t.shape for key, t in case.call(case.module, case.inputs)[0].items()}
    cotangents = {key: normal(g, *shape) for key, shape in shapes.items()}
    exact, none_grad = evaluate(case, cotangents, torch.float64)
    single, _ = evaluate(case, cotangents, torch.float32)
    errors = {key: relative_error(single[key], t) for key, t in exact.items() if not key.startswith("aux/")}
    given = {f"in/{n}": t for n, t in case.inputs.items()} | {f"cot/{n}": t for n, t in cotangents.items()}
    given |= {f"param/{n}": t for n, t in case.module.state_dict().items()}
    assert all(torch.equal(t, t.float().double()) for t in given.values()), "an input is not exact in float32"
    meta = {"name": name, "repository": program.repository, "source": case.source, "commit": program.commit}
    meta |= {"cls": type(case.module).__name__, "kwargs": case.kwargs, "none_grad": none_grad}
    meta |= {"margin": distance, "fp32_relerr": errors, **case.meta}
    arrays = {key: t.numpy() for key, t in given.items()} | {k: rounded(t).numpy() for k, t in exact.items()}
    path = folder / f"{name}.npz"
    np.savez_compressed(path, **{"meta/json": np.array(json.dumps(meta))}, **arrays)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB, worst float32 error {max(errors.values()):.1e}")
    return path
