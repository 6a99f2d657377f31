"""MIM, E3D-LSTM, Conv-TT-LSTM and a user's own predictor: equations written out, states, parameter counts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from equations import BACKENDS, assert_same, drawn, randomised
from golden import relative_error
from torch.utils.flop_counter import FlopCounterMode

import motionrnn_ext
from motionrnn_ext import MotionRNN
from motionrnn_ext.layers import (
    ConvTTLSTMCell,
    E3DLSTMCell,
    MIMCell,
    MotionGRU,
    RecurrentCell,
    register_predictor,
)
from motionrnn_ext.layers.cells import (
    CELLS,
    ConvTTLSTMState,
    E3DLSTMState,
    MIMMemory,
    MIMState,
    PeepholeLSTM,
    cell_options,
)

BASE = {"motion_gru": False, "highway": False}
s = torch.sigmoid


def peephole_lstm(unit: PeepholeLSTM, x, a, b):
    i, f, g, o = (unit.conv_a(a) + unit.conv_x(x)).chunk(4, 1)
    p_i, p_f = unit.peephole.chunk(2)
    b_new = s(f + p_f * b + 1) * b + s(i + p_i * b) * torch.tanh(g)
    return s(o + unit.output_peephole * b_new) * torch.tanh(b_new), b_new


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("below", [False, True], ids=["layer 2", "layer 3"])
@pytest.mark.parametrize("highway", [False, True])
def test_mim_is_its_equations(highway: bool, below: bool, backend: str) -> None:
    cell = randomised(MIMCell(4, 4, 3, layer_norm=below, map_size=(5, 6)))
    x, previous, h, c, m, stationary, d, n, d_below, y = (drawn(2, 4, 5, 6, seed=i) for i in range(10))
    d_new, n_new = peephole_lstm(cell.nonstationary, d_below if below else x - previous, d, n)
    kept, stationary_new = peephole_lstm(cell.stationary, d_new, c, stationary)
    i, f, g, o = cell.conv_x(x).chunk(4, 1)
    i_h, g_h, o_h = cell.conv_h(h).chunk(3, 1)
    i_m, f_m, g_m, o_m = cell.conv_m(m).chunk(4, 1)
    c_new = kept + s(i + i_h) * torch.tanh(g + g_h)
    m_new = s(f + f_m + 1) * m + s(i + i_m) * torch.tanh(g + g_m)
    o = s(o + o_h + o_m)
    both = F.conv2d(torch.cat([c_new, m_new], 1), cell.conv_last.weight)
    h_new = o * torch.tanh(both) + (1 - o) * (y if highway else 0)
    expected = (h_new, c_new, m_new, stationary_new, d_new, n_new)
    with motionrnn_ext.backend(backend):
        state, memory = MIMState(h, c, stationary, d, n, previous), MIMMemory(m, d_below if below else None)
        found, state, memory = cell(x, state, memory, y if highway else None)
        assert state.input is x and state.hidden is found and memory.difference is state.difference
        parts = (found, state.cell, memory.memory, state.stationary, state.difference, state.nonstationary)
        read = [d_below] if below else [x, previous]
        wrt = [h, c, m, stationary, d, n, *read, *([y] if highway else []), *cell.parameters()]
        assert_same(parts, expected, wrt)


def test_mim_starts_every_sequence_afresh_and_learns_through_all_of_it() -> None:
    torch.manual_seed(0)
    ours, theirs = (
        MotionRNN("mim", 1, (4, 4, 4), 2, image_size=(8, 12), filter_size=3, compat=compat).double()
        for compat in (None, "openstl")
    )
    randomised(ours)
    theirs.load_state_dict(ours.state_dict())
    frames = torch.rand(2, 6, 1, 8, 12, dtype=torch.float64)
    first = ours(frames, 6)
    assert torch.equal(ours(frames, 6), first) and torch.equal(theirs(frames, 6), first)
    assert not torch.equal(theirs(frames, 6), first)
    with pytest.raises(
        ValueError, match=r"shape \(2, 4, 4, 6\); it should be \(1, 4, 4, 6\).*call reset\(\)"
    ):
        theirs(frames[:1], 6)
    theirs.reset()
    assert torch.equal(theirs(frames, 6), first)
    # S is all that the deviation cuts: only gradients through it differ.
    theirs.reset()
    for model in (ours, theirs):
        model(frames, 6)[:, -1].square().sum().backward()
    name = "cells.1.stationary.conv_x.0.weight"
    gradients = [dict(model.named_parameters())[name].grad for model in (theirs, ours)]
    assert relative_error(*gradients) > 1e-3


def attention(query, history):
    """One position at a time: (B, C, W, h, w), C_0 .. C -> (B, C, W, h, w)."""
    out = torch.empty_like(query)
    keys = torch.stack(history, 1).movedim(2, -1).flatten(1, -2)  # (B, n W h w, C)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in query.shape[2:])):
        w, i, j = place.tolist()
        weights = torch.softmax((keys * query[:, None, :, w, i, j]).sum(-1), 1)
        out[:, :, w, i, j] = (weights[..., None] * keys).sum(1)
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("highway", [False, True])
def test_e3d_lstm_is_its_equations(highway: bool, window: int, backend: str) -> None:
    cell = randomised(E3DLSTMCell(3, 4, 3, layer_norm=highway, map_size=(4, 5), window=window))
    shape = (window, 4, 5)
    x, h, c, m, y, c_0, c_1 = (drawn(2, 4 if i else 3, *shape, seed=i) for i in range(7))

    def conv(layers, maps):
        out = F.conv3d(F.pad(maps, (0, 0, 0, 0, 0, window - 1)), layers[0].weight, padding=(0, 1, 1))
        return layers[1:](out)

    i_m, f_m, g_m, i, r, g, o = conv(cell.conv_x, x).chunk(7, 1)
    i_h, r_h, g_h, o_h = conv(cell.conv_h, h).chunk(4, 1)
    i_n, f_n, g_n, m_n = conv(cell.conv_m, m).chunk(4, 1)
    recalled = attention(s(r + r_h), [c_0, c_1])
    c_new = cell.norm(c + recalled) + s(i + i_h) * torch.tanh(g + g_h)
    m_new = s(f_m + f_n + 1) * torch.tanh(m_n) + s(i_m + i_n) * torch.tanh(g_m + g_n)
    o = s(torch.tanh(o + o_h + conv(cell.conv_o_cell, c_new) + conv(cell.conv_o_memory, m_new)))
    both = F.conv3d(torch.cat([c_new, m_new], 1), cell.conv_last.weight)
    h_new = o * torch.tanh(both) + (1 - o) * (y if highway else 0)
    with motionrnn_ext.backend(backend):
        state = E3DLSTMState(h, c, torch.cat([cell.rows(c_0), cell.rows(c_1)], dim=1), x[:, :, 1:])
        found, state, memory = cell(x, state, m, y if highway else None)
        assert state.history.shape[1] == 3 * window * 4 * 5
        assert state.history[:, -window * 4 * 5 :].equal(cell.rows(state.cell))
        wrt = [x, h, c, m, c_0, c_1, *([y] if highway else []), *cell.parameters()]
        assert_same((found, state.cell, memory), (h_new, c_new, m_new), wrt)


def test_e3d_lstm_learns_its_memory_and_openstls_does_not() -> None:
    for compat, learns in ((None, True), ("openstl", False)):
        model = MotionRNN(
            "e3d_lstm", 1, (4, 4), 2, filter_size=3, image_size=(8, 8), compat=compat, highway=False
        )
        randomised(model)
        model(torch.rand(1, 4, 1, 8, 8, dtype=torch.float64), 2).square().sum().backward()
        gradient = model.cells[0].conv_m[0].weight.grad
        assert (gradient.abs().max() > 0) == learns


def test_e3d_lstm_reads_the_last_frames_in_depth() -> None:
    """Layer 1 sees (0, frame 1), (frame 1, frame 2), ...: what came before the window is only remembered."""
    model = MotionRNN("e3d_lstm", 1, (4,), 1, filter_size=3, image_size=(4, 5), cell_options={"window": 3})
    seen = []
    model.cells[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    frames = torch.rand(2, 4, 1, 4, 5)
    model(frames, 4)
    padded = torch.cat([torch.zeros(2, 2, 1, 4, 5), frames], 1).movedim(1, 2)  # (B, C, T + 2, H, W)
    assert len(seen) == 3
    assert all(torch.equal(x, padded[:, :, t : t + 3]) for t, x in enumerate(seen))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("order", "steps"), [(3, 3), (2, 4), (1, 2), (1, 1)])
@pytest.mark.parametrize("highway", [False, True])
def test_conv_tt_lstm_is_its_equations(highway: bool, order: int, steps: int, backend: str) -> None:
    cell = randomised(ConvTTLSTMCell(3, 4, 3, order=order, steps=steps, rank=2))
    x, c, y, *ring = (drawn(2, 4 if i else 3, 5, 6, seed=i) for i in range(3 + steps))

    def conv(layer, maps):
        return F.conv2d(maps, layer.weight, layer.bias, padding=1)

    lags, train = steps - order + 1, 0
    for level in range(order):
        core = conv(cell.cores[level - 1], train) if level else 0
        train = conv(cell.factors[level], torch.cat(ring[level : level + lags], 1)) + core
    i, f, g, o = (conv(cell.conv_x, x) + conv(cell.conv_v, train)).chunk(4, 1)
    c_new = s(f) * c + s(i) * torch.tanh(g)
    h_new = s(o) * torch.tanh(c_new) + (1 - s(o)) * (y if highway else 0)
    with motionrnn_ext.backend(backend):
        state = ConvTTLSTMState(ring[-1], c, tuple(ring[:-1]))
        found, state, memory = cell(x, state, highway=y if highway else None)
        assert memory is None and state.hidden is found
        assert all(kept is given for kept, given in zip(state.older, ring[1:], strict=True))
        wrt = [x, c, *ring, *([y] if highway else []), *cell.parameters()]
        assert_same((found, state.cell), (h_new, c_new), wrt)


def test_motion_gru_moves_every_slice_of_depth_by_itself() -> None:
    gru, flat = randomised(MotionGRU(8, depth=True)), randomised(MotionGRU(8))
    maps = drawn(2, 8, 3, 4, 6)
    once, state = gru(maps)
    twice, state = gru(once, state)
    for d in range(3):
        expected, alone = flat(maps[:, :, d])
        expected, alone = flat(expected, alone)
        assert relative_error(twice[:, :, d], expected.detach()) <= 1e-13
        assert relative_error(state.offset.unflatten(0, (2, 3))[:, d], alone.offset.detach()) <= 1e-13


@pytest.mark.parametrize(
    ("predictor", "hidden", "channels", "patch_size", "image_size", "count"),
    [
        ("mim", 128, 1, 4, (64, 64), 37_945_344),  # OpenSTL's 38,043,648 less 3 x 32,768 of MIM-N's conv_last
        ("mim", 64, 1, 4, (64, 64), 9_748_480 - 3 * 8_192),
        ("mim", 64, 3, 4, (128, 128), 10_993_664 - 3 * 8_192),
        ("mim", 128, 3, 4, (256, 256), 47_611_904 - 3 * 32_768),
        ("e3d_lstm", 128, 1, 4, (64, 64), 51_347_456),
        ("e3d_lstm", 128, 3, 8, (256, 256), 60_850_176),
        ("e3d_lstm", 64, 3, 4, (128, 128), 14_655_488),
        ("convlstm", 128, 1, 4, (64, 64), 11_675_648),
        ("predrnn", 128, 1, 4, (64, 64), 23_838_720),
    ],
)
def test_parameters_of_the_published_sizes(
    predictor, hidden, channels, patch_size, image_size, count
) -> None:
    with torch.device("meta"):
        model = MotionRNN(predictor, channels, (hidden,) * 4, patch_size, image_size=image_size, **BASE)
    assert sum(p.numel() for p in model.parameters()) == count


# ---- A predictor of the user's own


class ConvGRUState(NamedTuple):
    hidden: torch.Tensor


class ConvGRUCell(RecurrentCell):
    def __init__(self, in_channels, hidden_channels, filter_size=5, *, gain: float = 1.0, **options) -> None:
        super().__init__(in_channels, hidden_channels, filter_size, **options)
        self.gates = self.convolution(in_channels + hidden_channels, 2 * hidden_channels)
        self.candidate = self.convolution(in_channels + hidden_channels, hidden_channels)
        self.gain = gain

    def initial_state(self, hidden: torch.Tensor) -> ConvGRUState:
        return ConvGRUState(hidden)

    def forward(self, x, state, memory=None, highway=None):
        update, reset = self.gates(torch.cat([x, state.hidden], 1)).sigmoid().chunk(2, 1)
        candidate = self.gain * self.candidate(torch.cat([x, reset * state.hidden], 1)).tanh()
        hidden = torch.lerp(state.hidden if highway is None else highway, candidate, update)
        return hidden, ConvGRUState(hidden), memory


@pytest.fixture
def conv_gru() -> Iterator[str]:
    register_predictor("conv_gru")(ConvGRUCell)
    yield "conv_gru"
    del CELLS["conv_gru"]


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_predictor_of_ones_own(conv_gru: str, variant: str) -> None:
    options = {"layer_norm": True, "image_size": (8, 12), "cell_options": {"gain": 2.0}}
    model = MotionRNN(conv_gru, 1, (8, 8), 2, variant, filter_size=3, **options)
    assert all(cell.gain == 2.0 for cell in model.cells)
    out = model(torch.rand(2, 5, 1, 8, 12), 3)
    out.sum().backward()
    assert out.shape == (2, 4, 1, 8, 12)
    assert all(p.grad is not None for p in model.parameters())


def test_options_of_base_classes_count_and_a_class_may_be_defined_again(conv_gru: str) -> None:
    again = type("ConvGRUCell", (ConvGRUCell,), {"__module__": __name__, "__qualname__": "ConvGRUCell"})
    register_predictor(conv_gru)(again)
    assert cell_options(conv_gru) == ["gain"] and CELLS[conv_gru] is again
    model = MotionRNN(conv_gru, 1, (8, 8), 2, cell_options={"gain": 2.0})
    assert type(model.cells[1]) is again and model.cells[1].gain == 2.0


@pytest.mark.parametrize("predictor", CELLS)
@pytest.mark.parametrize("compat", [None, "openstl"])
def test_memories_stay_float32_under_autocast_and_an_empty_batch_is_empty(predictor, compat) -> None:
    model = MotionRNN(predictor, 1, (8, 8, 8), 2, filter_size=3, image_size=(8, 12), compat=compat)
    state = None
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            prediction, state = model.step(torch.rand(2, 1, 8, 12), state)
    assert prediction.dtype == torch.bfloat16
    memories = [layer.cell for layer in state.layers]
    memories += [getattr(state.memory, "memory", state.memory)] if model.cells[0].has_memory else []
    memories += [m for layer in state.layers if isinstance(layer, MIMState) for m in layer[2::2]]
    assert {memory.dtype for memory in memories} == {torch.float32}
    model.reset()
    assert model(torch.rand(0, 4, 1, 8, 12), 2).shape == (0, 3, 1, 8, 12)


def test_what_mim_keeps_with_compat_is_only_numbers() -> None:
    """No graph, whatever came before: a copy, another dtype and a training step after inference all work."""
    model = MotionRNN("mim", 1, (4, 4), 2, filter_size=3, image_size=(8, 12), compat="openstl")
    frames = torch.rand(2, 4, 1, 8, 12)
    model(frames, 2)
    copied = copy.deepcopy(model)
    with torch.inference_mode():
        expected = copied(frames, 2)
    copied(frames, 2).sum().backward()
    assert torch.equal(model(frames, 2), expected)
    assert model.double()(frames.double(), 2).dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: MotionRNN("conv_tt_lstm", 1, (8,), 4, cell_options={"ranks": 3}),
            TypeError,
            "unknown option 'ranks' of predictor 'conv_tt_lstm'; known: order, steps, rank",
        ),
        (
            lambda: MotionRNN("mim", 1, (8,), 4, cell_options={"rank": 3}),
            TypeError,
            "unknown option 'rank' of predictor 'mim', which has none of its own",
        ),
        (lambda: MIMCell(8, 8), ValueError, r"map_size is None; for MIMCell it should be \(h, w\)"),
        (lambda: MIMCell(3, 8, map_size=(4, 4)), ValueError, "in_channels is 3; it should be hidden_channels, 8"),
        (lambda: E3DLSTMCell(3, 8, map_size=(4, 4), window=1), ValueError, "window is 1; it should be a whole number"),
        (
            lambda: ConvTTLSTMCell(3, 8, order=3, steps=2),
            ValueError,
            "order is 3, steps 2, rank 8; they should be whole, 1 <= order <= steps and 1 <= rank",
        ),
        (lambda: ConvTTLSTMCell(3, 8, rank="x"), ValueError, "rank 'x'; they should be whole"),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---- Arithmetic


@pytest.mark.parametrize("predictor", ["convlstm", "predrnn"])
@pytest.mark.parametrize("wanted", ["weights", "frames too"])
def test_a_training_step_has_the_multiplications_of_separate_convolutions(
    predictor: str, wanted: str
) -> None:
    """Cells that join their inputs compute no gradient by frames, or by the zeros that a sequence starts from."""
    model, flops, grads = MotionRNN(predictor, 1, (4, 4), 2, **BASE).double(), {}, {}
    frames = drawn(2, 5, 1, 8, 8, seed=0).requires_grad_(wanted == "frames too")
    leaves = [*model.parameters(), *[frames] * frames.requires_grad]
    for backend in ("reference", "cpu"):
        with motionrnn_ext.backend(backend), FlopCounterMode(display=False) as counter:
            model(frames, 3).square().mean().backward()
        flops[backend] = counter.get_total_flops()
        grads[backend], _ = zip(*[(leaf.grad, setattr(leaf, "grad", None)) for leaf in leaves])
    assert flops["cpu"] == flops["reference"] > 0
    assert max(map(relative_error, grads["cpu"], grads["reference"])) <= 1e-12
