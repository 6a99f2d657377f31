"""Can a module be made without numbers, and get the initial values of its constructor later? And what the constructors
make of `device`, `dtype` and wrong types."""

from __future__ import annotations

import copy
import importlib
import pkgutil
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from repository import ROOT
from torch import Tensor, nn
from torch.nn.utils import prune, skip_init
from torch.nn.utils.parametrizations import spectral_norm

import motionrnn_ext.layers
import motionrnn_ext.models
from motionrnn_ext import MotionGRU, MotionGRUCell, MotionRNN
from motionrnn_ext.layers import (
    ConvLSTMCell,
    ConvTTLSTMCell,
    E3DLSTMCell,
    MIMCell,
    OfficialMotionGRU,
    OffsetWarp,
    RecurrentCell,
    SpatioTemporalLSTMCell,
    register_predictor,
)
from motionrnn_ext.layers.cells import CELLS, PeepholeLSTM
from motionrnn_ext.layers.cells.e3d_lstm import DepthConv
from motionrnn_ext.layers.cells.mim import _FirstCell
from motionrnn_ext.layers.conversion import ConvertedMotionGRU
from motionrnn_ext.layers.converted_cell import ConvertedCell, Specification
from motionrnn_ext.layers.initial_values import Resettable, ZeroConv2d
from motionrnn_ext.layers.sequence import MotionGRULayer
from motionrnn_ext.layers.sharing import SharingConv2d
from motionrnn_ext.models import load_checkpoint, motion_rnn

MAP = {"map_size": (4, 6), "layer_norm": True}
MODULES: dict[type[nn.Module], tuple[tuple[Any, ...], dict[str, Any]]] = {
    MotionGRU: ((16,), {"zero_init": True}),
    MotionGRULayer: ((16,), {"zero_init": True}),
    MotionGRUCell: ((4,), {}),
    OffsetWarp: ((4,), {}),
    ZeroConv2d: ((4, 8, 3), {}),
    ConvLSTMCell: ((4, 8, 3), MAP),
    SpatioTemporalLSTMCell: ((4, 8, 3), MAP),
    _FirstCell: ((4, 8, 3), MAP),
    MIMCell: ((8, 8, 3), MAP),
    PeepholeLSTM: ((MIMCell(8, 8, 3, **MAP),), {}),
    E3DLSTMCell: ((4, 8, 3), MAP),
    DepthConv: ((4, 8, 2, 3, False), {}),
    ConvTTLSTMCell: ((4, 8, 3), {}),
    MotionRNN: (("mim", 1, (8, 8), 2, "official"), {"image_size": (8, 12)}),
}


def model(predictor: str = "mim", variant: str = "official", **options: Any) -> MotionRNN:
    options = {"filter_size": 3, "image_size": (8, 12), **options}
    return MotionRNN(predictor, 1, (8, 8, 8), 2, variant, **options)


def clip(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(2, 4, 1, 8, 12, generator=torch.Generator().manual_seed(3)).to(dtype)


def fill(module: nn.Module, value: float) -> None:
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)


def reset_all(modules: list[nn.Module]) -> None:
    for module in modules:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    pairs = found.state_dict(), expected.state_dict()
    assert list(pairs[0]) == list(pairs[1])
    for name, tensor in pairs[0].items():
        torch.testing.assert_close(tensor, pairs[1][name], rtol=0, atol=0, msg=name)


def test_the_table_has_every_module_of_the_package() -> None:
    found = set()
    for package in (motionrnn_ext.layers, motionrnn_ext.models):
        for entry in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            names = vars(importlib.import_module(entry.name)).values()
            classes = {c for c in names if isinstance(c, type) and issubclass(c, nn.Module)}
            found |= {c for c in classes if c.__module__.startswith("motionrnn_ext.")}
    # `convert` makes some of official modules, and others to compare with. _Advance calls a model and is no part of it;
    # OfficialMotionGRU is a forward without weights.
    of_convert = {ConvertedMotionGRU, ConvertedCell, Specification, SharingConv2d}
    assert (
        found - {Resettable, RecurrentCell, *of_convert, motion_rnn._Advance, OfficialMotionGRU}
        == MODULES.keys()
    )


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_what_skip_init_leaves_out_reset_parameters_gives(cls: type[nn.Module]) -> None:
    """One seed gives the bits of the constructor; a second call draws anew."""
    args, options = MODULES[cls]
    empty = skip_init(cls, *args, **options)
    fill(empty, torch.nan)
    torch.manual_seed(0)
    made = cls(*args, **options)
    torch.manual_seed(0)
    empty.reset_parameters()
    assert_same(empty, made)
    before = copy.deepcopy(empty)
    empty.reset_parameters()
    for name, parameter in empty.named_parameters():
        constant = name.endswith("peephole") or parameter.min() == parameter.max()
        assert constant or not parameter.equal(before.get_parameter(name)), name


@pytest.mark.parametrize("order", ["parents first", "children first", "any"])
@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("predictor", CELLS)
def test_modules_reset_one_by_one_in_any_order(predictor: str, variant: str, order: str) -> None:
    """As programs for sharded models do after `to_empty`: what starts at 0 or 1 does, and all else is spread as the
    constructor's, which are other numbers, and so 20 percent apart at most where there are 500 or more."""
    layer_norm = predictor != "conv_tt_lstm"
    empty = model(predictor, variant, layer_norm=layer_norm, device="meta").to_empty(device="cpu")
    fill(empty, torch.nan)
    modules = list(empty.modules())
    if order == "children first":
        modules.reverse()
    elif order == "any":
        random.Random(0).shuffle(modules)
    reset_all(modules)
    made = model(predictor, variant, layer_norm=layer_norm)
    for name, expected in made.named_parameters():
        found = empty.get_parameter(name)
        if expected.numel() > 1 and expected.min() == expected.max():
            assert found.equal(expected), name
        else:
            bound = expected.abs().max() * (1.2 if expected.numel() >= 500 else 20)
            assert found.isfinite().all() and found.abs().max() <= bound, name
            assert expected.numel() < 500 or 0.8 < found.std() / expected.std() < 1.25, name
    assert empty(clip(), 2).isfinite().all()


def test_official_zeros_change_no_other_number() -> None:
    """Numbers are drawn for what starts at 0 as well, so that a seed gives one model, with and without zeros."""
    torch.manual_seed(0)
    zeroed = dict(model().named_parameters())
    torch.manual_seed(0)
    drawn = dict(model(zero_init=False).named_parameters())
    gates = [
        f"interfaces.{i}.cell.{n}.weight"
        for i in (0, 1)
        for n in ("update", "reset", "output", "warp.warp_gate")
    ]
    assert not any(zeroed[name].any() for name in gates) and all(drawn[name].any() for name in gates)
    assert all(zeroed[name].equal(drawn[name]) for name in drawn.keys() - set(gates))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("predictor", CELLS)
def test_dtype_and_device_are_those_of_every_parameter(predictor: str, dtype: torch.dtype) -> None:
    made = model(predictor, dtype=dtype)
    assert {p.dtype for p in made.parameters()} == {dtype}
    assert made(clip(dtype), 2).dtype == dtype
    assert {p.device.type for p in model(predictor, device="meta", dtype=dtype).parameters()} == {"meta"}


def test_the_defaults_of_torch_are_followed() -> None:
    with torch.device("meta"):
        inside, elsewhere = model(), model(device="cpu")
    assert all(p.is_meta for p in inside.parameters()) and not any(p.is_meta for p in elsewhere.parameters())
    torch.set_default_dtype(torch.float64)
    try:
        torch.set_default_device("meta")
        assert {(p.dtype, p.device.type) for p in model().parameters()} == {(torch.float64, "meta")}
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def test_a_copy_of_a_model_without_numbers_takes_weights() -> None:
    made = model()
    copied = copy.deepcopy(model(device="meta"))
    copied.load_state_dict(made.state_dict(), assign=True)
    assert copied(clip(), 2).equal(made(clip(), 2))
    copied = copy.deepcopy(model(device="meta")).to_empty(device="cpu")
    copied.load_state_dict(made.state_dict())
    assert copied(clip(), 2).equal(made(clip(), 2))


@pytest.mark.parametrize("predictor", CELLS)
def test_a_stream_of_shapes_on_meta(predictor: str) -> None:
    made, frame = model(predictor, device="meta"), clip()[:, 0].to("meta")
    _, state = made.step(frame)
    found, state = made.step(frame, state)
    assert found.is_meta and found.shape == frame.shape
    cell, x = MotionGRUCell(4, device="meta"), torch.rand(1, 4, 4, 6, device="meta")
    cell.update = nn.Sequential(cell.update, nn.Identity())
    assert cell(x.bfloat16().float(), *cell.initial_state(x))[0].shape == x.shape


def test_the_state_that_mim_keeps_is_forgotten_with_the_weights_that_made_it() -> None:
    made = model(compat="openstl", device="meta")
    made(clip().to("meta"), 2)  # what is kept then is on "meta" as well
    made.to_empty(device="cpu").load_state_dict(model().state_dict())
    fresh = model(compat="openstl")
    fresh.load_state_dict(made.state_dict())
    first = fresh(clip(), 2)
    assert made(clip(), 2).equal(first) and not made(clip(), 2).equal(first)
    for each in (made, fresh):
        torch.manual_seed(0)
        each.reset_parameters()
    torch.manual_seed(0)
    assert made(clip(), 2).equal(model(compat="openstl")(clip(), 2))


def test_the_snippet_of_the_documentation() -> None:
    page = (ROOT / "docs" / "pytorch.md").read_text()
    (code,) = re.findall(
        r"## Without initial values: the meta device\n\n```python\n(.*?)```", page, re.DOTALL
    )
    names: dict[str, Any] = {"torch": torch, "MotionRNN": MotionRNN, "MotionGRU": MotionGRU}
    exec(code.replace('"cuda"', '"cpu"'), names)
    parameters = list(names["model"].parameters())
    assert {(p.dtype, p.device.type) for p in parameters} == {(torch.bfloat16, "cpu")}
    assert all(p.isfinite().all() for p in parameters) and isinstance(names["gru"], MotionGRU)


# ---- A user's own cells


class OldCell(RecurrentCell):
    """Knows neither device nor dtype, and has a part of its own."""

    def __init__(
        self, in_channels, hidden_channels, filter_size, layer_norm=False, map_size=None, compat=None
    ):
        super().__init__(in_channels, hidden_channels, filter_size, layer_norm=layer_norm, map_size=map_size)
        self.gates = self.convolution(in_channels + hidden_channels, hidden_channels)
        self.scale = nn.Linear(1, 1)

    def forward(self, x, state, memory=None, highway=None):
        hidden = self.gates(torch.cat([x, state.hidden], 1)) * self.scale.weight
        return hidden, state._replace(hidden=hidden), memory


class PassingCell(OldCell):
    """Hands on what it does not know."""

    def __init__(self, in_channels, hidden_channels, filter_size=5, **options: Any) -> None:
        super().__init__(in_channels, hidden_channels, filter_size, **options)


@pytest.fixture(params=[OldCell, PassingCell])
def own(request: pytest.FixtureRequest) -> Iterator[str]:
    register_predictor("own")(request.param)
    yield "own"
    del CELLS["own"]


def test_a_cell_that_knows_no_device_is_made_there(own: str) -> None:
    made = model(own, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in made.parameters()} == {("meta", torch.bfloat16)}
    made = model(own, dtype=torch.float64)
    assert made(clip(torch.float64), 2).dtype == torch.float64
    made = model(own, device="meta").to_empty(device="cpu")
    fill(made, torch.nan)
    torch.manual_seed(0)
    made.reset_parameters()
    torch.manual_seed(0)
    assert_same(made, model(own))


def test_parameters_of_a_subclass_are_not_left_without_values() -> None:
    class Scaled(ConvLSTMCell):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.gain = nn.Parameter(torch.ones(1))

    class Reset(Scaled):
        def reset_parameters(self) -> None:
            super().reset_parameters()
            nn.init.ones_(self.gain)

    with pytest.raises(
        TypeError, match=r"Scaled has parameters of its own \(gain\); it should have a reset_par"
    ):
        Scaled(4, 4).reset_parameters()
    cell = Reset(4, 4)
    fill(cell, torch.nan)
    cell.reset_parameters()
    assert cell.gain == 1 and all(p.isfinite().all() for p in cell.parameters())


@pytest.mark.parametrize("make", [nn.ParameterList, lambda made: nn.ParameterDict({"0": made[0]})])
def test_a_list_of_parameters_belongs_to_the_cell_that_holds_it(make: Callable[[Any], nn.Module]) -> None:
    class Listed(ConvLSTMCell):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.gains = make([nn.Parameter(torch.ones(1))])

    class Reset(Listed):
        def reset_parameters(self) -> None:
            super().reset_parameters()
            for gain in self.gains.parameters():
                nn.init.ones_(gain)

    made = model("convlstm")
    made.cells[0] = Listed(4, 8, 3)
    with pytest.raises(TypeError, match="no reset_parameters sets cells.0.gains.0; every"):
        made.reset_parameters()
    with pytest.raises(TypeError, match=r"Listed has parameters of its own \(gains.0\); it should"):
        made.cells[0].reset_parameters()
    made.cells[0] = Reset(4, 8, 3)
    fill(made, torch.nan)
    made.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in made.parameters())


class Scaling(nn.Module):
    """An adapter that forgets to say what its scale is at the start."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.scale


class ScaledConv(nn.Conv2d):
    """A convolution whose reset_parameters is nn.Conv2d's, which knows no scale."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: setattr(m, "conv_last", ScaledConv(8, 4, 1)), "conv_last.scale"),
        (lambda m: prune.l1_unstructured(m.cells[0].conv_x[1], "bias", 0.5), "cells.0.conv_x.1.bias_orig"),
        (lambda m: setattr(m, "conv_last", Scaling(m.conv_last)), "conv_last.scale"),
        (lambda m: spectral_norm(m.interfaces[0].gate), "interfaces.0.gate.parametrizations.weight.original"),
        (lambda m: prune.l1_unstructured(m.interfaces[0].gate, "weight", 0.5), "interfaces.0.gate.weight_orig"),
        (lambda m: prune.random_unstructured(m.cells[0].conv_x[0], "weight", 0.5), "cells.0.conv_x.0.weight_orig"),
    ],
)  # fmt: skip
def test_a_part_that_would_stay_without_values_is_named(
    change: Callable[[nn.Module], Any], named: str
) -> None:
    made = model("convlstm", layer_norm=True)
    change(made)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    with pytest.raises(
        TypeError, match=f"^no reset_parameters sets {re.escape(named)}; every module that holds"
    ):
        made.reset_parameters()
    assert all(tensor.equal(before[name]) for name, tensor in made.state_dict().items())


def add_gain(module: nn.Module) -> None:
    module.gain = nn.Parameter(torch.ones(1))


def put_norm(made: nn.Module) -> None:
    made.conv_last = prune.identity(nn.BatchNorm2d(2), "weight")


def learned() -> MotionRNN:
    return model("convlstm", alpha=nn.Parameter(torch.tensor(0.3)))


@pytest.mark.parametrize(
    ("make", "change", "named"),
    [
        (lambda: model().cells[1], lambda m: prune.identity(m.stationary, "peephole"), "sets stationary.peephole_or"),
        (lambda: model().cells[1].stationary, lambda m: prune.identity(m, "peephole"), "its own (peephole_orig);"),
        (lambda: model("e3d_lstm"), lambda m: prune.identity(m.cells[0].conv_x[0], "weight"), "sets cells.0.conv_x"),
        (learned, lambda m: prune.identity(m.interfaces[0].cell, "alpha"), "sets interfaces.0.cell.alpha_orig;"),
        (learned, lambda m: add_gain(m.cells[0]), "sets cells.0.gain;"),
        (lambda: model().cells[1], add_gain, "MIMCell has parameters of its own (gain);"),
        (lambda: MotionGRUCell(4), add_gain, "MotionGRUCell has parameters of its own (gain);"),
        (learned, put_norm, "sets conv_last.weight_orig;"),
    ],
)  # fmt: skip
def test_a_parameter_beside_those_that_a_module_sets_is_named(
    make: Callable[[], nn.Module], change: Callable[[nn.Module], Any], named: str
) -> None:
    made = make()
    change(made)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    with pytest.raises(TypeError, match=re.escape(named)):
        made.reset_parameters()
    assert all(tensor.equal(before[name]) for name, tensor in made.state_dict().items())


def test_a_part_that_was_added_to_a_convolution_is_reset_too() -> None:
    made = model("convlstm")
    made.conv_last.adapter = nn.Linear(3, 3)
    fill(made, torch.nan)
    made.reset_parameters()
    assert all(p.isfinite().all() for p in made.parameters())


def test_somebody_elses_parts_are_reset_too() -> None:
    made = model("convlstm")
    made.conv_last = nn.Sequential(made.conv_last, nn.GroupNorm(2, 4), nn.Identity(), nn.LayerNorm(12))
    fill(made, torch.nan)
    made.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in made.parameters())


# ---- Wrong types, in one line


def rnn(**options: Any) -> MotionRNN:
    given = {"predictor": "predrnn", "in_channels": 1, "hidden_channels": (8, 8), "patch_size": 2}
    return MotionRNN(**{**given, **options})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hidden_channels": 64}, TypeError, "hidden_channels is 64; it should be the width of every layer, such as"),
        ({"hidden_channels": {64, 32}}, TypeError, r"hidden_channels is \{64, 32\}; it should"),
        ({"hidden_channels": np.array(64)}, TypeError, r"hidden_channels is array\(64\); it should"),
        ({"hidden_channels": [64.0]}, TypeError, r"hidden_channels is \[64.0\]; it should"),
        ({"hidden_channels": (8, -8)}, ValueError, r"hidden_channels is \(8, -8\); it should"),
        ({"hidden_channels": (2, 2)}, ValueError, "hidden_channels is 2; it should be at least 4"),
        ({"image_size": 64, "layer_norm": True}, TypeError, r"image_size is 64; it should be \(H, W\), whole numb"),
        ({"image_size": (64.0, 64)}, TypeError, r"image_size is \(64.0, 64\); it should be \(H, W\)"),
        ({"image_size": (64, 0)}, ValueError, r"image_size is \(64, 0\); it should be \(H, W\)"),
        ({"patch_size": 0}, ValueError, "patch_size is 0; it should be a whole number of at least 1"),
        ({"in_channels": True}, TypeError, "in_channels is True; it should be a whole number"),
        ({"in_channels": torch.tensor(True)}, TypeError, r"in_channels is tensor\(True\); it should"),
        ({"filter_size": 5.0}, TypeError, "filter_size is 5.0; it should be a whole number"),
        ({"filter_size": 4}, ValueError, "filter_size is 4; it should be odd"),
        ({"variant": None}, ValueError, "variant is None; known: paper, official"),
        ({"predictor": None}, ValueError, "unknown predictor None; known: convlstm"),
        ({"hidden": (8, 8)}, TypeError, "unknown option 'hidden'; known: carry"),
        ({"highway": "no"}, TypeError, "highway is 'no'; it should be True or False"),
        ({"kernel_size": 3.0, "motion_gru": False}, TypeError, "kernel_size is 3.0; it should be a whole number"),
        ({"in_channels": "1" * 999}, TypeError, r"in_channels is '1{74} \.\.\.; it should be a whole number"),
        ({"alpha": "half"}, TypeError, "alpha is 'half'; it should be a number"),
        ({"alpha": float("nan")}, ValueError, "alpha is nan; it should be a number"),
        ({"cell_options": ["order"]}, TypeError, r"cell_options is \['order'\]; it should be a dict"),
        ({"compat": ["openstl"]}, ValueError, r"compat is \['openstl'\]; it should be None or 'openstl'"),
        ({"carry": np.ones(2)}, ValueError, r"carry is array\(\[1., 1.\]\); it should be 'block' or 'motion'"),
        ({"gate_side": torch.ones(2, 2)}, ValueError, r"gate_side is tensor\(\[\[1., 1.\], \[1., 1.\]\]\); it should"),
        ({"patch_size": torch.tensor(2, device="meta")}, TypeError, "patch_size is tensor.*meta.*; it should be a wh"),
        ({"trend": torch.tensor(1, device="meta")}, TypeError, "trend is tensor.*meta.*; it should be True or False"),
    ],
)  # fmt: skip
def test_a_model_names_a_bad_argument(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}") as raised:
        rnn(**options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MotionGRU("16"), TypeError, "hidden_channels is '16'; it should be a whole number"),
        (lambda: MotionGRU(-16), ValueError, "hidden_channels is -16; it should be a whole number"),
        (lambda: MotionGRU(16, 2), ValueError, "kernel_size is 2; it should be odd"),
        (lambda: MotionGRU(16, blend_kernel_size=2), ValueError, "blend_kernel_size is 2; it should be odd"),
        (lambda: MotionGRU(16, gate_side=None), ValueError, "gate_side is None; it should be 'hidden' or"),
        (lambda: MotionGRU(16, bias=False), TypeError, "unexpected keyword argument 'bias'"),
        (lambda: MotionGRUCell(4, out_channels=0), ValueError, "out_channels is 0; it should be a whole number"),
        (lambda: OffsetWarp(4, mask_kernel_size=1.5), TypeError, "mask_kernel_size is 1.5; it should be a whole"),
        (lambda: ConvLSTMCell(-4, 8), ValueError, "in_channels is -4; it should be a whole number"),
        (lambda: MIMCell(8, 8, map_size=4), TypeError, r"map_size is 4; it should be \(h, w\), whole numbers"),
        (lambda: ConvTTLSTMCell(4, 8, order=True), ValueError, "order is True, steps 3"),
        (lambda: E3DLSTMCell(4, 8, map_size=(4, 4), window=True), ValueError, "window is True; it should"),
        (lambda: MotionGRU(16, gate_side=np.ones(2)), ValueError, r"gate_side is array\(\[1., 1.\]\); it should be"),
        (lambda: ConvTTLSTMCell(4, 8, rank=np.ones((2, 2))), ValueError, r"rank array\(\[\[1., 1.\], \[1., 1.\]\]\);"),
    ],
)  # fmt: skip
def test_a_layer_names_a_bad_argument(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_channels": [8, 8]},
        {"hidden_channels": np.array([8, 8])},
        {"hidden_channels": torch.tensor([8, 8])},
        {"hidden_channels": (np.int64(8), np.int32(8))},
        {"in_channels": np.int64(1), "patch_size": np.int32(2), "filter_size": np.uint8(5)},
        {"patch_size": torch.tensor(2), "kernel_size": np.int64(3)},
        {"image_size": torch.Size((8, 12)), "layer_norm": np.True_},
        {"image_size": np.array([8, 12]), "layer_norm": True},
        {"hidden_channels": {"first": 8, "last": 8}.values(), "alpha": np.float32(0.5)},
        {"predictor": "conv_tt_lstm", "cell_options": {"order": np.int64(2), "rank": np.int64(3)}},
        {"predictor": "e3d_lstm", "image_size": (8, 12), "cell_options": {"window": np.int64(2)}},
    ],
    ids=str,
)
def test_what_is_plain_is_taken(options: dict[str, Any]) -> None:
    made = rnn(**options)
    assert set(made.hidden_channels) == {8} and all(type(width) is int for width in made.hidden_channels)
    assert type(made.patch_size) is int and made.image_size in (None, (8, 12))
    assert made(clip(), 2).shape == (2, 3, 1, 8, 12)


def test_a_checkpoint_is_not_loaded_into_another_dtype_without_a_word() -> None:
    for option in ({"dtype": torch.bfloat16}, {"device": "meta"}):
        with pytest.raises(TypeError, match="unknown option '(dtype|device)'; known: map_location"):
            load_checkpoint({}, **option)


# ---- What a model is called with


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: m(x.numpy(), 2), TypeError, "frames is a ndarray; it should be a torch.Tensor"),
        (lambda m, x: m.predict(x.numpy(), 2), TypeError, "frames is a ndarray; it should be a torch.Tensor"),
        (lambda m, x: m.step(None), TypeError, "frames is a NoneType; it should be a torch.Tensor"),
        (lambda m, x: m(x.mul(255).byte(), 2), TypeError, "frames has dtype torch.uint8; it should be floating"),
        (lambda m, x: m(x, 2.0), TypeError, "n_input is 2.0; it should be a whole number of frames"),
        (lambda m, x: m(x, True), TypeError, "n_input is True; it should be a whole number of frames"),
        (lambda m, x: m.predict(x, 2.0), TypeError, "n_future is 2.0; it should be a whole number of frames"),
        (lambda m, x: m(x, 2, state=(1, 2, 3)), TypeError, "state is a tuple; it should be a MotionRNNState"),
        (lambda m, x: m.step(x[:, 0], m.step(x[:, 0])), TypeError, "state is a tuple; it should be"),
        (lambda m, x: m.interfaces[0](x.numpy()), TypeError, "hidden is a ndarray; it should be a torch.Tensor"),
        (lambda m, x: m.interfaces[0].cell(None, x, x), TypeError, "x is a NoneType; it should be a torch.Tensor"),
    ],
)  # fmt: skip
def test_a_call_names_a_bad_argument(
    call: Callable[[MotionRNN, Tensor], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(rnn(), clip())


def test_counts_of_numpy_are_counts() -> None:
    made = rnn()
    assert made(clip(), np.int64(2)).equal(made(clip(), 2))
    assert made.predict(clip(), np.int64(3)).equal(made.predict(clip(), 3))


def test_a_model_whose_parameters_move_to_meta_when_they_are_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As under `init_empty_weights` of accelerate, which empties a learned alpha as well."""
    register = nn.Module.register_parameter

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else nn.Parameter(parameter.to("meta")))

    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "register_parameter", emptied)
        made = model(alpha=nn.Parameter(torch.tensor(0.3)))
    assert all(parameter.is_meta for parameter in made.parameters())
    made.to_empty(device="cpu")
    fill(made, torch.nan)
    torch.manual_seed(0)
    made.reset_parameters()
    torch.manual_seed(0)
    expected = model(alpha=nn.Parameter(torch.tensor(0.3)))
    # The layers of `made` have an alpha each, those of `expected` one in common.
    assert all(made.state_dict()[name].equal(tensor) for name, tensor in expected.state_dict().items())
    assert made(clip(), 2).equal(expected(clip(), 2))


def test_a_learned_alpha_begins_again_where_it_began() -> None:
    gru = MotionGRU(8, alpha=nn.Parameter(torch.tensor(0.3)))
    nn.init.zeros_(gru.cell.alpha)
    gru.reset_parameters()
    torch.testing.assert_close(gru.cell.alpha.detach(), torch.tensor(0.3), rtol=0, atol=0)
