"""The cases of the released MotionRNN program; families are named as in test_golden.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from recording import MARGIN, Case, Program, Tensors, normal, offsets, redrawn, sampling_mask, uniform
from torch import nn

GRU = "core/layers/MotionGRU.py"
CELL = "core/layers/SpatioTemporalLSTMCell_Motion_Highway.py"
NET = "core/models/MotionRNN_PredRNN.py"
PROGRAM = Program(
    "thuml/MotionRNN",
    "002415f4e7384f14fd20501b76febe8c5caaca7e",
    {
        GRU: "a9af4c1a9c62a0f20c8eb0995755c2a03ac74317",
        CELL: "4e83adc60b475b4f011be5b0ec6e6b68a68e2a95",
        NET: "673d1680ed9807da4c064060f7d1bb817a8b4246",
    },
)


def importer(checkout: Path) -> Callable[[str], Any]:
    """Imports modules of the checkout, after comparing its files with the commit's."""
    PROGRAM.verify(checkout)
    sys.path.insert(0, str(checkout))
    return importlib.import_module


def cases() -> dict[str, Callable[..., Case]]:
    size = {"img_height": 8, "img_width": 12, "img_channel": 1, "patch_size": 2, "batch_size": 2}
    run = {"input_length": 2, "total_length": 4, "filter_size": 3, "layer_norm": 0}
    net = {"layers": 3, "hidden": 4, "configs": {**size, **run}, "mask": "cont"}
    return {
        "warp_00_u3_c3_b2_5x7": partial(warp, c=3, out=2, b=2, h=5, w=7, kind="3"),
        "warp_01_exact_c2_b2_5x4": partial(warp, c=2, b=2, h=5, w=4, kind="exact"),
        "warp_02_k5_c2_b1_3x4": partial(warp, c=2, b=1, h=3, w=4, kind="1.5", k=5),
        "motiongru_00_step_c2_b1_5x4": partial(motion_gru, c=2, b=1, h=5, w=4, steps=1),
        "motiongru_01_chain_k1_c3_b2_4x5": partial(motion_gru, c=3, b=2, h=4, w=5, steps=4, k=1),
        "stlstm_highway_00_f3_ln0_b2_4x5": partial(st_lstm, c_in=3, c=2, b=2, h=4, w=5, f=3, norm=0),
        "motionrnn_00_L3_f3_ln0_b2_8x12x1_cont_xavier": partial(motion_rnn, **net),
    }


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
