"""Copies of models and states: pickle, deepcopy, other dtypes, torch.save and load, other processes, other variants."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from features import feature
from official_modules import UserModel
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from under_test import ALL, CPU, REFERENCE, UnderTest, on

import motionrnn_ext
from motionrnn_ext import MotionGRU, MotionGRUCell, MotionRNN
from motionrnn_ext.layers import MotionState, OffsetWarp
from motionrnn_ext.layers.cells import CELLS
from motionrnn_ext.models import load_checkpoint

HERE = [t for t in ALL if t.device == "cpu" and not t.is_slow]


def small(predictor: str = "predrnn", variant: str = "paper", seed: int = 0, **options: Any) -> MotionRNN:
    """Every parameter drawn, so that all of them show."""
    torch.manual_seed(seed)
    made = MotionRNN(predictor, 1, (8, 8), 2, variant, filter_size=3, image_size=(8, 12), **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def clip(seed: int = 1) -> Tensor:
    return torch.rand(2, 4, 1, 8, 12, generator=torch.Generator().manual_seed(seed))


def saved(thing: Any, weights_only: bool = True) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "deepcopy": copy.deepcopy,
    "torch.save": lambda thing: saved(thing, weights_only=False),  # a module is code: nobody else's file
}


@feature("copies")
@on(HERE)
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("predictor", CELLS)
def test_a_copied_model_is_the_same_and_apart(on: UnderTest, predictor: str, how: str):
    """A model that has run, trained and kept gradients is copied, too."""
    with on.chosen():
        model = small(predictor)
        model(clip(), 2).sum().backward()
        twin = COPIES[how](model)
        assert twin(clip(), 2).equal(model(clip(), 2))
        assert twin.options == model.options and repr(twin) == repr(model) and twin.training == model.training
        before = model(clip(), 2)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert model(clip(), 2).equal(before) and not twin(clip(), 2).any()


@feature("copies")
@on(HERE)
@pytest.mark.parametrize("how", COPIES)
def test_what_mim_keeps_between_sequences_is_copied(on: UnderTest, how: str):
    with on.chosen():
        model = small("mim", compat="openstl")
        model(clip(), 2)
        twin = COPIES[how](model)
        assert twin(clip(2), 2).equal(model(clip(2), 2))
        twin.reset()
        assert not twin(clip(2), 2).equal(model(clip(2), 2))


@feature("copies", on=["reference"])
@pytest.mark.parametrize(
    "module", [MotionGRU(8), MotionGRUCell(4, kernel_size=5, alpha=0.3, trend=False)], ids=repr
)
@pytest.mark.parametrize("how", COPIES)
def test_a_copied_layer(module: nn.Module, how: str):
    twin = COPIES[how](module)
    x = torch.randn(2, 8, 4, 6) if isinstance(module, MotionGRU) else torch.randn(2, 4, 4, 6)
    state = () if isinstance(module, MotionGRU) else (torch.randn(2, 50, 4, 6), torch.randn(2, 50, 4, 6))
    with REFERENCE.chosen():
        found, expected = (tree_leaves(m(x, *state)) for m in (twin, module))
    assert all(f.equal(e) for f, e in zip(found, expected)) and repr(twin) == repr(module)


@feature("copies")
@on(HERE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_copy_in_another_dtype(on: UnderTest, dtype: torch.dtype):
    """The original stays; motion state is float32 beside halves."""
    if dtype not in on.dtypes:
        pytest.skip(f"{on} has no {dtype}")
    model = small()
    weights = copy.deepcopy(model.state_dict())
    with on.chosen():
        expected = model(clip(), 2)
        twin = copy.deepcopy(model).to(dtype)
        found, motion = twin(clip().to(dtype), 2, return_motion=True)
        assert model(clip(), 2).equal(expected)
    assert {p.dtype for p in twin.parameters()} == {found.dtype} == {dtype}
    assert motion[0].offset.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(t.equal(weights[name]) for name, t in model.state_dict().items())
    # Of halves the convolutions of a whole rollout are rounded; measured 7e-3 and 1e-3.
    tolerance = {torch.float64: 2e-6, torch.bfloat16: 4e-2, torch.float16: 5e-3}[dtype]
    assert (found.double() - expected.double()).abs().max() <= tolerance * expected.abs().max()


# ---- Modules that were pickled by an older version

LACKING = {  # attributes that it did not give them
    "MotionRNN": ("arguments",),
    "MotionGRU": ("depth", "motion_channels"),
    "MotionGRUCell": ("max_offset", "trend_gate", "_first_alpha"),
    "OffsetWarp": ("channels", "out_channels", "kernel_size"),
    "DepthConv": ("in_channels", "out_channels", "kernel_size"),
    "E3DLSTMCell": ("history",),
}


def as_older(module: nn.Module) -> Any:
    """Return the module as an older version's pickle of it comes back."""
    older = copy.deepcopy(module)
    for part in older.modules():
        for name in LACKING.get(type(part).__name__, ()):
            vars(part).pop(name, None)
        if isinstance(part, MotionRNN):
            for name in ("max_offset", "trend_gate", "residual"):
                vars(part.options).pop(name)
            part._state_dict_hooks.clear()
    return pickle.loads(pickle.dumps(older))


OF_OLDER: dict[str, dict[str, Any]] = {
    "convlstm": {"layer_norm": True},
    "predrnn": {"variant": "official"},
    "mim": {"compat": "openstl"},
    "e3d_lstm": {"cell_options": {"window": 3, "history": None}},
    "conv_tt_lstm": {"cell_options": {"order": 2, "steps": 4, "rank": 3}, "trend": False, "alpha": 0.8},
}


@pytest.mark.parametrize("predictor", OF_OLDER)
def test_a_model_that_an_older_version_pickled(predictor: str):
    """It computes the same, without a bound of the motion, and its state dict says what it is."""
    model = small(predictor, max_offset=None, **OF_OLDER[predictor])
    older = as_older(model)
    assert older.arguments == model.arguments and repr(older) == repr(model)
    assert older(clip(), 2).equal(model(clip(), 2))
    assert load_checkpoint(saved(older.state_dict())).arguments == model.arguments
    assert COPIES["pickle"](older).arguments == model.arguments


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (MotionGRU(8, gate_side="decoded", trend=False, max_offset=None), [(8, 4, 6)]),
        (MotionGRUCell(4, kernel_size=5, alpha=0.3, max_offset=None), [(4, 4, 6), (50, 4, 6), (50, 4, 6)]),
        (OffsetWarp(4, 6), [(4, 4, 6), (18, 4, 6)]),
    ],
)
def test_a_layer_that_an_older_version_pickled(layer: nn.Module, shapes: list[tuple[int, ...]]):
    inputs = [torch.randn(2, *shape) for shape in shapes]
    older = as_older(layer)
    assert all(f.equal(e) for f, e in zip(tree_leaves(older(*inputs)), tree_leaves(layer(*inputs))))
    assert repr(older) == repr(layer)


def test_a_conversion_that_an_older_version_pickled_is_reverted():
    model = UserModel()
    x, official = torch.randn(2, 1, 6, 5), UserModel()
    official.load_state_dict(model.state_dict())
    motionrnn_ext.convert(model)
    for converted in model.motion_list:
        before = vars(converted)
        converted.__class__ = MotionGRUCell
        before["_official_module"] = before.pop("official")
        del before["no_ops"], before["names"]
    older = as_older(model)
    assert motionrnn_ext.revert(older).converted == ["motion_list.0", "motion_list.1", "again"]
    assert older(x).equal(official(x)) and older.again is older.motion_list[0]


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_file_that_names_the_module_where_a_class_stood_before(
    weights_only: bool, monkeypatch: pytest.MonkeyPatch
):
    """A state, as a file of weights alone too; with code allowed, a layer as well."""
    state = MotionGRU(8)(torch.randn(1, 8, 4, 6))[1]
    thing = (state,) if weights_only else (state, MotionGRUCell(4))
    file = io.BytesIO()
    with monkeypatch.context() as older:
        for cls in (MotionState, MotionGRUCell, OffsetWarp):
            older.setattr(cls, "__module__", "motionrnn_ext.layers.motion_gru")
        torch.save(thing, file)
    assert b"motionrnn_ext.layers.motion_gru\nMotionState" in file.getvalue()
    file.seek(0)
    found = torch.load(file, weights_only=weights_only)
    assert [type(part) for part in found] == [type(part) for part in thing]
    assert found[0].offset.equal(state.offset)


# ---- States


def after_two_frames(model: MotionRNN) -> Any:
    with torch.no_grad():
        _, state = model.step(clip()[:, 0])
        return model.step(clip()[:, 1], state)[1]


@feature("copies")
@on(HERE)
@pytest.mark.parametrize("how", [*COPIES, "torch.save of weights alone"])
@pytest.mark.parametrize("predictor", CELLS)
def test_a_stream_goes_on_from_a_copied_state(on: UnderTest, predictor: str, how: str):
    """weights_only=True as well: named tuples of tensors are known to be harmless."""
    with on.chosen(), torch.no_grad():
        model = small(predictor)
        state = after_two_frames(model)
        twin = COPIES.get(how, saved)(state)
        assert [type(t) for t in tree_nodes(twin)] == [type(t) for t in tree_nodes(state)]
        expected, further = model.step(clip()[:, 2], state)
        found, twins = model.step(clip()[:, 2], twin)
        assert found.equal(expected)
        assert all(t.equal(s) for t, s in zip(tree_leaves(twins), tree_leaves(further)) if s is not None)


def tree_nodes(thing: Any) -> list[Any]:
    """Tuples and what is in them."""
    inner = [node for part in thing for node in tree_nodes(part)] if isinstance(thing, tuple) else []
    return [thing, *inner]


@feature("copies", on=["reference", "cpu"] if CPU in ALL else ["reference"])
def test_a_state_that_is_one_tensor_stays_one():
    """MIM's D is part of the memory and of a layer's state: a saved state holds it once."""
    state = after_two_frames(small("mim"))
    twin = saved(state)
    tensors, twins = ([t for t in tree_leaves(s) if t is not None] for s in (state, twin))
    assert len({t.data_ptr() for t in twins}) == len({t.data_ptr() for t in tensors}) < len(tensors)


# ---- Other processes


def _predict(model: MotionRNN, frames: Tensor, state: Any, queue: Any) -> None:
    with torch.no_grad():
        prediction, state = model.step(frames, state)
    queue.put((prediction.numpy(), [t.numpy() for t in tree_leaves(state) if t is not None]))


@pytest.mark.slow
@feature("copies", on=["cpu"] if CPU in ALL else ["reference"])
def test_a_model_and_its_state_in_another_process():
    """Started anew (spawn), so that all of it is pickled, or shared by torch.multiprocessing."""
    model = small("mim").share_memory()
    state = after_two_frames(model)
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_predict, args=(model, clip()[:, 2], state, queue))
    process.start()
    try:
        found, tensors = queue.get(timeout=300)
    finally:
        process.join(60)
    with torch.no_grad():
        expected, further = model.step(clip()[:, 2], state)
    assert torch.from_numpy(found).equal(expected)
    assert all(
        torch.from_numpy(t).equal(e)
        for t, e in zip(tensors, (t for t in tree_leaves(further) if t is not None))
    )


# ---- State dicts


@feature("copies", on=["reference", "cpu"] if CPU in ALL else ["reference"])
@pytest.mark.parametrize("predictor", CELLS)
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_state_dict_is_tensors_alone_and_loads_into_any_dtype(predictor: str, variant: str):
    model = small(predictor, variant)
    weights = saved(model.state_dict())
    assert not any(
        p.equal(q) for p, q in zip(model.parameters(), small(predictor, variant, seed=1).parameters())
    )
    for other in (small(predictor, variant, seed=1), small(predictor, variant, seed=1).double()):
        result = other.load_state_dict(weights)
        assert not result.missing_keys and not result.unexpected_keys
        assert all(t.to(weights[name]).equal(weights[name]) for name, t in other.state_dict().items())
    assert other(clip().double(), 2).dtype == torch.float64
    with torch.device("meta"):
        empty = small(predictor, variant)
    empty.load_state_dict(weights, assign=True)
    assert empty(clip(), 2).equal(model(clip(), 2))


SAME_SIZES = {  # the official program's kernels in the paper's form
    "gate_kernel_size": 3, "mask_kernel_size": 3, "encoder_kernel_size": 3, "blend_kernel_size": 3,
    "highway_first": True,
}  # fmt: skip


@feature("copies", on=["reference", "cpu"] if CPU in ALL else ["reference"])
def test_weights_go_between_variants_of_one_size():
    """carry and gate_side have no tensors: one state dict, two functions."""
    official, paper = small(variant="official"), small(seed=1, **SAME_SIZES)
    paper.load_state_dict(official.state_dict())
    assert not paper(clip(), 2).equal(official(clip(), 2))
    made_official = small(variant="paper", seed=1, **SAME_SIZES, carry="motion", gate_side="decoded")
    made_official.load_state_dict(official.state_dict())
    assert made_official(clip(), 2).equal(official(clip(), 2))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, ["Unexpected key", '"conv_first.weight"', "interfaces.0.cell.update.weight", "[18, 20, 1, 1]"]),
        ({"variant": "official", "highway_first": False}, ["Unexpected key", '"conv_first.weight"']),
        ({"variant": "official", "motion_gru": False}, ["Unexpected key", '"interfaces.0.encoder.weight"']),
        ({"variant": "official", "layer_norm": True}, ["Missing key", '"cells.0.conv_x.1.weight"']),
        ({"variant": "official", "predictor": "convlstm"}, ["Unexpected key", '"cells.0.conv_m.0.weight"']),
    ],
)
def test_weights_of_another_architecture_are_refused_by_name(options: dict[str, Any], named: list[str]):
    """And change nothing where no name is shared. It is torch's error."""
    model = small(**options)
    with pytest.raises(RuntimeError, match="Error.*in loading state_dict for MotionRNN") as error:
        model.load_state_dict(small(variant="official").state_dict())
    text = str(error.value)
    for words in named:
        assert words in text, text


@feature("copies", on=["reference", "cpu"] if CPU in ALL else ["reference"])
@pytest.mark.parametrize("how", COPIES)
def test_copies_of_a_converted_model(how: str):
    """They go on, have the official names, and can be reverted."""
    model = UserModel()
    x = torch.randn(2, 1, 6, 5)
    official = model(x)
    names = list(model.state_dict())
    motionrnn_ext.convert(model)
    converted = model(x)
    twin = COPIES[how](model)
    assert twin(x).equal(converted) and list(twin.state_dict()) == names
    assert twin.again is twin.motion_list[0]
    motionrnn_ext.revert(twin)
    assert twin(x).equal(official) and isinstance(model.again, MotionGRUCell)
    fresh = UserModel()
    fresh.load_state_dict(saved(model.state_dict()))
    assert fresh(x).equal(official)
