"""Parity of ops, layers and models with the public implementations, values and all gradients."""

from __future__ import annotations

import warnings

import pytest
import torch
from golden import GoldenCase, Tensors, golden_cases
from torch import nn
from under_test import ALL, UnderTest, on

from motionrnn_ext.layers import (
    ConvLSTMCell,
    LSTMState,
    MotionGRUCell,
    MotionState,
    OffsetWarp,
    SpatioTemporalLSTMCell,
)
from motionrnn_ext.models import MotionRNNState, load_checkpoint, official_name
from motionrnn_ext.models.patches import fold_patches, unfold_patches


def check(path, run, on: UnderTest, dtype: torch.dtype) -> None:
    with on.chosen(), torch.backends.cudnn.flags(allow_tf32=False):
        errors = GoldenCase(path).errors(run, dtype, on.device)
    assert errors
    wrong = {key: pair for key, pair in errors.items() if not pair[0] <= pair[1]}
    assert not wrong, f"(relative error, tolerance) of {len(wrong)} of {len(errors)}: {wrong}"


def loaded(module: nn.Module, parameters: Tensors) -> nn.Module:
    """The module in the parameters' dtype and on their device, loaded strictly from the official names."""
    module.to(next(iter(parameters.values())))
    module.load_state_dict(parameters, strict=True)
    return module


def warp(case, parameters, inputs):
    k = case.meta["kwargs"]
    module = loaded(OffsetWarp(k["inc"], k["outc"], k["neighbour"]), parameters)
    return {"out": module(inputs["x"], inputs["offset"])}, dict(module.named_parameters())


def motion_gru(case, parameters, inputs):
    k = case.meta["kwargs"]
    cell = loaded(MotionGRUCell(k["in_channel"], k["neighbour"]), parameters)
    offset, trend = (inputs.get(name, inputs.get("offset_mean")) for name in ("pre_offset", "mean"))
    if case.meta["T"] == 1:
        out, offset, trend = cell(inputs["x"], offset, trend)
        return {"x": out, "offset": offset, "mean": trend}, dict(cell.named_parameters())
    steps = []
    for x in inputs["x"]:
        out, offset, trend = cell(x, offset, trend)
        steps.append((out, offset, trend))
    stacked = (torch.stack(tensors) for tensors in zip(*steps))
    return dict(zip(("x", "offset", "mean"), stacked)), dict(cell.named_parameters())


def cell_arguments(case):
    k = case.meta["kwargs"]
    options = {"layer_norm": bool(k["layer_norm"]), "map_size": (k["height"], k["width"])}
    return (k["in_channel"], k["num_hidden"], k["filter_size"]), options


def st_lstm(case, parameters, inputs):
    sizes, options = cell_arguments(case)
    cell = loaded(SpatioTemporalLSTMCell(*sizes, **options), parameters)
    state = LSTMState(inputs["h"], inputs["c"])
    h, state, memory = cell(inputs["x"], state, inputs["m"], inputs.get("motion_highway"))
    return {"h": h, "c": state.cell, "m": memory, "motion_highway": h}, dict(cell.named_parameters())


def conv_lstm(case, parameters, inputs):
    sizes, options = cell_arguments(case)
    # The recorded cell holds two convolutions that its forward never reads.
    live = {name: t for name, t in parameters.items() if not name.startswith(("conv_o.", "conv_last."))}
    cell = loaded(ConvLSTMCell(*sizes, **options), live)
    h, state, _ = cell(inputs["x"], LSTMState(inputs["h"], inputs["c"]))
    return {"h": h, "c": state.cell}, dict(cell.named_parameters())


def net(case, parameters, inputs):
    configs = case.meta["kwargs"]["configs"]
    n_input = configs.get("input_length", configs.get("pre_seq_length"))
    patch_size = configs["patch_size"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "load_checkpoint: left out")
        model = load_checkpoint(parameters, patch_size=patch_size)

    def image(x):  # (B, T, h, w, Cp) -> (B, T, C, H, W)
        return unfold_patches(x.movedim(-1, 2), patch_size)

    state = official_state(inputs, len(model.cells)) if "init/hc0_0" in inputs else None
    frames = image(inputs["frames"])
    out = model(
        frames,
        n_input,
        image(inputs["mask_true"]),
        state,
        reverse_sampling=bool(configs.get("reverse_scheduled_sampling", 0)),
    )
    outputs = {
        "frames": fold_patches(out, patch_size).movedim(2, -1),
        "loss": nn.functional.mse_loss(out, frames[:, 1:]),
    }
    return outputs, {official_name(name): p for name, p in model.named_parameters()}


def official_state(inputs, n_layers: int) -> MotionRNNState:
    """H and C of a layer are one tensor there, and so are F and D of an interface."""
    layers = [inputs[f"init/hc0_{i}"] for i in range(n_layers)]
    motion = [inputs[f"init/offset_mean0_{i}"] for i in range(n_layers - 1)]
    return MotionRNNState(
        tuple(LSTMState(h, h) for h in layers), tuple(MotionState(f, f) for f in motion), inputs["init/mem0"]
    )


FAMILIES = [
    (warp, "warp_*"),
    (motion_gru, "motiongru_*"),
    (st_lstm, "stlstm_highway_*"),
    (st_lstm, "spatiotemporallstmcell_f*"),
    (conv_lstm, "convlstmcell_*"),
    (net, "motionrnn_*"),
    (net, "net_*_convlstm_*"),
    (net, "net_*_predrnn_*"),
]


@on(ALL, dtypes=[torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("run", "path"),
    [
        pytest.param(run, *p.values, id=p.id, marks=p.marks)
        for run, pattern in FAMILIES
        for p in golden_cases(pattern)
    ],
)
def test_golden(run, path, on: UnderTest, dtype: torch.dtype) -> None:
    check(path, run, on, dtype)


@pytest.mark.parametrize("path", golden_cases("motionrnn_*"))
def test_motion_of_the_official_net(path) -> None:
    """return_motion gives the official offset and mean of every interface and step, float64 to 1e-9."""
    case = GoldenCase(path)
    inputs, configs = case.group("in"), case.meta["kwargs"]["configs"]
    model = load_checkpoint({"net_param": case.group("param")}, patch_size=configs["patch_size"])

    def image(x):
        return unfold_patches(x.movedim(-1, 2), configs["patch_size"])

    state = official_state(inputs, len(model.cells))
    with torch.no_grad():
        _, motion = model(
            image(inputs["frames"]),
            configs["input_length"],
            image(inputs["mask_true"]),
            state,
            return_motion=True,
        )
    for i, interface in enumerate(motion):
        for found, name in ((interface.offset, "offset"), (interface.trend, "mean")):
            reference = case.arrays[f"aux/motion{i}/{name}"].movedim(0, 1)
            assert (found - reference).abs().max() <= 1e-9 * reference.abs().max()
