"""Records tests/recorded: float64 numbers of the released MotionRNN program, thuml/MotionRNN at commit 002415f.

    python tests/record_cases.py --official PATH --out tests/recorded

PATH is a checkout of that program; its files are imported and run as they are. A case is one .npz of float64
arrays: parameters and inputs (all exact in float32), outputs, one random cotangent per output, and the
gradients of sum(out * cot); `golden.py` reads it. Results are rounded by at most 2^-35 = 3e-11 of their
largest value, a thirtieth of the tightest tolerance, which makes the files a third smaller.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib
import json
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from golden import largest, relative_error
from torch import Tensor, nn

Tensors = dict[str, Tensor]
Call = Callable[[nn.Module, Tensors], tuple[Tensors, Tensors]]  # -> outputs, intermediates

REPOSITORY, COMMIT = "thuml/MotionRNN", "002415f4e7384f14fd20501b76febe8c5caaca7e"
GRU = "core/layers/MotionGRU.py"
CELL = "core/layers/SpatioTemporalLSTMCell_Motion_Highway.py"
NET = "core/models/MotionRNN_PredRNN.py"
BLOBS = {  # git's hashes of the files at that commit
    GRU: "a9af4c1a9c62a0f20c8eb0995755c2a03ac74317",
    CELL: "4e83adc60b475b4f011be5b0ec6e6b68a68e2a95",
    NET: "673d1680ed9807da4c064060f7d1bb817a8b4246",
}
# Nearest an offset may come to an integer: float32 then takes the same floor, so the same one-sided derivative.
MARGIN = 1e-4


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


# The families of cases, named as in test_golden.py.


def warp(g, module_of, *, c: int, b: int, h: int, w: int, kind: str, k: int = 3, out: int = 0) -> Case:
    kwargs = {"inc": c, "outc": out or c, "neighbour": k}
    shape = b, 2 * k * k, h, w
    if kind == "exact":  # integers, and taps on and next to every border, in steps of 1/4
        offset = torch.randint(-4 * max(h, w), 4 * max(h, w) + 1, shape, generator=g).double() / 4
        offset[:, ::2] = offset[:, ::2].round()
    else:
        offset = offsets(g, *shape, scale=float(kind))
    inputs = {"x": normal(g, b, c, h, w), "offset": offset}

    def call(module: nn.Module, given: Tensors) -> tuple[Tensors, Tensors]:
        return {"out": module([given["x"], given["offset"]])}, {}

    module = redrawn(module_of("core.layers.MotionGRU").Warp(**kwargs), g)
    return Case(GRU, kwargs, module, inputs, call, {"kind": kind}, margin=-1.0 if kind == "exact" else MARGIN)


def motion_gru(
    g, module_of, *, c: int, b: int, h: int, w: int, steps: int, scale=1.0, k: int = 3, shared: bool = False
) -> Case:
    motion = 2 * k * k
    kwargs = {"in_channel": c, "motion_hidden": motion, "neighbour": k}
    lead = (b,) if steps == 1 else (steps, b)
    inputs = {"x": normal(g, *lead, c, h, w)}
    for name in ("offset_mean",) if shared else ("pre_offset", "mean"):
        inputs[name] = offsets(g, b, motion, h, w, scale=scale)

    def call(module: nn.Module, given: Tensors) -> tuple[Tensors, Tensors]:
        offset, mean = (given.get(name, given.get("offset_mean")) for name in ("pre_offset", "mean"))
        results = []
        for x in given["x"].reshape(steps, b, c, h, w):
            out, offset, mean = module(x, offset, mean)
            results.append((out, offset, mean))
        outputs = (torch.stack(parts).reshape(*lead, *parts[0].shape[1:]) for parts in zip(*results))
        return dict(zip(("x", "offset", "mean"), outputs)), {}

    module = redrawn(module_of("core.layers.MotionGRU").MotionGRU(**kwargs), g)
    return Case(GRU, kwargs, module, inputs, call, {"T": steps, "shared_offset_mean": shared})


def st_lstm(g, module_of, *, c_in: int, c: int, b: int, h: int, w: int, f: int, norm: int) -> Case:
    kwargs = {"in_channel": c_in, "num_hidden": c, "height": h, "width": w, "filter_size": f}
    kwargs |= {"stride": 1, "layer_norm": norm}
    inputs = {"x": normal(g, b, c_in, h, w)}
    inputs |= {name: normal(g, b, c, h, w) for name in ("h", "c", "m", "motion_highway")}

    def call(module: nn.Module, given: Tensors) -> tuple[Tensors, Tensors]:
        return dict(zip(("h", "c", "m", "motion_highway"), module(*given.values()))), {}

    module = module_of("core.layers.SpatioTemporalLSTMCell_Motion_Highway").SpatioTemporalLSTMCell(**kwargs)
    return Case(CELL, kwargs, redrawn(module, g), inputs, call)


def motion_rnn(g, module_of, *, layers: int, hidden: int, configs: dict, mask: str, scale=None) -> Case:
    """`configs` as the program's; initial states are its own Xavier draws, or N(0, scale^2)."""
    configs = {"stride": 1, "device": "cpu", **configs}
    kwargs = {"num_layers": layers, "num_hidden": [hidden] * layers, "configs": configs}
    p, b, total, n_input = (configs[n] for n in ("patch_size", "batch_size", "total_length", "input_length"))
    h, w = configs["img_height"] // p, configs["img_width"] // p
    folded = p * p * configs["img_channel"]
    shapes = {f"hc0_{i}": (b, hidden, h, w) for i in range(layers)}
    for i in range(layers - 1):
        shapes[f"unused_h_conv_{i}"] = b, hidden // 4, h // 2, w // 2
        shapes[f"offset_mean0_{i}"] = b, 18, h // 2, w // 2
    shapes["mem0"] = shapes["unused_highway"] = b, hidden, h, w

    inputs = {"frames": uniform(g, b, total, h, w, folded)}
    inputs["mask_true"] = sampling_mask(g, mask, b, total - 1 - n_input, h, w, folded)
    for name, shape in shapes.items():
        if scale is None:
            drawn = nn.init.xavier_normal_(torch.empty(shape), generator=g).double()
        else:
            drawn = offsets(g, *shape, scale=scale)
        inputs[f"init/{name}"] = drawn

    def call(module: nn.Module, given: Tensors) -> tuple[Tensors, Tensors]:
        states, motion = iter([given[f"init/{name}"] for name in shapes]), [[] for _ in module.motion_list]
        hooks = [
            gru.register_forward_hook(lambda _m, _i, out, i=i: motion[i].append(out))
            for i, gru in enumerate(module.motion_list)
        ]
        with mock.patch("torch.nn.init.xavier_normal_", lambda tensor: tensor.copy_(next(states))):
            frames, loss = module(given["frames"], given["mask_true"])
        for hook in hooks:
            hook.remove()
        between = {
            f"motion{i}/{name}": torch.stack(parts)
            for i, steps in enumerate(motion)
            for name, parts in zip(("x", "offset", "mean"), zip(*steps))
        }
        return {"frames": frames, "loss": loss}, between

    net = module_of("core.models.MotionRNN_PredRNN").RNN(
        layers, [hidden] * layers, SimpleNamespace(**configs)
    )
    note = "hc0_i is both H and C of layer i, offset_mean0_i both offset and mean; unused_* reach no output"
    meta = {"state_order": list(shapes), "mask_kind": mask, "note": note}
    return Case(NET, kwargs, redrawn(net, g), inputs, call, meta)


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


def record(
    folder: Path, name: str, make: Callable[[torch.Generator], Case], repository=REPOSITORY, commit=COMMIT
) -> Path:
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
    meta = {"name": name, "repository": repository, "source": case.source, "commit": commit}
    meta |= {"cls": type(case.module).__name__, "kwargs": case.kwargs, "none_grad": none_grad}
    meta |= {"margin": distance, "fp32_relerr": errors, **case.meta}
    arrays = {key: t.numpy() for key, t in given.items()} | {k: rounded(t).numpy() for k, t in exact.items()}
    path = folder / f"{name}.npz"
    np.savez_compressed(path, **{"meta/json": np.array(json.dumps(meta))}, **arrays)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB, worst float32 error {max(errors.values()):.1e}")
    return path


def importer(checkout: Path) -> Callable[[str], Any]:
    """Imports modules of the checkout, after comparing its files with the commit's."""
    for file, known in BLOBS.items():
        content = (checkout / file).read_bytes() if (checkout / file).is_file() else b""
        if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != known:
            raise SystemExit(f"{checkout / file} is not that of {REPOSITORY} at {COMMIT}")
    sys.path.insert(0, str(checkout))
    return importlib.import_module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--official", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the program: deprecated hooks, meshgrid
    load = importer(arguments.official)
    arguments.out.mkdir(parents=True, exist_ok=True)

    size = {"img_height": 8, "img_width": 12, "img_channel": 1, "patch_size": 2, "batch_size": 2}
    run = {"input_length": 2, "total_length": 4, "filter_size": 3, "layer_norm": 0}
    net = {"layers": 3, "hidden": 4, "configs": {**size, **run}, "mask": "cont"}
    cases = {
        "warp_00_u3_c3_b2_5x7": partial(warp, c=3, out=2, b=2, h=5, w=7, kind="3"),
        "warp_01_exact_c2_b2_5x4": partial(warp, c=2, b=2, h=5, w=4, kind="exact"),
        "warp_02_k5_c2_b1_3x4": partial(warp, c=2, b=1, h=3, w=4, kind="1.5", k=5),
        "motiongru_00_step_c2_b1_5x4": partial(motion_gru, c=2, b=1, h=5, w=4, steps=1),
        "motiongru_01_chain_k1_c3_b2_4x5": partial(motion_gru, c=3, b=2, h=4, w=5, steps=4, k=1),
        "stlstm_highway_00_f3_ln0_b2_4x5": partial(st_lstm, c_in=3, c=2, b=2, h=4, w=5, f=3, norm=0),
        "motionrnn_00_L3_f3_ln0_b2_8x12x1_cont_xavier": partial(motion_rnn, **net),
    }
    for name, make in cases.items():
        record(arguments.out, name, partial(make, module_of=load))


if __name__ == "__main__":
    main()
