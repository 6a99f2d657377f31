"""Parity of ops, layers and models with the public implementations, values and all gradients."""

from __future__ import annotations

import warnings

import pytest
import torch
from golden import GoldenCase, Tensors, golden_cases, relative_error
from torch import nn
from under_test import ALL, UnderTest, on

from motionrnn_ext.layers import (
    ConvLSTMCell,
    E3DLSTMCell,
    LSTMState,
    MIMCell,
    MotionGRUCell,
    MotionState,
    OffsetWarp,
    SpatioTemporalLSTMCell,
)
from motionrnn_ext.layers.cells import (
    ConvTTLSTMState,
    E3DLSTMState,
    MIMMemory,
    PeepholeLSTM,
)
from motionrnn_ext.models import MotionRNNState, load_checkpoint, load_conv_tt_lstm_cell
from motionrnn_ext.models.checkpoints.names import conv_tt_lstm_to_ours, recognised, to_ours, without_dead
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


def renamed(parameters: Tensors, predictor: str, official: str, ours: str) -> Tensors:
    """Our parameters of a part, made from the official leaves, whose gradients then are the official ones."""
    for tensor in parameters.values():
        tensor.requires_grad_()
    live, _ = without_dead({official + name: tensor for name, tensor in parameters.items()}, predictor)
    return {name.removeprefix(ours): tensor for name, tensor in to_ours(live, predictor).items()}


def call(module: nn.Module, state: Tensors, *arguments, others: str = "-", **options):
    """The module with the parameters of `state`, which must be all but those that begin with `others`."""
    names = {name for name, _ in module.named_parameters() if not name.startswith(others)}
    assert names == state.keys()
    return torch.func.functional_call(module, state, arguments, options)


def mim_block(case, parameters, inputs):
    sizes, options = cell_arguments(case)
    cell = MIMCell(*sizes, **options, compat="openstl")
    weights = renamed(parameters, "mim", "stlstm_layer.1.", "cells.1.")
    state, memory = cell.initial_state(inputs["h"])._replace(cell=inputs["c"]), inputs["m"]
    cell.carried = inputs.get("convlstm_c")
    chain = case.meta["T"] > 1
    hidden = []
    for x, difference in zip(inputs["x"], inputs["diff_h"]) if chain else [(inputs["x"], inputs["diff_h"])]:
        # The block is given D; without an earlier input the cell takes D as it is.
        state = state._replace(difference=difference, input=None)
        h, state, (memory, _) = call(
            cell, weights, x, state, MIMMemory(memory, None), others="nonstationary."
        )
        hidden.append(h)
    outputs = {"h": torch.stack(hidden) if chain else hidden[0], "c": state.cell, "m": memory}
    return {**outputs, "convlstm_c": state.stationary}, parameters


def mim_n(case, parameters, inputs):
    sizes, options = cell_arguments(case)
    cell = PeepholeLSTM(MIMCell(*sizes, **options))
    weights = renamed(parameters, "mim", "stlstm_layer_diff.0.", "cells.1.nonstationary.")
    h, c = call(cell, weights, inputs["x"], inputs["h"], inputs["c"])
    return {"h": h, "c": c}, parameters


def e3d_lstm(case, parameters, inputs):
    k = case.meta["kwargs"]
    cell = E3DLSTMCell(
        k["in_channel"],
        k["num_hidden"],
        k["filter_size"][-1],
        layer_norm=bool(k["layer_norm"]),
        map_size=(k["height"], k["width"]),
        compat="openstl",
        window=k["window_length"],
    )
    weights = renamed(parameters, "e3d_lstm", "cell_list.0.", "cells.0.")
    history = torch.cat([cell.rows(c) for c in inputs["eidetic_cell"].split(k["num_hidden"], dim=1)], dim=1)
    state = E3DLSTMState(inputs["h"], inputs["c"], history, inputs["x"][:, :, 1:])
    h, state, memory = call(cell, weights, inputs["x"], state, inputs["global_memory"])
    return {"h": h, "c": state.cell, "global_memory": memory}, parameters


def conv_tt_lstm(case, parameters, inputs):
    cell, steps = load_conv_tt_lstm_cell(parameters), case.meta["kwargs"]["steps"]
    assert (cell.order, cell.steps) == (case.meta["kwargs"]["order"], steps)
    weights = conv_tt_lstm_to_ours({name: t.requires_grad_() for name, t in parameters.items()})
    zeros = inputs["x"].new_zeros(inputs["x"].shape[1], cell.hidden_channels, *inputs["x"].shape[3:])
    ring, oldest = inputs.get("hidden_states", [zeros] * steps), case.meta["initial_hidden_pointer"]
    ring = [ring[(oldest + i) % steps] for i in range(steps)]
    state = ConvTTLSTMState(ring[-1], inputs.get("cell_states", zeros), tuple(ring[:-1]))
    hidden = []
    for x in inputs["x"]:
        h, state, _ = call(cell, weights, x, state)
        hidden.append(h)
    ring, oldest = (*state.older, state.hidden), case.meta["final_hidden_pointer"]
    ring = torch.stack([ring[(i - oldest) % steps] for i in range(steps)])
    return {"h": torch.stack(hidden), "cell_states": state.cell, "hidden_states": ring}, parameters


def net(case, parameters, inputs):
    configs, predictor = case.meta["kwargs"]["configs"], recognised(parameters)
    n_input = configs.get("input_length", configs.get("pre_seq_length"))
    model, image = official_net(case, parameters)
    frames = image(inputs["frames"])
    state = official_state(inputs, len(model.cells)) if "init/hc0_0" in inputs else None
    out = call(
        model,
        renamed(parameters, predictor, "", ""),
        frames,
        n_input,
        image(inputs["mask_true"]),
        state,
        reverse_sampling=bool(configs.get("reverse_scheduled_sampling", 0)),
    )
    loss = nn.functional.mse_loss(out, frames[:, 1:])
    if predictor == "e3d_lstm":
        loss = loss + nn.functional.l1_loss(out, frames[:, 1:])
    folded = fold_patches(out, configs["patch_size"]).movedim(2, -1)
    return {"frames": folded, "loss": loss}, parameters


def official_net(case, parameters):
    """The model, with OpenSTL's deviations where it has some, and (B, T, h, w, Cp) -> (B, T, C, H, W)."""
    patch_size = case.meta["kwargs"]["configs"]["patch_size"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "load_checkpoint: left out")
        model = load_checkpoint(parameters, patch_size=patch_size, compat="openstl")
    return model, lambda x: unfold_patches(x.movedim(-1, 2), patch_size)


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
    (mim_block, "mimblock_*"),
    (mim_n, "mimn_*"),
    (net, "net_*_mim_*"),
    (e3d_lstm, "e3dcell_*"),
    (net, "net_*_e3dlstm_*"),
    (conv_tt_lstm, "convttlstm_*"),
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


@pytest.mark.parametrize("path", golden_cases("net_*_mim_*"))
def test_what_openstl_keeps_between_sequences(path) -> None:
    """A second equal call goes on from the first one's S, until `reset()`; without compat it is the first again."""
    case = GoldenCase(path)
    inputs, configs = case.group("in"), case.meta["kwargs"]["configs"]
    model, image = official_net(case, case.group("param"))

    @torch.no_grad()
    def frames(model):
        out = model(
            image(inputs["frames"]),
            configs["pre_seq_length"],
            image(inputs["mask_true"]),
            reverse_sampling=bool(configs["reverse_scheduled_sampling"]),
        )
        return fold_patches(out, configs["patch_size"]).movedim(2, -1)

    first, second = frames(model), frames(model)
    assert relative_error(first, case.arrays["out/frames"]) <= 1e-10
    assert relative_error(second, case.arrays["aux/frames_second_call"]) <= 1e-10
    assert relative_error(second, first) > 1e-3
    model.reset()
    assert torch.equal(frames(model), first)

    with pytest.warns(UserWarning, match="left out"):
        ours = load_checkpoint(case.group("param"), patch_size=configs["patch_size"])
    assert relative_error(frames(ours), first) <= 1e-10 and torch.equal(frames(ours), frames(ours))
