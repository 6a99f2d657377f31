"""Ways to provoke the messages of ops, backends, layers and models in docs/errors.md; `...` stands for what varies."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cases import small_case
from foreign_cells import ConvLSTMCell as ConvLSTM
from official_modules import StandIn
from replaying import replaying
from torch import nn
from torch._subclasses import FakeTensorMode

import motionrnn_ext
from motionrnn_ext import (
    MotionGRU,
    MotionGRUCell,
    MotionGRULayer,
    MotionRNN,
    backends,
    graphed,
    graphed_step,
    ops,
    warmup,
)
from motionrnn_ext.backends import convolution, native, triton
from motionrnn_ext.layers import (
    ConvLSTMCell,
    MIMCell,
    OfficialMotionGRU,
    convert,
    from_official,
    register_predictor,
    revert,
)
from motionrnn_ext.layers.motion_gru import MotionState
from motionrnn_ext.models import save_official


class Place(NamedTuple):
    """The place of a provocation: a fresh folder, and patches that end with it."""

    path: Path
    patch: pytest.MonkeyPatch


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


def winograd_variable(place: Place) -> None:
    place.patch.setattr(convolution, "_named", "yes")
    backends.check_variables()


def unreadable_block(place: Place) -> None:
    for file in kept_block(place, place.path):
        file.write_text('{"gpu":')
    kept_block(place, place.path, keep=False)


def kept_block(place: Place, folder: Path, keep: bool = True) -> list[Path]:
    """Keep the block of an op on a GPU that is not there, or look for it, and return the files in the folder."""
    from motionrnn_ext.backends.triton import tuning

    place.patch.setattr(tuning, "gpu_name", lambda _: "a GPU")
    place.patch.setattr(tuning, "_warned", set())
    place.patch.setenv("MOTIONRNN_EXT_CACHE", str(folder))
    key = tuning.Key("offset_warp", "", 16, torch.float32, torch.device("cpu"))
    tuning.keep(key, 64, 4) if keep else tuning.stored(key)
    return list(folder.rglob("*.json"))


BACKENDS: dict[str, Provocation] = {
    "motionrnn_ext: the measured block of Triton's kernels in ... cannot be read: ...; another is used. ...": (
        unreadable_block
    ),
    "motionrnn_ext: the measured blocks of Triton's kernels cannot be kept: ...; they serve this process alone. ...": (
        lambda place: kept_block(place, Path(os.devnull))
    ),
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
    "... is '...'; it should be 0 or 1": winograd_variable,
}


# ---- Layers and models


def changed_between_steps(_: Place) -> None:
    model, frame = rnn(), frames()[:, 0]
    with model.rollout():
        _, state = model.step(frame)
        model.requires_grad_(False).conv_last.weight.mul_(2)
        model.step(frame, state)


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


def revert_another_alpha(_: Place) -> None:
    model = nn.ModuleList([StandIn(4)])
    convert(model)
    model[0].alpha = 0.9
    revert(model)


def forward_of_another_form(_: Place) -> None:
    layer = StandIn(4)
    layer.reset = nn.Conv2d(22, 18, 3, padding=1, padding_mode="circular")
    x, motion = torch.rand(1, 4, 6, 6), torch.zeros(1, 18, 6, 6)
    OfficialMotionGRU.forward(layer, x, motion, motion)  # type: ignore[arg-type]


def set_on_converted(_: Place) -> None:
    layer = StandIn(4)
    layer.scale = 1.0
    from_official(layer).scale = 2.0


def written_unseen(_: Place) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = ConvLSTM(1, 4)

        def forward(self, x: torch.Tensor) -> None:
            self.cell.conv_last.weight.data.mul_(2)

    model = Model()
    convert(model)
    model(torch.zeros(1))


def predictor(name: str, cell: Any) -> Provocation:
    return lambda _: register_predictor(name)(cell)


def other_size(_: Place) -> None:
    model = rnn("mim", image_size=(8, 8), compat="openstl", motion_gru=False, highway=False)
    model(frames(1, 4, 1, 8, 8), 2)
    model(frames(2, 4, 1, 8, 8), 2)


def state_of_another_size(_: Place) -> None:
    rnn()(frames(), 2, state=rnn().initial_state(2, 8, 8))


def state_of_other_steps(_: Place) -> None:
    state = rnn("conv_tt_lstm", cell_options={"steps": 4}).initial_state(1, 8, 8)
    rnn("conv_tt_lstm")(frames(), 2, state=state)


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
    model.conv_last = nn.Sequential(nn.MultiheadAttention(4, 1))
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


def no_motion(_: Place) -> None:
    model = rnn()
    model.interfaces[0].register_forward_hook(lambda module, inputs, outputs: (outputs[0], None))
    model(frames(1, 3, 1, 8, 8), 2)


def returns_another_shape(_: Place) -> None:
    gru = MotionGRU(8)
    gru.gate = nn.Sequential(gru.gate, nn.MaxPool2d(2))
    gru(torch.ones(1, 8, 6, 6))


def changed_weight(_: Place) -> None:
    model = MotionRNN("convlstm", 1, (32, 32), 2, image_size=(16, 16), motion_gru=False)
    loss = model(frames(1, 3, 1, 16, 16), 2).sum()
    torch.nn.init.zeros_(model.cells[0].conv_h[0].weight)
    loss.backward()


LAYERS: dict[str, Provocation] = {
    "... is ...; it should be odd": lambda _: MotionGRUCell(4, 2),
    "transient and trend are both False; one should be True, or no motion is left": lambda _: MotionGRUCell(
        4, transient=False, trend=False
    ),
    "hidden_channels is ...; it should be at least 4, because a quarter of them is encoded": lambda _: (
        MotionGRU(3)
    ),
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
    "... returns ...; it should return (...)": cell_of_one_result,
    "the state that ... returns is ...; it should be a MotionState, or a pair (offset, trend)": no_motion,
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
    "alpha asks for a gradient; it should be a number, as ... leaves it out": lambda _: MotionGRU(
        8, alpha=torch.tensor(0.5, requires_grad=True), trend=False
    ),
    "alpha is a Parameter that was made on the device meta; it should be made with its value": lambda _: (
        MotionGRU(8, alpha=nn.Parameter(torch.empty((), device="meta"))).reset_parameters()
    ),
    "history is ...; it should be a whole number of at least 1, or None": lambda _: rnn(
        "e3d_lstm", image_size=(8, 8), cell_options={"history": 0}
    ),
    "in_channels is ...; it should be hidden_channels, ...": lambda _: MIMCell(3, 4, map_size=(4, 4)),
    "the state kept from the last sequence has shape ...; it should be ...: with compat='openstl', call reset() "
    "before sequences of another size": other_size,
    "a weight of a convolution was modified by an inplace operation between forward and backward; it should be as "
    "forward has read it": changed_weight,
    "... is a ...; it should be None, or the ... that the cell returned": lambda _: ConvLSTMCell(1, 4)(
        torch.zeros(1, 1, 4, 4), (torch.zeros(1, 4, 4, 4),) * 2
    ),
    "name is ...; it should be a word, as in @register_predictor('my_cell')": lambda _: register_predictor(
        ConvLSTMCell
    ),
    "predictor ... is ...; it should be a subclass of RecurrentCell": predictor("mine", nn.Module),
    "the name ... is taken by ...; it should be a new one": predictor("mim", ConvLSTMCell),
    "unknown predictor ...; known: ...": lambda _: rnn("lstm"),
    "model is itself a MotionGRU, which cannot be replaced in place; ...": lambda _: convert(StandIn(4)),
    "model is itself a recurrent cell, which cannot be replaced in place; pass the model that calls it": lambda _: (
        convert(ConvLSTM(1, 4))
    ),
    "model is itself a converted ...; revert the model that holds it": twice,
    "the weights of ... change within its forward, written to by .data; its layers are called as before, and gain "
    "nothing": written_unseen,
    "... has no ... any more, which its official module needs; put them back first": revert_without_warp,
    "... has ..., which its official module cannot take over; undo that first": revert_another_alpha,
    "... is an attribute of the official ..., which a converted one does not read; revert the model, set it, and "
    "call convert again": set_on_converted,
    "module is a ...; it should have update, reset, output, warp.conv, warp.warp_gate": lambda _: (
        from_official(nn.Linear(1, 1))
    ),
    "model is ...; it should be a torch.nn.Module...": lambda _: convert([StandIn(4)]),  # type: ignore[arg-type]
    "module is not the official MotionGRU: ...": lambda _: from_official(near_official()),
    "... has ...=...; it should have ...=..., as in the official MotionGRU": forward_of_another_form,
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
    "step: weights or hooks of the model have been changed within rollout(); leave the block, and begin another, which "
    "reads the new weights": changed_between_steps,
    "frames has shape ...; it should be (...)": lambda _: rnn()(frames(1, 4, 3, 8, 8), 2),
    "frames has dtype ...; it should be floating point, in [0, 1]": lambda _: rnn()(frames().byte(), 2),
    "frames are ...x...; parameters per position were made for image_size ... only": lambda _: rnn(
        "mim", image_size=(8, 12)
    )(frames(), 2),
    "frames are ...x...; both should be divisible by ...": lambda _: rnn()(frames(1, 4, 1, 6, 8), 2),
    "... is ...; it should be a whole number of frames": lambda _: rnn()(frames(), 2.0),
    "n_input is ... and T ...; they should be 1 <= n_input <= T, 2 <= T": lambda _: rnn()(frames(), 5),
    "noise is ...; it should be a number of at least 0": lambda _: rnn().predict(
        frames(), 1, members=2, noise=-1
    ),
    "members is ...; it should be None with compat='openstl', whose cells keep a state from call to call": (
        lambda _: rnn("mim", image_size=(8, 8), compat="openstl").predict(frames(), 1, members=2)
    ),
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
    "state has ... older maps; it should have ..., one less than steps": state_of_other_steps,
}


def replayed(call: Callable[[], object]) -> Provocation:
    """Call with graphs of CPU tensors."""

    def provoke(_: Place) -> None:
        with replaying():
            call()

    return provoke


def hooked() -> MotionRNN:
    model = rnn()
    model.cells[0].register_forward_hook(lambda *_: None)
    return model


def graphed_twice(change: Callable[[MotionRNN], object]) -> None:
    model = rnn()
    fast = graphed(model, frames(), 2, max_graphs=1)
    change(model)
    fast(frames())


def replaced_weight(model: MotionRNN) -> None:
    model.conv_last.weight = nn.Parameter(torch.ones_like(model.conv_last.weight))


def stream_of_a_replaced_weight() -> None:
    model = rnn()
    stream = graphed_step(model, frames()[:, 0])
    replaced_weight(model)
    stream(frames()[:, 0])


def counting_model() -> None:
    model = rnn()
    # A cell that counts its calls.
    model.cells[0].calls, forward = 0, model.cells[0].forward

    def counted(*args: Any) -> Any:
        model.cells[0].calls += 1
        return forward(*args)

    model.cells[0].forward = counted
    graphed(model, frames(), 2)


def two_calls_before_backward() -> None:
    fast = graphed(rnn(), frames(), 2)
    first, _ = fast(frames()), fast(frames())
    first.sum().backward()


def second_derivative() -> None:
    model = rnn()
    out = graphed(model, frames(), 2)(frames()).sum()
    torch.autograd.grad(out, list(model.parameters()), create_graph=True)


GRAPHS: dict[str, Provocation] = {
    "...: model is a ...; it should be a MotionRNN: torch.compile makes graphs of its own, and in "
    "DistributedDataParallel the gradients of a graph would not be joined": lambda _: graphed(
        nn.DataParallel(rnn()),  # type: ignore[arg-type]
        frames(),
        2,
    ),
    "...: the weights are on ...; they should be on one GPU: model.cuda()": lambda _: graphed_step(
        rnn(), frames()[:, 0]
    ),
    "...: ... has hooks; it should have none, because a graph does not call them: remove them, or call the model "
    "itself": replayed(lambda: graphed(hooked(), frames(), 2)),
    "...: the cells of ... with compat='openstl' keep a state from call to call, which a graph would not renew; compat "
    "should be None, or call the model itself": replayed(
        lambda: graphed(rnn("mim", compat="openstl", image_size=(8, 8)), frames(), 2)
    ),
    "graphed: checkpoint is True; it should be False, because a graph keeps the memory of the whole rollout; to save "
    "memory call the model itself": lambda _: graphed(rnn(), frames(), 2, checkpoint=True),
    "graphed: sampling_mask is given; it should be None, unless the graph was made with sampling=True": replayed(
        lambda: graphed(rnn(), frames(), 2)(frames(), torch.ones(1, 1, 1, 1, 1))
    ),
    "graphed: a call of the model changes its numbers or tensors; what is needed of earlier steps should be in the "
    "state, because a graph would not renew it": replayed(counting_model),
    "graphed: backward was called with create_graph=True, and a graph has no second derivatives; call the model "
    "itself": replayed(second_derivative),
    "graphed: the graph's memory has been used again, by a later call or an earlier backward; there should be one "
    "backward after each call, before the next: join the batches of both calls, or add up gradients": replayed(
        two_calls_before_backward
    ),
    "graphed: there are max_graphs=... graphs, for other shapes, dtypes or settings; calls such as this one run the "
    "model itself, which is slower": replayed(lambda: graphed_twice(nn.Module.eval)),
    "graphed: weights, numbers or hooks of the model were replaced since its graphs were recorded; they are recorded "
    "anew, which takes time at every such change": replayed(lambda: graphed_twice(replaced_weight)),
    "graphed_step: weights, numbers or hooks of the model were replaced since its graph was recorded; it is recorded "
    "anew, which takes time at every such change": replayed(stream_of_a_replaced_weight),
    "graphed_step: the state of ... still grows after ... steps; it should have one size in the end, such as with "
    "cell_options={'history': 20}": replayed(
        lambda: graphed_step(rnn("e3d_lstm", image_size=(8, 8)), frames()[:, 0])
    ),
    "graphed_step: frame is ...; it should be ..., as the example was": replayed(
        lambda: graphed_step(rnn(), frames()[:, 0])(frames(2, 4, 1, 8, 8)[:, 0])
    ),
}


GROUPS = {
    "Ops": OPS,
    "Backends": BACKENDS,
    "Layers, `convert` and `warmup`": LAYERS,
    "Models": MODELS,
    "CUDA graphs": GRAPHS,
}
