"""The layer in a user's own model: sequences, depth, states handed on, cut off or of half precision, wrong inputs."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from golden import relative_error
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only, tree_structure

import motionrnn_ext
from motionrnn_ext import MotionGRU, MotionGRUCell, MotionGRULayer, MotionRNN
from motionrnn_ext.layers import (
    ConvLSTMCell,
    ConvTTLSTMCell,
    E3DLSTMCell,
    MIMCell,
    MotionState,
    OffsetWarp,
    RecurrentCell,
    SpatioTemporalLSTMCell,
)
from motionrnn_ext.layers.cells import CELLS

BACKENDS = [name for name in ("reference", "cpu") if name in motionrnn_ext.available_backends()]


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(**options: Any) -> MotionGRULayer:
    torch.manual_seed(0)
    made = MotionGRULayer(8, **options).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


# ---- Sequences


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"depth": True}, {"gate_kernel_size": 3}], ids=str)
def test_a_layer_is_its_steps(options: dict[str, Any], backend: str) -> None:
    ours = layer(**options)
    step = MotionGRU(8, **options).double()
    step.load_state_dict(ours.state_dict())
    hidden = drawn(2, 3, 8, *((2,) if "depth" in options else ()), 6, 8).requires_grad_()
    state, expected = None, []
    with motionrnn_ext.backend(backend):
        for t in range(3):
            x, state = step(hidden[:, t], state)
            expected.append(x)
        found, after = ours(hidden)
        loss = (found.sin().sum() + after.offset.sum(), torch.stack(expected, 1).sin().sum() + state[0].sum())
        grads = [torch.autograd.grad(each, [hidden, *m.parameters()]) for each, m in zip(loss, (ours, step))]
    assert found.shape == hidden.shape and isinstance(after, MotionState)
    pairs = zip((found, *after, *grads[0]), (torch.stack(expected, 1), *state, *grads[1]))
    assert all(relative_error(a, b.detach()) <= 1e-12 for a, b in pairs)


def test_a_layer_goes_on_from_a_state() -> None:
    ours, hidden = layer(), drawn(2, 4, 8, 6, 8)
    whole, state = ours(hidden)
    first, between = ours(hidden[:, :1])
    second, after = ours(hidden[:, 1:], between)
    # One step on so few pixels runs module by module, which sums in another order.
    pairs = zip((torch.cat([first, second], 1), *after), (whole, *state))
    assert all(relative_error(a, b.detach()) <= 1e-12 for a, b in pairs)


@pytest.mark.parametrize("shape", [(2, 8, 6, 8), (2, 0, 8, 6, 8), (2, 3, 4, 6, 8), (2, 8, 3, 6, 8)])
def test_a_layer_names_the_shape_it_takes(shape: tuple[int, ...]) -> None:
    message = rf"hidden has shape {shape}; it should be (B, T, 8, h, w) with T of 1 or more"
    with pytest.raises(ValueError) as error:
        MotionGRULayer(8)(torch.rand(shape))
    assert str(error.value) == message


def test_a_sequence_is_not_taken_for_depth() -> None:
    with pytest.raises(ValueError) as error:
        MotionGRU(8)(torch.rand(2, 8, 8, 16, 16))
    for part in ("(2, 8, 8, 16, 16)", "(B, T, 8, h, w) is for MotionGRULayer", "MotionGRU(depth=True)"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"hidden has shape \(2, 8, 6, 8\); it should be \(B, 8, D, h, w\)"):
        MotionGRU(8, depth=True)(torch.rand(2, 8, 6, 8))


def test_a_gate_side_that_is_set_later_is_checked_too() -> None:
    gru = MotionGRU(8)
    gru.gate_side = "Hidden"
    with pytest.raises(ValueError, match="gate_side is 'Hidden'; it should be 'hidden' or 'decoded'"):
        gru(torch.rand(1, 8, 4, 4))


def test_hooks_run_once_with_depth() -> None:
    calls, gru = [], MotionGRU(8, depth=True)
    gru.register_forward_hook(lambda m, i, o: calls.append(o[0].shape))
    gru(torch.rand(1, 8, 3, 4, 4))
    assert calls == [(1, 8, 3, 4, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: MotionGRU(8), (2, 8, 6, 8)),
        (lambda: MotionGRU(8, kernel_size=5), (2, 8, 6, 8)),
        (lambda: MotionGRU(8, depth=True), (2, 8, 3, 6, 8)),
        (lambda: MotionGRULayer(8), (2, 4, 8, 6, 8)),
        (lambda: MotionGRULayer(8, depth=True), (2, 4, 8, 3, 6, 8)),
    ],
)
def test_initial_state_is_the_one_of_a_call_without(make: Any, shape: tuple[int, ...], dtype: torch.dtype):
    gru, hidden = make().to(dtype), torch.rand(shape).to(dtype)
    start = gru.initial_state(hidden)
    found, after = gru(hidden, start)
    expected, state = gru(hidden)
    assert torch.equal(found, expected) and all(map(torch.equal, after, state))
    assert [(t.shape, t.dtype) for t in start] == [(t.shape, t.dtype) for t in after]
    assert not any(t.any() for t in start)


def test_a_layer_compiles_in_one_graph_and_exports() -> None:
    torch._dynamo.reset()
    ours = layer().float()
    hidden = torch.rand(2, 2, 8, 6, 8)
    state = ours(hidden)[1].detach()
    expected = ours(hidden, state)[0]
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(hidden, state)[0], expected.detach().double()) <= 1e-6
    program, file = torch.export.export(ours, (hidden, state)), io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    found, after = torch.export.load(file).module()(hidden, state)
    assert relative_error(found, expected.detach().double()) <= 1e-6 and isinstance(after, MotionState)


@pytest.mark.parametrize("cls", [MotionGRU, MotionGRULayer])
def test_a_sequential_hands_on_the_pair(cls: type[nn.Module]) -> None:
    with pytest.raises(
        TypeError, match=r"hidden is a tuple; .*the first of the pair \(x, state\) that a MotionGRU"
    ):
        nn.Sequential(cls(8), cls(8))(torch.rand(2, *((3,) if cls is MotionGRULayer else ()), 8, 4, 4))


# ---- Truncated backpropagation


def test_truncated_backpropagation_through_a_layer() -> None:
    """The second piece's gradients are those of a loop whose state was cut by hand."""
    ours, hidden = layer(), drawn(2, 6, 8, 6, 8)
    by_hand = copy.deepcopy(ours)
    state = None
    for piece in hidden.split(3, dim=1):
        x, state = ours(piece, state)
        x.sin().sum().backward()
        state = state.detach()
    offset = trend = torch.zeros(2, 18, 3, 4, dtype=torch.float64)
    for piece in hidden.split(3, dim=1):
        outputs = []
        for t in range(3):
            x, (offset, trend) = MotionGRU.forward(by_hand, piece[:, t], (offset, trend))
            outputs.append(x)
        torch.stack(outputs, 1).sin().sum().backward()
        offset, trend = offset.detach(), trend.detach()
    for a, b in zip(ours.parameters(), by_hand.parameters()):
        assert relative_error(a.grad, b.grad) <= 1e-12


@pytest.mark.parametrize("predictor", CELLS)
def test_every_state_of_a_model_can_be_cut(predictor: str) -> None:
    model = MotionRNN(predictor, 1, (4, 4), 2, filter_size=3, image_size=(8, 8)).double()
    start = model.initial_state(1, 8, 8)
    assert tree_structure(start.detach()) == tree_structure(start)
    _, state = model.step(torch.rand(1, 1, 8, 8).double())
    cut = state.detach()
    assert tree_structure(cut) == tree_structure(state)
    pairs = [(a, b) for a, b in zip(tree_leaves(cut), tree_leaves(state)) if b is not None]
    assert any(b.requires_grad for _, b in pairs)
    assert all(a.equal(b) and not a.requires_grad for a, b in pairs)
    for part in (*state.layers, *state.motion):
        assert type(part.detach()) is type(part) and not part.detach()[0].requires_grad
    frame = torch.rand(1, 1, 8, 8).double()
    by_hand = tree_map_only(Tensor, lambda t: t.detach().clone(), state)
    grads = []
    for each in (cut, by_hand):
        model.zero_grad()
        model.step(frame, each)[0].sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert grads[0] and all(relative_error(a, b) <= 1e-12 for a, b in zip(*grads))


def test_a_motion_gru_cell_alone_begins_at_rest() -> None:
    torch.manual_seed(0)
    cell, x = MotionGRUCell(4, zero_init=False), torch.rand(2, 4, 6, 8)
    start = cell.initial_state(x)
    moved = cell(x, *start)
    assert all(map(torch.equal, cell(x), moved)) and moved[1].any()


# ---- A recurrent cell alone

CELLS_ALONE: dict[type[RecurrentCell], Tensor] = {
    ConvLSTMCell: drawn(2, 3, 4, 6).float(),
    SpatioTemporalLSTMCell: drawn(2, 3, 4, 6).float(),
    ConvTTLSTMCell: drawn(2, 3, 4, 6).float(),
    MIMCell: drawn(2, 8, 4, 6).float(),
    E3DLSTMCell: drawn(2, 3, 2, 4, 6).float(),
}


@pytest.fixture(params=CELLS_ALONE, ids=lambda cls: cls.__name__)
def alone(request: pytest.FixtureRequest) -> tuple[RecurrentCell, Tensor]:
    x = CELLS_ALONE[request.param]
    torch.manual_seed(0)
    return request.param(x.shape[1], 8, 3, map_size=(4, 6)), x


def test_a_cell_alone_begins_with_zeros(alone: tuple[RecurrentCell, Tensor]) -> None:
    cell, x = alone
    zeros = torch.zeros(2, 8, *x.shape[2:])
    state, memory = cell.initial_state(zeros), cell.initial_memory(zeros) if cell.has_memory else None
    expected, found = (state, memory), (None, None)
    for _ in range(3):
        (h, *expected), (ours, *found) = cell(x, *expected), cell(x, *found)
        assert ours.equal(h) and type(found[0]) is type(state) and type(found[1]) is type(memory)
    cell = cell.to(memory_format=torch.channels_last) if x.dim() == 4 else cell
    assert torch.allclose(cell(x.movedim(1, -1).contiguous().movedim(-1, 1))[0], cell(x)[0], atol=1e-6)
    for run in (cell, torch.compile(cell, fullgraph=True, backend="eager")):
        assert torch.allclose(run(x)[0], cell(x, state, memory)[0], atol=1e-6)


def test_a_cell_takes_up_what_autocast_left(alone: tuple[RecurrentCell, Tensor]) -> None:
    cell, x = alone
    with torch.autocast("cpu", torch.bfloat16):
        half, state, memory = cell(x.bfloat16())
    assert half.dtype == torch.bfloat16 and state.cell.dtype == torch.float32
    h, state, memory = cell(x, state, memory)
    assert {t.dtype for t in tree_leaves((h, state, memory)) if t is not None} == {torch.float32}
    start = cell(x)
    # bfloat16 has 8 bits of fraction: the largest error found is 0.006.
    assert torch.allclose(h, cell(x, *start[1:])[0], atol=2e-2)


def test_a_cell_names_what_it_is_not_called_with(alone: tuple[RecurrentCell, Tensor]) -> None:
    cell, x = alone
    zeros, kind = torch.zeros(2, 8, *x.shape[2:]), type(cell(x)[1]).__name__
    with pytest.raises(TypeError) as error:
        cell(x, (zeros, zeros))
    assert str(error.value) == f"state is a tuple; it should be None, or the {kind} that the cell returned"
    depth = "2, " if x.dim() == 5 else ""
    with pytest.raises(ValueError) as wrong:
        cell(x[0])
    assert str(wrong.value) == f"x has shape {tuple(x[0].shape)}; it should be (B, {x.shape[1]}, {depth}h, w)"
    with pytest.raises(TypeError, match="x is a NoneType; it should be a torch.Tensor"):
        cell(None)


def test_a_state_of_another_predictor_is_named() -> None:
    with pytest.raises(
        TypeError, match="memory is a Tensor; it should be None, or the MIMMemory that the cell returned"
    ):
        MIMCell(4, 4, 3, map_size=(4, 4))(torch.zeros(1, 4, 4, 4), None, torch.zeros(1, 4, 4, 4))
    models = [MotionRNN(name, 1, (4, 4), 2, image_size=(8, 8)) for name in ("mim", "predrnn")]
    with pytest.raises(TypeError, match="memory is a Tensor; it should be None, or the MIMMemory that the"):
        models[0].step(torch.rand(1, 1, 8, 8), models[1].initial_state(1, 8, 8))


# ---- Half precision, and inputs that do not fit


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_states_of_half_precision_are_taken_up(half: torch.dtype, backend: str) -> None:
    torch.manual_seed(0)
    gru, hidden = MotionGRU(8), torch.rand(2, 8, 6, 8)
    state = MotionState(*(0.5 * torch.randn(2, 2, 18, 3, 4)).to(half))
    expected, after = gru(hidden, MotionState(*(t.float() for t in state)))
    with motionrnn_ext.backend(backend):
        found, moved = gru(hidden, state)
        assert torch.allclose(found, expected, atol=1e-5) and moved.offset.dtype == torch.float32
        x, moved = copy.deepcopy(gru).to(half)(hidden.to(half), state)
        assert x.dtype == half and moved.offset.dtype == moved.trend.dtype == torch.float32
        assert relative_error(x, expected.detach().double()) <= 2e-2
        assert relative_error(moved.offset, after.offset.detach().double()) <= 2e-2
        cell, features = MotionGRUCell(8).to(half), torch.rand(1, 8, 4, 4).to(half)
        zeros = torch.zeros(1, 18, 4, 4, dtype=half)
        out, *motion = cell(features, zeros, zeros)
        assert out.dtype == half and {t.dtype for t in motion} == {torch.float32}
        assert cell.warp(features, zeros).dtype == half


def test_half_states_receive_gradients_and_compile() -> None:
    torch._dynamo.reset()
    gru = MotionGRU(8).bfloat16()
    hidden = torch.rand(2, 8, 6, 8, dtype=torch.bfloat16)
    state = [torch.randn(2, 18, 3, 4).bfloat16().requires_grad_() for _ in range(2)]
    for run in (gru, torch.compile(gru, fullgraph=True, backend="aot_eager")):
        x, after = run(hidden, MotionState(*state))
        grads = torch.autograd.grad(after.offset.sum() + x.sum(), state)
        assert all(g.dtype == torch.bfloat16 and g.any() for g in grads)


@pytest.mark.parametrize("predictor", CELLS)
def test_a_stream_goes_on_when_the_model_changes_its_precision(predictor: str) -> None:
    torch.manual_seed(0)
    model = MotionRNN(predictor, 1, (8, 8), 2, filter_size=3, image_size=(8, 8)).eval()
    frames = torch.rand(2, 1, 1, 8, 8)
    _, state = model.step(frames[0])
    expected, _ = model.step(frames[1], state)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        found, state = model.to(dtype).step(frames[1].to(dtype), state)
        assert found.dtype == state.layers[0].hidden.dtype == dtype
        assert state.motion[0].offset.dtype == torch.float32
        if dtype == torch.bfloat16:
            # bfloat16 has 8 bits of fraction.
            assert relative_error(found, expected.detach().double()) <= 3e-2
    with pytest.raises(
        TypeError, match="hidden has dtype torch.float32; it should be torch.float64, the dtype"
    ):
        model.double().step(frames[1].double(), state)
    _, state = model.step(frames[1].double())
    with pytest.raises(
        TypeError, match="hidden has dtype torch.float64; it should be torch.bfloat16, the dtype"
    ):
        model.bfloat16().step(frames[1].bfloat16(), state)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_model_of_half_precision_takes_a_state_of_it(half: torch.dtype) -> None:
    model = MotionRNN("predrnn", 1, (8, 8), 2, filter_size=3).to(half)
    frame = torch.rand(1, 1, 8, 8).to(half)
    _, state = model.step(frame)
    halved = tree_map_only(Tensor, lambda t: t.to(half), state)
    found, after = model.step(frame, halved)
    assert found.dtype == half and after.motion[0].offset.dtype == torch.float32
    assert relative_error(found, model.step(frame, state)[0].detach().double()) <= 2e-2


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("predictor", CELLS)
def test_a_stream_leaves_autocast_and_half_precision(predictor: str, half: torch.dtype) -> None:
    torch.manual_seed(0)
    model = MotionRNN(predictor, 1, (4, 4), 2, filter_size=3, image_size=(8, 8))
    frame = torch.rand(1, 1, 8, 8)
    with torch.autocast("cpu", half):
        _, state = model.step(frame)
    in_float32 = tree_map_only(Tensor, Tensor.float, state)
    found, after = model.step(frame, state)
    expected, _ = model.step(frame, in_float32)
    assert found.equal(expected) and {t.dtype for t in tree_leaves(after) if t is not None} == {torch.float32}
    with torch.autocast("cpu", half):  # and comes back
        assert model.step(frame, after)[0].dtype == half


def test_a_model_names_a_state_that_is_not_its_own() -> None:
    model = MotionRNN("predrnn", 1, (4, 4), 2, filter_size=3)
    other = MotionRNN("convlstm", 1, (4, 4), 2, filter_size=3)
    frame = torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match="state has no memory; 'predrnn' has one"):
        model.step(frame, other.step(frame)[1])
    with pytest.raises(TypeError, match=r"state.layers\[1\] is a NoneType; it should have a tensor `hidden`"):
        state = model.step(frame)[1]
        model.step(frame, state._replace(layers=(state.layers[0], None)))
    with pytest.raises(
        TypeError, match="state.layers.0..hidden has dtype torch.float32; it should be torch.float64"
    ):
        copy.deepcopy(model).double().step(frame.double(), model.step(frame)[1])
    with pytest.raises(
        TypeError, match="frames has dtype torch.float64; it should be torch.float32, the dtype of th"
    ):
        model.predict(frame[:, None].double(), 2)
    for given, error in (("2", TypeError), (2.0, TypeError), (-2, ValueError), (True, TypeError)):
        with pytest.raises(
            error, match=f"batch_size is {given!r}; it should be a whole number of at least 0"
        ):
            model.initial_state(given, 8, 8)
    with pytest.raises(ValueError, match=r"x has shape \(3,\); it should be \(B, 4, H, W\)"):
        MotionGRUCell(4).initial_state(torch.rand(3))


MOTION = torch.zeros(2, 18, 3, 4)
ODD: dict[str, tuple[Any, type[Exception], str]] = {
    "list": (lambda g, h: g([h]), TypeError, "hidden is a list; it should be a torch.Tensor"),
    "no pair": (lambda g, h: g(h, (MOTION,)), TypeError, r"state is 1 entries; it should be a MotionState, or a pair"),
    "tensor": (lambda g, h: g(h, MOTION), TypeError, "state is a Tensor; it should be a MotionState"),
    "none inside": (lambda g, h: g(h, (MOTION, None)), TypeError, "trend is a NoneType; it should be a torch"),
    "batch": (lambda g, h: g(h, (MOTION[:1], MOTION)), ValueError, r"offset has shape \(1, 18, 3, 4\); it should be"),
    "size": (lambda g, h: g(h, (MOTION, MOTION[..., :1])), ValueError, "trend has shape"),
    "whole": (lambda g, h: g(h, (MOTION.int(), MOTION)), TypeError, "offset has dtype torch.int32; it should"),
    "warp": (lambda g, h: OffsetWarp(4)(h, MOTION), ValueError, r"x has shape .*; it should be \(B, 4, H, W\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_what_does_not_fit_is_named(what: str) -> None:
    call, error, message = ODD[what]
    with pytest.raises(error, match=message):
        call(MotionGRU(8), torch.rand(2, 8, 6, 8))


@pytest.mark.parametrize("wrap", [tuple, list])
def test_a_state_may_be_a_plain_pair(wrap: Any) -> None:
    gru, hidden = MotionGRU(8), torch.rand(2, 8, 6, 8)
    _, state = gru(hidden)
    assert torch.equal(gru(hidden, wrap(state))[0], gru(hidden, state)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_a_state_spoils_its_clip_alone(backend: str) -> None:
    gru, hidden = MotionGRU(8), torch.rand(2, 8, 6, 8)
    state = MotionState(MOTION.clone(), MOTION.clone())
    state.offset[1, 3, 1, 1] = float("nan")
    with motionrnn_ext.backend(backend):
        x, after = gru(hidden, state)
    assert x[0].isfinite().all() and x[1].isnan().any() and after.offset[1].isnan().any()


def test_a_model_wants_its_own_state() -> None:
    model = MotionRNN("convlstm", 1, (4, 4), 2, filter_size=3)
    frame = torch.rand(1, 1, 8, 8)
    _, state = model.step(frame)
    with pytest.raises(TypeError, match="state is a list; it should be a MotionRNNState"):
        model.step(frame, list(state))
