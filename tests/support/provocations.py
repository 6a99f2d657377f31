"""How to provoke every message of docs/errors.md: the page's words, `...` for what varies, and a way to get them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import small_case
from PIL import Image
from test_convert import StandIn
from test_official import conv_tt_dict, edited, net, official_dict
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import prune

import motionrnn_ext
from motionrnn_ext import (
    MotionGRU,
    MotionGRUCell,
    MotionGRULayer,
    MotionRNN,
    backends,
    cli,
    ops,
    visualize,
    warmup,
)
from motionrnn_ext.backends import native, triton
from motionrnn_ext.layers import ConvLSTMCell, MIMCell, convert, from_official, register_predictor, revert
from motionrnn_ext.layers.motion_gru import MotionState
from motionrnn_ext.models import load_checkpoint, load_conv_tt_lstm_cell, save_official
from motionrnn_ext.models.checkpoints.names import to_ours
from motionrnn_ext.training.config import Config
from motionrnn_ext.training.folders import held
from motionrnn_ext.training.runs import load_run, read_checkpoint, start_folder
from motionrnn_ext.training.weights import load_weights


class Place:
    """Where a provocation happens: a fresh folder, patches that end with it, what the command line said."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.patch, self.capsys = path, patch, capsys

    def run(self, *command: object, status: int = 2) -> str:
        """The error of the program `motionrnn`."""
        try:
            assert cli.main([str(word) for word in command]) == status
        except SystemExit as error:  # of the parser
            assert error.code == 2
        return self.capsys.readouterr().err.partition("error: ")[2].strip()

    def file(self, content: object) -> Path:
        torch.save(content, self.path / "file.ckpt")
        return self.path / "file.ckpt"


Provocation = Callable[[Place], object]  # raises, warns with an error filter, or returns the message


def op(name: str, **changes: Any) -> Provocation:
    def provoke(_: Place) -> None:
        inputs = small_case(name).inputs(torch.float32, grad=False)
        getattr(ops, name)(**{**inputs, **{n: change(inputs[n]) for n, change in changes.items()}})

    return provoke


def rnn(
    predictor: str = "convlstm", hidden: tuple[int, ...] = (4, 4), *rest: Any, **options: Any
) -> MotionRNN:
    return MotionRNN(predictor, 1, hidden, 2, *rest, filter_size=3, **options)


def frames(*shape: int) -> torch.Tensor:
    return torch.zeros(shape or (1, 4, 1, 8, 8))


def logits_of_gates(_: Place) -> None:
    inputs = small_case("motion_gates").inputs(torch.float32).values()
    torch.ops.motionrnn_ext.motion_gates(*inputs, 0.5, 1e4)[3].sum().backward()


OPS: dict[str, Provocation] = {
    "...: ... is a ...; it should be a torch.Tensor": op("gated_blend", a=lambda t: [1.0]),
    "...: ... has dtype ...; it should be ...": op("gated_blend", a=torch.Tensor.half),
    "...: ... is on ...; it should be on ..., the device of ...": op("gated_blend", a=lambda t: t.to("meta")),
    "...: ... has rank ...; it should have rank ...": op("offset_warp", x=lambda t: t[0]),
    "...: ... has shape ...; it should be ...": op("gated_blend", a=lambda t: t[:1]),
    "...: weight has a ...x... neighbourhood; it should be k x k with k odd": op(
        "offset_warp", weight=lambda t: t[..., :2]
    ),
    "...: weight takes ... channels; it should take ..., the channels of x": op(
        "offset_warp", weight=lambda t: t[:, :1]
    ),
    "...: gates_x has ... channels; it should have 3C, packed (i, f, g)": op(
        "memory_update", gates_x=lambda t: t[:, :4]
    ),
    "...: x_weight has a ...x... kernel; it should be g x g with g odd": op(
        "motion_gates", x_weight=lambda t: t[..., :2]
    ),
    "...: x_weight has ... rows; it should have at least ..., 3M for M = ... of offset": op(
        "motion_gates", x_weight=lambda t: t[:3]
    ),
    "motion_gates: its logits have no gradient; they are there for its backward": logits_of_gates,
    "... is ...; it should be a number": lambda _: MotionGRUCell(4, alpha="0.5"),
    "... has shape ... and dtype ...; it should be one real number": lambda _: MotionGRUCell(
        4, alpha=torch.ones(2)
    ),
    "... is ...; it should be in [0, 1]": lambda _: MotionGRUCell(4, alpha=1.5),
    "... is ...; it should be above 0 and at most 3.4e38, or None": lambda _: MotionGRUCell(4, max_offset=0),
    "... is a Tensor; it should be a number, or None: there is no gradient of it": lambda _: MotionGRUCell(
        4, max_offset=torch.tensor(3.0)
    ),
    "motionrnn_ext: mixed ...": lambda _: torch.ops.motionrnn_ext.gated_blend(
        torch.ones(2, 2), torch.ones(2, 2).half(), torch.ones(2, 2)
    ),
    "motionrnn_ext: mismatched ...": lambda _: torch.ops.motionrnn_ext.gated_blend(*[torch.ones(())] * 3),
}


# ---- Backends


def missing(p: Place, name: str, reason: str) -> None:
    p.patch.setitem(native._missing, name, reason)
    motionrnn_ext.set_backend(name)


def fallback(p: Place) -> None:
    p.patch.setitem(native._missing, "cpu", "the library is missing")
    p.patch.setattr(backends, "_warned", set())
    op("gated_blend")(p)


def no_file(p: Place) -> None:
    p.patch.setitem(native._missing, "cpu", "")
    p.patch.setitem(native._LIBRARIES, "cpu", p.path / "none.so")
    p.patch.setattr(native, "_SKIPPED", p.path / "none.txt")
    p.patch.setattr(native, "build_info", dict)
    native._load("cpu")
    motionrnn_ext.set_backend("cpu")


def no_library(p: Place) -> None:
    (p.path / "libbroken.so").write_text("no library")
    p.patch.setitem(native._missing, "cpu", "")
    p.patch.setattr(native, "load_errors", {})
    p.patch.setitem(native._LIBRARIES, "cpu", p.path / "libbroken.so")
    native._load("cpu")
    motionrnn_ext.set_backend("cpu")


def triton_without(p: Place, **environment: str | None) -> None:
    p.patch.setattr(triton, "INTERPRETED", False)
    p.patch.setattr(triton, "_IS_INSTALLED", True)
    p.patch.setattr(torch.cuda, "is_available", lambda: bool(environment))
    for name, value in environment.items():
        p.patch.delenv(name, raising=False) if value is None else p.patch.setenv(name, value)
    p.patch.setattr(triton, "_MISSING_TOOL", triton._missing_tool())
    motionrnn_ext.set_backend("triton")


def without_headers(p: Place) -> None:
    p.patch.setattr(triton, "python_headers", lambda: None)
    triton_without(p, CC="gcc")


def not_installed(p: Place) -> None:
    p.patch.setattr(triton, "_IS_INSTALLED", False)
    motionrnn_ext.set_backend("triton")


def chosen(name: str, call: Callable[[], object]) -> Provocation:
    def provoke(p: Place) -> None:
        p.patch.setattr(backends, "unavailable_reason", lambda _: None)
        with motionrnn_ext.backend(name):
            call()

    return provoke


def blend(device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return ops.gated_blend(*(torch.ones(1, 2, device=device, dtype=dtype) for _ in range(3)))


def double_on_a_gpu() -> None:
    with FakeTensorMode():
        blend("cuda", torch.float64)


def tangent() -> None:
    x = torch.ones(1, 2)
    torch.func.jvp(ops.gated_blend, (x, x, x), (x, x, x))


def instruction_set(_: Place) -> str:
    code = "import torch; from motionrnn_ext import ops; ops.gated_blend(*[torch.ones(1, 2)] * 3)"
    environment = {**os.environ, "MOTIONRNN_EXT_CPU_ISA": "avx2", "MOTIONRNN_EXT_BACKEND": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return done.stderr


BACKENDS: dict[str, Provocation] = {
    "unknown backend '...'...; known are: ...": lambda _: motionrnn_ext.set_backend("gpu"),
    "backend '...'... is not available: ...; available are: ...": lambda p: missing(p, "cpu", "why"),
    "motionrnn_ext: tensors on ... run on the slow 'reference' backend, because ...": fallback,
    "backend '...' was chosen, but the tensors are on ...; move them or choose 'auto'": chosen(
        "cpu", lambda: blend("meta")
    ),
    "backend '...' was chosen, but it has no forward-mode derivatives, and of torch.func's transforms vmap alone; "
    "choose 'auto' or 'reference'": chosen("cpu", tangent),
    "...: backend '...' was chosen, but it takes alpha or forget_bias as a number, without gradient; ...": chosen(
        "cpu", lambda: ops.motion_update(*[torch.ones(1, 2)] * 4, alpha=torch.tensor(0.5, requires_grad=True))
    ),
    "backend '...' was chosen, but it has no float64; choose 'auto' or 'reference'": chosen(
        "cuda", double_on_a_gpu
    ),
    "this install has no native library for it": no_file,
    "its library ... does not load: ...": no_library,
    "this PyTorch was built without CUDA": lambda p: missing(
        p, "cuda", "this PyTorch was built without CUDA"
    ),
    "PyTorch finds no CUDA device": lambda p: missing(p, "cuda", "PyTorch finds no CUDA device"),
    "the package triton is not installed": not_installed,
    "PyTorch finds no GPU (TRITON_INTERPRET=1 runs Triton's kernels on the CPU, slowly)": triton_without,
    "Triton needs a C compiler at its first launch: ...": lambda p: triton_without(p, CC=None, PATH=""),
    "Triton needs Python.h at its first launch: ...": without_headers,
    "MOTIONRNN_EXT_CPU_ISA is '...'; it should be baseline, x86_64_v3 or x86_64_v4": instruction_set,
}


# ---- Layers and models


def off_the_map(offset: float) -> str:
    model, state = rnn(), MotionState(*torch.full((2, 1, 18, 2, 2), offset))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.predict(frames(), 2, model.initial_state(1, 8, 8)._replace(motion=(state,)))
    return str(said[0].message)


def twice(p: Place) -> None:
    model = nn.ModuleList([StandIn(4)])
    convert(model)
    revert(model[0])


def save_uneven(p: Place) -> None:
    model = MotionRNN("predrnn", 1, (4, 4, 4), 2, "official")
    model.interfaces[0].cell.alpha = 0.9  # type: ignore[union-attr, assignment]
    save_official(model, p.path / "file")


def revert_without_warp(p: Place) -> None:
    model = nn.ModuleList([StandIn(4)])
    convert(model)
    model[0].warp = nn.Identity()
    revert(model)


def predictor(name: str, cell: Any) -> Provocation:
    return lambda _: register_predictor(name)(cell)


def other_size(_: Place) -> None:
    model = rnn("mim", image_size=(8, 8), compat="openstl", motion_gru=False, highway=False)
    model(frames(1, 4, 1, 8, 8), 2)
    model(frames(2, 4, 1, 8, 8), 2)


def state_of_another_size(_: Place) -> None:
    rnn()(frames(), 2, state=rnn().initial_state(2, 8, 8))


def checkpoint_of_kept_state(_: Place) -> None:
    rnn("mim", image_size=(8, 8), compat="openstl")(frames(), 2, checkpoint=True)


def generator_of_another_device(_: Place) -> None:
    model = rnn(init_state="xavier")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.conv_last.weight = nn.Parameter(torch.ones(1, device="cuda"))
        model.initial_state(1, 8, 8, torch.Generator())


def parameter_of_its_own(_: Place) -> None:
    cell = ConvLSTMCell(4, 4)
    cell.gain = nn.Parameter(torch.ones(()))
    cell.reset_parameters()


def part_without_reset(_: Place) -> None:
    model = rnn()
    model.conv_last = nn.ParameterList(model.conv_last.parameters())
    model.reset_parameters()


def near_official() -> nn.Module:
    module = StandIn(4)
    module.reset = nn.Conv2d(22, 18, 3)
    return module


def motion(change: Callable[[torch.Tensor], torch.Tensor], count: int = 2) -> Provocation:
    return lambda _: MotionGRU(8)(torch.ones(1, 8, 6, 6), [change(torch.zeros(1, 18, 3, 3))] * count)


def rounded_by_fsdp(p: Place) -> None:
    class FSDPModule:
        """Stands for FSDP2's: `fully_shard` makes a class of it and of the module's own."""

    gru = MotionGRU(8)
    gru.__class__ = type("FSDPMotionGRU", (FSDPModule, MotionGRU), {})
    gru(torch.ones(1, 8, 6, 6), [torch.zeros(1, 18, 3, 3).bfloat16()] * 2)


def no_interface(_: Place) -> None:
    model = rnn()
    model.interfaces[0] = None
    model(frames(), 2)


def replaced_cell(_: Place) -> None:
    model = rnn()
    model.cells[0] = nn.Sequential(model.cells[0])
    model(frames(), 2)


def cell_of_one_result(_: Place) -> None:
    gru = MotionGRU(4)
    gru.cell.register_forward_hook(lambda module, inputs, outputs: outputs[0])
    gru(frames(1, 4, 4, 4))


def returns_another_shape(_: Place) -> None:
    gru = MotionGRU(8)
    gru.gate = nn.Sequential(gru.gate, nn.MaxPool2d(2))
    gru(torch.ones(1, 8, 6, 6))


LAYERS: dict[str, Provocation] = {
    "... is ...; it should be odd": lambda _: MotionGRUCell(4, 2),
    "transient and trend are both False; one should be True, or no motion is left": lambda _: MotionGRUCell(
        4, transient=False, trend=False
    ),
    "hidden_channels is ...; it should be at least 4, a quarter is encoded": lambda _: MotionGRU(3),
    "gate_side is ...; it should be 'hidden' or 'decoded'": lambda _: MotionGRU(8, gate_side="left"),
    "... has shape ...; it should be ...": lambda _: MotionGRU(8)(torch.ones(1, 4, 6, 6)),
    "... has shape ...; it should be ...; a sequence ... is for MotionGRULayer, maps with a depth axis ... are for "
    "MotionGRU(depth=True)": lambda _: MotionGRU(8)(torch.ones(1, 3, 8, 6, 6)),
    "... has shape ...; it should be ... with T of 1 or more": lambda _: MotionGRULayer(8)(
        torch.ones(1, 0, 8, 6, 6)
    ),
    "... is a ...; it should be a torch.Tensor": lambda _: MotionGRU(8)([1.0]),
    "... has dtype ...; it should be floating point": lambda _: MotionGRU(8)(torch.ones(1, 8, 6, 6).byte()),
    "... has dtype ...; it should be ..., because x has dtype ...": motion(torch.Tensor.double),
    "... has dtype ... by FSDP's mixed precision, which would round the motion at every step; it should be "
    "float32: ...": rounded_by_fsdp,
    "... is on ...; it should be on ..., the device of x": motion(lambda t: t.to("meta")),
    "state is ...; it should be a MotionState, or a pair (offset, trend)": motion(lambda t: t, count=3),
    "... is None; it should be a module, since it is called: to leave a part out, put one in its place that "
    "returns what the next part takes": lambda _: setattr(MotionGRU(4), "gate", None),
    "cell returns ...; it should return (out, offset, trend)": cell_of_one_result,
    "... returns ...; it should return a tensor of shape ...": returns_another_shape,
    "hidden is ...x...; height and width should be even": lambda _: MotionGRU(8)(torch.ones(1, 8, 5, 6)),
    "map_size is None; ... it should be (h, w), as parameters are per position": lambda _: ConvLSTMCell(
        4, 4, layer_norm=True
    ),
    "compat is ...; it should be None or 'openstl'": lambda _: ConvLSTMCell(4, 4, compat="mine"),
    "layer_norm is True; it should be False, Conv-TT-LSTM has none": lambda _: rnn(
        "conv_tt_lstm", layer_norm=True, image_size=(8, 8)
    ),
    "order is ..., steps ..., rank ...; they should be whole, 1 <= order <= steps and 1 <= rank": lambda _: (
        rnn("conv_tt_lstm", cell_options={"order": 4})
    ),
    "... is ...; it should be a whole number of at least ...": lambda _: MotionGRU("16"),
    "... is ...; it should be (...), whole numbers of at least 1": lambda _: MIMCell(4, 4, map_size=8),
    "... is ...; it should be True or False": lambda _: MotionGRU(8, trend="no"),
    "... has parameters of its own (...); it should have a reset_parameters that sets them, and calls "
    "super().reset_parameters()": parameter_of_its_own,
    "no reset_parameters sets ...; every module that holds parameters should have one, and none be pruned or "
    "parametrised yet": part_without_reset,
    "alpha is a Parameter that was made on the device meta; it should be made with its value": lambda _: (
        MotionGRU(8, alpha=nn.Parameter(torch.empty((), device="meta"))).reset_parameters()
    ),
    "history is ...; it should be a whole number of at least 1, or None": lambda _: rnn(
        "e3d_lstm", image_size=(8, 8), cell_options={"history": 0}
    ),
    "in_channels is ...; it should be hidden_channels, ...": lambda _: MIMCell(3, 4, map_size=(4, 4)),
    "the state kept from the last sequence has shape ...; it should be ...: with compat='openstl', call reset() "
    "before sequences of another size": other_size,
    "predictor ... is ...; it should be a subclass of RecurrentCell": predictor("mine", nn.Module),
    "the name ... is taken by ...; it should be a new one": predictor("mim", ConvLSTMCell),
    "unknown predictor ...; known: ...": lambda _: rnn("lstm"),
    "model is itself a MotionGRU, which cannot be swapped in place; ...": lambda _: convert(StandIn(4)),
    "model is itself a converted MotionGRU; revert the model that holds it": twice,
    "... has no ... any more, which its official module needs; put them back first": revert_without_warp,
    "module is a ...; it should have update, reset, output, warp.conv, warp.warp_gate": lambda _: (
        from_official(nn.Linear(1, 1))
    ),
    "model is ...; it should be a torch.nn.Module...": lambda _: convert([StandIn(4)]),  # type: ignore[arg-type]
    "module is not the official MotionGRU: ...": lambda _: from_official(near_official()),
    "warmup: module is ...; it should be a torch.nn.Module or a method of one, such as model.step": lambda _: (
        warmup(len, [])
    ),
}
MODELS: dict[str, Provocation] = {
    "hidden_channels is ...; it should be the width of every layer, such as (64, 64), whole numbers of at least 1": (
        lambda _: rnn(hidden=64)
    ),
    "hidden_channels is ...; with ... all layers should be equal": lambda _: rnn(hidden=(4, 8)),
    "cell_options is ...; it should be a dict of names and values": lambda _: rnn(cell_options=["order"]),
    "unknown option ... of predictor ...": lambda _: rnn(cell_options={"order": 2}),
    "image_size is None; ... needs (H, W), as its parameters are per position": lambda _: rnn("mim"),
    "image_size is ...x...; it should be divisible by patch_size ...": lambda _: rnn(
        "mim", image_size=(7, 8)
    ),
    "variant is ...; known: ...": lambda _: rnn("convlstm", (4, 4), "mine"),
    "unknown option ...; known: ...": lambda _: rnn(cary="block"),
    "... is ...; it should be ... or ...": lambda _: rnn(carry="both"),
    "... is a ...; it should be a torch.Tensor": lambda _: rnn()(frames().numpy(), 2),
    "the MotionGRU after layer ...: ... of its taps lie outside of the map ... and read zeros, ...": lambda _: (
        off_the_map(9.0)
    ),
    "the MotionGRU after layer ...: its motion is nan ...; ...": lambda _: off_the_map(float("nan")),
    "frames has shape ...; it should be (...)": lambda _: rnn()(frames(1, 4, 3, 8, 8), 2),
    "frames has dtype ...; it should be floating point, in [0, 1]": lambda _: rnn()(frames().byte(), 2),
    "frames are ...x...; parameters per position were made for image_size ... only": lambda _: rnn(
        "mim", image_size=(8, 12)
    )(frames(), 2),
    "frames are ...x...; both should be divisible by ...": lambda _: rnn()(frames(1, 4, 1, 6, 8), 2),
    "... is ...; it should be a whole number of frames": lambda _: rnn()(frames(), 2.0),
    "n_input is ... and T ...; they should be 1 <= n_input <= T, 2 <= T": lambda _: rnn()(frames(), 5),
    "frames has T = ..., n_future is ...; both should be at least 1": lambda _: rnn().predict(frames(), 0),
    "generator is ...; it should be a torch.Generator, such as torch.Generator().manual_seed(0)": lambda _: (
        rnn()(frames(), 2, generator=0)
    ),
    "generator is on ...; it should be on ..., the device of the weights": generator_of_another_device,
    "sampling_mask has shape ...; it should broadcast to ...": lambda _: rnn()(
        frames(), 2, torch.ones(1, 2, 1, 8, 8)
    ),
    "checkpoint is True; it should be False for ... with compat='openstl', ...": checkpoint_of_kept_state,
    "interfaces[...] is None; it should be a MotionGRU, or a module that is called as one": no_interface,
    "cells[...] is a ...; it should be a RecurrentCell": replaced_cell,
    "state has no memory; ... has one, as initial_state and step return": lambda _: rnn("predrnn").step(
        torch.ones(1, 1, 8, 8), rnn("predrnn").initial_state(1, 8, 8)._replace(memory=None)
    ),
    "state.layers[...] is a ...; it should have a tensor `hidden`, as those of initial_state and step": lambda _: (
        rnn().step(torch.ones(1, 1, 8, 8), rnn().initial_state(1, 8, 8)._replace(layers=(None, None)))
    ),
    "state.layers[...].hidden has dtype ...; it should be ..., the dtype of frames": lambda _: rnn().step(
        torch.ones(1, 1, 8, 8), rnn(dtype=torch.float64).initial_state(1, 8, 8)
    ),
    "frames has dtype ...; it should be ..., the dtype of the parameters": lambda _: rnn().step(
        torch.ones(1, 1, 8, 8, dtype=torch.float64)
    ),
    "state is a ...; it should be a MotionRNNState, as initial_state and step return": lambda _: rnn()(
        frames(), 2, state=tuple(rnn().initial_state(1, 8, 8))
    ),
    "state has (layers, motions, shape of H^1) ...; it should have ...": state_of_another_size,
}


def program(p: Place) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), p.path / "program.pt")
    load_checkpoint(p.path / "program.pt")


def safetensors(p: Place) -> None:
    p.patch.setitem(sys.modules, "safetensors", None)
    (p.path / "weights.safetensors").write_bytes(b"")
    load_checkpoint(p.path / "weights.safetensors")


def tampered(_: Place) -> None:
    state = rnn().state_dict()
    state._metadata[""]["motionrnn_ext"]["colour"] = "red"
    load_checkpoint(state)


def rebuilt() -> nn.Module:
    model = net()
    model.conv_last.bias = nn.Parameter(torch.ones(1))
    return model


def pruned() -> nn.Module:
    model = rnn()
    prune.l1_unstructured(model.conv_last, "weight", 0.5)
    return model


def text(p: Place) -> None:
    (p.path / "weights.ckpt").write_text("text")
    load_checkpoint(p.path / "weights.ckpt")


CHECKPOINTS: dict[str, Provocation] = {
    "checkpoint ... is truncated or no file of weights": text,
    "checkpoint ... is no file of weights alone: it asks for ..., and such a file could run code": lambda p: (
        load_checkpoint(p.file({"state_dict": subprocess.Popen}))
    ),
    "checkpoint ... is a TorchScript program; it should be a file of weights: torch.save its state_dict()": program,
    "checkpoint ... needs the package safetensors: pip install safetensors": safetensors,
    "checkpoint ... is a folder; it should be a file...": lambda p: load_checkpoint(p.path),
    "source is a ...; it should be a file or a state dict...": lambda _: load_checkpoint(rnn()),
    "... holds no state dict but a ...": lambda _: load_checkpoint({}),
    "... holds no weights": lambda _: load_checkpoint({"step": torch.tensor(1)}),
    "... has ... and no ..., which only its module can compute from it; call ...(..., ...) before it is saved": (
        lambda _: load_checkpoint(edited(**{"gate.weight_g": torch.ones(1), "gate.weight_v": torch.ones(1)}))
    ),
    "... has shape ...; it should be ..., that of ..._orig in ...": lambda _: load_checkpoint(
        edited(**{"gate.weight_orig": torch.ones(2), "gate.weight_mask": torch.ones(1)})
    ),
    "... holds several models, ...; it should be one: pick its tensors by their names": lambda _: (
        load_checkpoint(nn.ModuleDict({"a": rnn(), "b": rnn()}).state_dict())
    ),
    "... has tensors on the device meta, without values: ...": lambda _: load_checkpoint(
        rnn().to("meta").state_dict()
    ),
    "... has ..., it is of ... and cannot be loaded; known are ...": lambda _: load_checkpoint(
        {"srcnn.0.weight": torch.ones(1)}
    ),
    "... has ..., it is of no known program; known are ...": lambda _: load_checkpoint({"a": torch.ones(1)}),
    "... is of no known predictor; known: ...; one of your own is to be registered first": lambda _: (
        load_checkpoint({"cells.0.weight": torch.ones(1), "conv_last.weight": torch.ones(1, 1, 1, 1)})
    ),
    "... describes a model that cannot be made: ...": tampered,
    "... is ...; it should be a whole number of at least 1": lambda _: load_checkpoint(
        edited(), patch_size="4"
    ),
    "... is ...; it should be ..., as the checkpoint says": lambda _: load_checkpoint(
        rnn().state_dict(), patch_size=4
    ),
    "... has entries that are not tensors: ...": lambda _: load_checkpoint({"epoch": 3}),
    "... has tensors of ...; they should be of one floating-point dtype": lambda _: load_checkpoint(
        {"conv_last.weight": torch.ones(1, dtype=torch.int64)}
    ),
    "no checkpoint of MotionRNN or of a predictor it knows: missing ...": lambda _: load_checkpoint(
        edited(["conv_last.weight"])
    ),
    "... has shape ...; it should have ... axes": lambda _: load_checkpoint(
        edited(**{"conv_last.weight": torch.ones(48)})
    ),
    "... has shape ...; its first axis should hold ... gates": lambda _: to_ours(
        {"stlstm_layer.1.conv_x_cc.0.weight": torch.ones(5, 4, 3, 3)}, "mim"
    ),
    "frames fold to ... channels in this checkpoint, which in_channels=... and patch_size=... do not give "
    "(patch_size**2 * in_channels)": lambda _: load_checkpoint(edited(), patch_size=5),
    "checkpoint does not fit: ...": lambda _: load_checkpoint(edited(extra=torch.ones(2))),
    "load_checkpoint: left out ...": lambda _: load_checkpoint(
        official_dict(net()) | {"adapter.weight": torch.ones(8, 8, 1, 1)}
    ),
    "load_checkpoint: applied the pruning masks of ...": lambda _: load_checkpoint(pruned().state_dict()),
    "load_checkpoint: assumed ..., which no tensor shows; name what differs": lambda _: load_checkpoint(
        official_dict(net())
    ),
    "model is a ...; it should be a MotionRNN...": lambda p: save_official(nn.Linear(1, 1), p.path / "file"),
    "path ... is a folder; it should be a file": lambda p: save_official(net(), p.path),
    "... differs among the layers": save_uneven,
    "no public program has this model: ...": lambda p: save_official(rnn(), p.path / "file"),
    "model has other parameters than it was made with: ...": lambda p: save_official(
        rebuilt(), p.path / "file"
    ),
    "model has parameters on the device meta, without values: ...": lambda p: save_official(
        net().to("meta"), p.path / "file"
    ),
    "no cell of Conv-TT-LSTM: ...": lambda _: load_conv_tt_lstm_cell({"layers_.0.weight": torch.ones(2)}),
    "layers_.0.weight has shape ..., ... ...; they should be (R, C, k, k, lags) or (R, lags*C, k, k), and (4C, "
    "C_in + R, k, k)": lambda _: load_conv_tt_lstm_cell(
        {**conv_tt_dict(), "layers_.0.weight": torch.ones(7)}
    ),
}


# ---- The program


def started(p: Place, **changes: Any) -> Path:
    """A run's folder as `train` makes it before its first step."""
    start_folder(p.path / "run", Config(**changes), resume=False)
    return p.path / "run"


def with_checkpoint(folder: Path) -> Path:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    return folder


def held_twice(p: Place) -> str:
    with held(p.path / "run"):
        return p.run("demo", "--out", p.path / "run")


def not_drawn(p: Place) -> str:
    p.patch.setattr(visualize, "strip", lambda *_: 1 / 0)
    return p.run("predict", trained(p), "--out", p.path / "out", status=4)


def misfit(p: Place) -> None:
    config = Config().to_dict()
    load_run(p.file({"motionrnn_config": config, "state_dict": {"model.x": torch.ones(1)}}))


def written(p: Place, content: str) -> Path:
    (p.path / "config.json").write_text(content)
    return p.path / "config.json"


def trained(p: Place) -> Path:
    config = Config(hidden=(4, 4))
    weights = {f"model.{name}": t for name, t in MotionRNN(**config.model()).state_dict().items()}
    return p.file({"motionrnn_config": config.to_dict(), "state_dict": weights, "global_step": 1})


def copied_weights(p: Place) -> Path:
    """A file that says nothing of its model."""
    return p.file(dict(MotionRNN(**Config(hidden=(4, 4)).model()).state_dict()))


def of_a_film(p: Place, n: int, *options: Any, colour: int = 0) -> str:
    """Frames of a size that nothing divides, some of their pixels red."""
    first, *others = [Image.new("RGB", (9, 7), (colour * (t % 2), 0, 0)) for t in range(n)]
    first.save(p.path / "film.tiff", save_all=True, append_images=others)
    return p.run("predict", trained(p), "--frames", p.path / "film.tiff", *options)


def without_decoder(p: Place) -> str:
    p.patch.setattr("importlib.util.find_spec", lambda _: None)
    (p.path / "film.mp4").write_bytes(b"")
    return p.run("predict", trained(p), "--frames", p.path / "film.mp4")


def without_gpu(place: Place) -> str:
    place.patch.setattr(torch.cuda, "is_available", lambda: False)
    return place.run("bench", "--device", "cuda")


def report_of_an_installation(place: Place) -> str:
    from motionrnn_ext.benchmarks import bench

    place.patch.setattr(bench, "HERE", place.path / "motionrnn_ext" / "benchmarks")
    return place.run("bench", "--report")


PROGRAM: dict[str, Provocation] = {
    "... exists: go on with that run with --resume, or name another folder with --out": lambda p: (
        start_folder(with_checkpoint(started(p)), Config(), resume=False)
    ),
    "... cannot be written to: ...; name another place with ...": lambda p: p.run(
        "train", "--out", written(p, "a file") / "run"
    ),
    "... is in use by another process; name another folder with --out": held_twice,
    "... (--init-from) does not fit: ...": lambda p: p.run(
        "train", "--init-from", trained(p), "--hidden", 8, 8, "--out", p.path / "run"
    ),
    "... (--init-from) was trained with ..., this run has ...": lambda p: p.run(
        "train", "--init-from", trained(p), "--no-trend", "--out", p.path / "run"
    ),
    "... (--init-from) holds weights alone: its tensors do not show if they were trained with ..., as this run is": (
        lambda p: load_weights(
            MotionRNN(**Config(hidden=(4, 4)).model()), str(copied_weights(p)), Config(hidden=(4, 4))
        )
    ),
    "... holds weights alone: assumed ..., which no tensor shows; give what differs (...)": lambda p: (
        load_run(copied_weights(p))
    ),
    "... is a run's checkpoint, whose settings describe its model; leave out ...": lambda p: p.run(
        "predict", trained(p), "--no-trend"
    ),
    "... could not be drawn: ...": not_drawn,
    "... was started with other settings, see ...": lambda p: start_folder(
        started(p), Config(seed=1), resume=True
    ),
    "... was started with ...; --resume cannot change it to ...": lambda p: p.run(
        "train", "--out", started(p), "--resume", "--seed", 7
    ),
    "there is no run to resume in ...: it has no config.json": lambda p: p.run(
        "train", "--out", p.path / "none", "--resume"
    ),
    "... exists; name another folder with --out": lambda p: p.run(
        "evaluate", trained(p), "--out", started(p), "--clips", 1
    ),
    "... cannot be read: ...": lambda p: read_checkpoint(p.path / "none.ckpt"),
    "... is truncated or no checkpoint of `motionrnn train`": lambda p: p.run("evaluate", written(p, "text")),
    "... is no checkpoint of `motionrnn train` (for one of the official program: "
    "motionrnn_ext.models.load_checkpoint)": lambda p: read_checkpoint(p.file(official_dict(net()))),
    "... holds weights alone: taken as of ..., ...x..., ... frames in and ... out": lambda p: load_run(
        p.file(rnn().state_dict())
    ),
    "... holds a model with ... channels; name a data set with as many (--dataset)": lambda p: p.run(
        "predict", p.file(MotionRNN("convlstm", 2, (4, 4), 2).state_dict())
    ),
    "... does not fit its own settings: ...": misfit,
    "...; it should be a run's folder or a .ckpt file": lambda p: p.run("evaluate", p.path / "none"),
    "device ... cannot be used: ...": lambda p: p.run("predict", trained(p), "--device", "nowhere"),
    "... is given twice; name each run once": lambda p: p.run(
        "evaluate", trained(p), trained(p), "--clips", 1
    ),
    "... must be ...; got ...": lambda _: Config(steps=0),
    "overrides: ...": lambda _: Config(overrides={"cary": "block"}),
    "... holds no settings of `motionrnn train`": lambda p: Config.read(written(p, "[]")),
    "...: unknown settings ...": lambda p: Config.read(written(p, '{"stpes": 3}')),
    "... is no readable JSON file: ...": lambda p: Config.read(written(p, "{")),
    "--override and --cell-option must be NAME=VALUE; got ...": lambda p: p.run(
        "train", "--override", "carry"
    ),
    "--import: no module ... in the working directory or on sys.path": lambda p: p.run(
        "train", "--import", "no_such_module_here"
    ),
    "--import must be the name of a module, such as my_cells; got ...": lambda p: p.run(
        "train", "--import", "my_cells.py"
    ),
    "... needs root (--root): ...": lambda p: p.run(
        "train", "--out", p.path / "run", "--dataset", "human36m"
    ),
    "... is generated and reads no files; root (--root) is for the other data sets": lambda p: p.run(
        "train", "--out", p.path / "run", "--root", p.path
    ),
    "--values names scale and offset; leave out --value-scale, --value-offset, --value-bytes": lambda p: (
        p.run("evaluate", trained(p), "--values", "shanghai", "--value-scale", 2)
    ),
    "--thresholds needs what a pixel stands for: --values NAME, or --value-scale S": lambda p: p.run(
        "evaluate", trained(p), "--thresholds", 30
    ),
    "values are for CSI and FAR: give --thresholds too": lambda p: p.run(
        "evaluate", trained(p), "--value-scale", 2
    ),
    "--... is for clips of a data set; leave it out with --frames": lambda p: p.run(
        "predict", trained(p), "--frames", p.path, "--dataset", "radar_like"
    ),
    "... has ...; the model was trained on ... given ones: give as many or more, or name fewer with --n-input ...": (
        lambda p: of_a_film(p, 2)
    ),
    "... has ...; --n-input ... needs as many or more": lambda p: of_a_film(p, 2, "--n-input", 3),
    "frames are ...x...; both should be divisible by ... (--pad repeats last row and column)": lambda p: (
        of_a_film(p, 12)
    ),
    "... is a video; reading it needs the package av: pip install av (or give its frames as a folder of images)": (
        without_decoder
    ),
    "... is in colour; its frames are made grey, as the model's are": lambda p: of_a_film(p, 12, colour=200),
    "--official: ... holds no core/layers/MotionGRU.py; it should be a checkout of thuml/MotionRNN": (
        lambda p: p.run("bench", "--official", p.path)
    ),
    "--device cuda: PyTorch finds no GPU": without_gpu,
    "--only ...: no comparison has this in its name": lambda p: p.run("bench", "--only", "nothing"),
    "--json: ... is a folder; it should be a file": lambda p: p.run("bench", "--json", p.path),
    "--json: ... is no folder": lambda p: p.run("bench", "--json", p.path / "none" / "rows.json"),
    "--report writes docs/ and README.md of the repository; run it from an editable installation": (
        report_of_an_installation
    ),
    "... (see motionrnn... --help)": lambda p: p.run("train", "--stpes", 3),
}


GROUPS = {
    "Ops": OPS,
    "Backends": BACKENDS,
    "Layers, `convert` and `warmup`": LAYERS,
    "Models": MODELS,
    "Checkpoints": CHECKPOINTS,
    "The program": PROGRAM,
}

# Of a message: the test, elsewhere, that provokes it.
ELSEWHERE = {
    "no PyTorch >= 2.10 was found to build against. ...": "test_build.py::test_none",
    "PyTorch ... in ... is too old: PyTorch >= 2.10 is needed": "test_build.py::test_too_old",
    "MOTIONRNN_EXT_... is set but no C++ compiler was found ...": "test_build.py::test_no_compiler_but_demanded",
    "CXX is ..., which is not an executable file": "test_build.py::test_cxx_that_is_not_there",
    "MOTIONRNN_EXT_CUDA=1 needs the native library that MOTIONRNN_EXT_NATIVE=0 leaves out": (
        "test_build.py::test_contradiction"
    ),
    "... is ...; it should be 1, 0 or unset": "test_build.py::test_unknown_value",
    "... has transparent pixels; they are laid over black": (
        "test_films.py::test_transparent_pixels_are_black_and_it_is_said_once"
    ),
    "... has a frame twice, as ... and ...; it should have each once": "test_films.py::test_what_a_folder_may_hold",
    "... is a film of ... frames; it should be one image, or be given alone": (
        "test_films.py::test_what_a_folder_may_hold"
    ),
    "... holds the arrays ...; it should hold one: save that as a .npy file": (
        "test_films.py::test_arrays_that_are_not_one_clip"
    ),
    "... holds a ...; it should hold one tensor: save that alone": "test_films.py::test_tensors",
    "CMake cannot build in ..., which has ... in its path; move it": "test_build.py::test_refused_at_once",
    "... was not found (pip install ...)": "test_build.py::test_no_build_tools",
    "MOTIONRNN_EXT_CUDA=1 is set but ...": "test_build.py::test_cuda_demanded_without_nvcc",
    "TORCH_CUDA_ARCH_LIST...": "test_build.py::test_mistakes",
    "CMAKE_CUDA_ARCHITECTURES...": "test_build.py::test_mistakes",
    "the build failed: ...": "test_build.py::test_broken_source_is_an_error",
    "motionrnn_ext: this build has CUDA kernels for the architectures ..., not for this GPU; ...": (
        "test_cuda_library.py::test_architectures_are_those_of_the_build_information"
    ),
    "warmup: a CUDA graph is being captured; warmup should come before": (
        "test_warmup.py::test_within_a_capture_it_is_refused"
    ),
    "No ONNX function found for ...motionrnn_ext...": "test_export.py::test_a_kernel_by_name_is_unknown_to_onnx",
    "... does not have a deterministic implementation, ...": (
        "test_deterministic_steps.py::test_what_pytorch_refuses_is_refused"
    ),
    "the package ... is missing: pip install 'motionrnn-ext[train]'": (
        "test_cli.py::test_a_missing_package_is_named_with_the_way_to_get_it"
    ),
    "the process of rank ... was lost (killed by ...); ...": (
        "test_train_processes.py::test_a_lost_process_ends_the_training_in_one_line_and_it_resumes_to_the_same_bits"
    ),
    "... was lost or cannot be reached; ...": (
        "test_train_processes.py::test_two_machines_and_one_loses_its_process"
    ),
    "nodes is ..., but the environment lacks ...: ...": "test_train_processes.py::test_several_nodes_need_an_address",
    "NODE_RANK is ... in the environment; it should be ...": (
        "test_train_processes.py::test_a_machines_number_is_checked"
    ),
    "... is ... in the environment, as in one of several processes, but ...; ...": (
        "test_train_processes.py::test_what_would_fail_leaves_no_folder"
    ),
    "... is ... in the environment; it should be a whole number from 0 on": (
        "test_train_processes.py::test_launched_otherwise"
    ),
    "... has started ... processes, and the run has ...; start as many, or one alone": (
        "test_train_processes.py::test_launched_otherwise"
    ),
    "nodes is ..., but MASTER_ADDR, the first machine's address, is not set for the processes that ... has started": (
        "test_train_processes.py::test_launched_otherwise"
    ),
    "stdout cannot be written: ...": "test_surroundings.py::test_a_full_disk",
    "val_clips gives ... to validate on; ... processes should have one each": (
        "test_train.py::test_what_is_refused_leaves_no_folder"
    ),
    "--... is ..., and torchrun has started ...; leave it out": (
        "test_train_processes.py::test_torchrun_is_not_contradicted"
    ),
    "accelerator ... cannot be used: ...": "test_experiments.py::test_bad_metrics_and_machines_come_first",
    "... go from ... to ...; they should be in [0, 1], or uint8": (
        "test_value_ranges.py::test_a_command_stops_with_the_clip_and_its_range"
    ),
    "... must have values in [0, 1]; ...": ("test_missing_values.py::test_frames_of_ones_own"),
    "... are torch....; they should be floats in [0, 1], or uint8": (
        "test_value_ranges.py::test_true_frames_out_of_range_are_refused"
    ),
    "... must give clips (T, C, H, W) of torch.float32, here ...; it gives ...": (
        "test_value_ranges.py::test_items_of_a_data_set_of_ones_own"
    ),
    "... nan in ... of ...; if these have no data, declare it: missing='nan' (--missing nan)": (
        "test_missing_values.py::test_codes_of_a_data_set_of_ones_own"
    ),
    "... nan ...; no data is declared as ... (--missing): store ... there too, or nan everywhere": (
        "test_missing_values.py::test_nan_beside_another_code_is_an_error"
    ),
    "... has no missing values; leave out missing (--missing); got ...": (
        "test_missing_values.py::test_data_sets_without_missing_values"
    ),
    "... leave [-10, 10], true frames lie in [0, 1]: are these in other units?": (
        "test_value_ranges.py::test_predictions_may_leave_the_range_but_not_by_far_without_a_word"
    ),
    "predictions have values that are nan or infinite; are the model's weights finite?": (
        "test_not_finite.py::test_predictions_that_are_not_finite_are_said"
    ),
    "...: ... of the pixels are above pixel_max ..., up to ..., and count as 1 ...": (
        "test_missing_values.py::test_stored_values_above_pixel_max_are_said_once"
    ),
    "...: ... of the steps in time between frames are longer than 1.5 times the usual one; ...": (
        "test_data_times.py::test_clips_lie_on_one_side_of_a_gap"
    ),
    "the ... is nan in step ...; ...": (
        "test_not_finite.py::test_it_stops_in_that_step_and_resumes_from_a_finite_checkpoint"
    ),
    "the ... of the validation after step ... is ...; ...": "test_not_finite.py::test_the_last_step_breaks_the_weights",
    "... is not finite after step ...; ...": "test_not_finite.py::test_a_weight_that_no_loss_shows",
    "the table is written, but not every training stayed finite: ...": (
        "test_not_finite.py::test_a_training_of_a_table_that_diverges_costs_no_other"
    ),
}
