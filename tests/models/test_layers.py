"""MotionGRU and the recurrent cells against their equations written out, float64, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from equations import BACKENDS, assert_same, drawn, randomised
from golden import relative_error

import motionrnn_ext
from motionrnn_ext.backends import reference
from motionrnn_ext.benchmarks.measuring import counting
from motionrnn_ext.layers import ConvLSTMCell, LSTMState, MotionGRU, MotionGRUCell, SpatioTemporalLSTMCell
from motionrnn_ext.layers.cells import CELLS, cell_class


def cell_equations(cell: MotionGRUCell, x, offset, trend):
    u = torch.sigmoid(cell.update(torch.cat([x, offset], 1)))
    r = torch.sigmoid(cell.reset(torch.cat([x, offset], 1)))
    z = torch.tanh(cell.output(torch.cat([x, r * offset], 1)))
    if not cell.transient:
        moved = new_trend = trend + cell.alpha * (u * z - trend)
    elif not cell.trend:
        moved, new_trend = u * z + (1 - u) * offset, trend
    else:
        new_trend = trend + cell.alpha * (offset - trend)
        moved = u * z + (1 - u) * offset + new_trend
    out = reference.offset_warp(x, moved, cell.warp.warp_gate(x), cell.warp.conv.weight)
    return out, moved, new_trend


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gate_kernel_size": 1, "mask_kernel_size": 1},
        {"gate_kernel_size": 1, "mask_kernel_size": 3},
        {"kernel_size": 5, "alpha": 0.3, "out_channels": 2},
        {"trend": False},
        {"transient": False, "alpha": 0.2},
    ],
    ids=str,
)
def test_motion_gru_cell_is_its_equations(options, backend: str) -> None:
    cell = randomised(MotionGRUCell(4, **options))
    motion = cell.motion_channels
    x, offset, trend = drawn(2, 4, 6, 5), drawn(2, motion, 6, 5, seed=2), drawn(2, motion, 6, 5, seed=3)
    with motionrnn_ext.backend(backend):
        found = cell(x, offset, trend)
        packed = cell(x, offset, trend, cell.pack())
        assert all(torch.equal(a, b) for a, b in zip(found, packed))
        wrt = [t for t in (x, offset, trend, *cell.parameters()) if cell.transient or t is not trend]
        assert_same(found, cell_equations(cell, x, offset, trend), wrt)


def test_motion_gru_cell_has_the_official_state_dict_and_initial_values() -> None:
    cell = MotionGRUCell(16)
    shapes = {name: tuple(t.shape) for name, t in cell.state_dict().items()}
    gate = {
        f"{name}.{kind}": s
        for name in ("update", "reset", "output")
        for kind, s in (("weight", (18, 34, 3, 3)), ("bias", (18,)))
    }
    assert shapes == gate | {
        "warp.conv.weight": (16, 16, 3, 3),
        "warp.warp_gate.weight": (9, 16, 3, 3),
        "warp.warp_gate.bias": (9,),
    }
    for gate in (cell.update, cell.reset, cell.output, cell.warp.warp_gate):
        assert gate.weight.eq(0).all() and gate.bias.ne(0).any()
    assert cell.warp.conv.weight.ne(0).all()
    assert MotionGRUCell(16, zero_init=False).update.weight.ne(0).all()


def test_the_filter_grows_as_the_recurrence_says() -> None:
    """Gates of 0: F' = F / 2, D' = (F + D) / 2, F_t = F' + D', from F = D = 1."""
    cell = MotionGRUCell(4).double()
    for parameter in cell.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.zeros(1, 4, 2, 2, dtype=torch.float64)
    offset = trend = torch.ones(1, 18, 2, 2, dtype=torch.float64)
    for expected in (1.5, 2.0, 2.625, 3.4375, 4.5, 5.890625):
        _, offset, trend = cell(x, offset, trend)
        assert torch.equal(offset, torch.full_like(offset, expected))


@pytest.mark.skipif("cpu" not in motionrnn_ext.available_backends(), reason="the native library is not built")
def test_one_step_keeps_nine_k_channels_of_the_map() -> None:
    """B16 C16 64x64 float32: 20.25 MiB of activations (81 channels), plus the packed weights and biases."""
    cell = MotionGRUCell(16)
    x, offset, trend = (torch.randn(16, c, 64, 64, requires_grad=True) for c in (16, 18, 18))
    outputs: list[torch.Tensor] = []
    with motionrnn_ext.backend("cpu"):
        known = [x, offset, trend, *cell.parameters()]
        kept = counting.kept_bytes(lambda: outputs.extend(cell(x, offset, trend)), known)
    map_bytes = 16 * 64 * 64 * 4
    packed = sum(t.numel() for t in cell.pack()) * 4
    assert 81 * map_bytes <= kept <= 81 * map_bytes + packed + 4096
    assert len(outputs) == 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gate_side", ["hidden", "decoded"])
def test_motion_gru_is_its_equations(gate_side: str, backend: str) -> None:
    gru = randomised(MotionGRU(8, gate_side=gate_side, blend_kernel_size=3))
    hidden, offset, trend = drawn(2, 8, 6, 8), drawn(2, 18, 3, 4, seed=2), drawn(2, 18, 3, 4, seed=3)
    with motionrnn_ext.backend(backend):
        x, (new_offset, new_trend) = gru(hidden, (offset, trend))
        warped, moved, expected_trend = cell_equations(gru.cell, gru.encoder(hidden), offset, trend)
        decoded = gru.decoder(warped)
        g = torch.sigmoid(gru.gate(torch.cat([decoded, hidden], 1)))
        first, second = (hidden, decoded) if gate_side == "hidden" else (decoded, hidden)
        expected = g * first + (1 - g) * second, moved, expected_trend
        assert_same((x, new_offset, new_trend), expected, [hidden, offset, trend, *gru.parameters()])


def test_negating_the_gate_swaps_its_side() -> None:
    ours, official = MotionGRU(8, gate_side="hidden"), MotionGRU(8, gate_side="decoded")
    official.load_state_dict(ours.state_dict())
    with torch.no_grad():
        official.gate.weight.neg_()
        official.gate.bias.neg_()
        hidden = torch.randn(2, 8, 4, 6)
        torch.testing.assert_close(ours(hidden)[0], official(hidden)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5])
def test_encoder_kernels_halve_the_map(kernel_size: int) -> None:
    x, state = MotionGRU(8, encoder_kernel_size=kernel_size)(torch.randn(1, 8, 6, 10))
    assert x.shape == (1, 8, 6, 10)
    assert state.offset.shape == (1, 18, 3, 5)


def test_half_precision_keeps_motion_in_float32() -> None:
    gru = MotionGRU(8)
    hidden = torch.randn(2, 8, 8, 8)
    expected, expected_state = gru(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, state = gru(hidden)
    assert state.offset.dtype == state.trend.dtype == torch.float32
    assert relative_error(x.float(), expected.detach().double()) <= 2e-2
    assert relative_error(state.offset, expected_state.offset.detach().double()) <= 2e-2
    x, state = gru.bfloat16()(hidden.bfloat16())
    assert x.dtype == torch.bfloat16 and state.offset.dtype == torch.float32
    assert relative_error(x, expected.detach().double()) <= 2e-2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MotionGRUCell(4, 2), "kernel_size is 2; it should be odd"),
        (lambda: MotionGRUCell(4, gate_kernel_size=2), "gate_kernel_size is 2; it should be odd"),
        (lambda: MotionGRUCell(4, transient=False, trend=False), "transient and trend are both False"),
        (lambda: MotionGRU(3), "hidden_channels is 3; it should be at least 4"),
        (lambda: MotionGRU(8, gate_side="left"), "gate_side is 'left'; it should be 'hidden' or 'decoded'"),
        (lambda: MotionGRU(8)(torch.randn(1, 8, 5, 6)), "hidden is 5x6; height and width should be even"),
        (lambda: MotionGRU(8)(torch.randn(1, 4, 6, 6)), r"hidden has shape \(1, 4, 6, 6\); it should be"),
        (
            lambda: MotionGRUCell(4)(
                torch.randn(1, 4, 3, 3), torch.randn(1, 9, 3, 3), torch.randn(1, 18, 3, 3)
            ),
            r"offset has shape \(1, 9, 3, 3\); it should be \(1, 18, 3, 3\)",
        ),
        (lambda: ConvLSTMCell(4, 4, 2), "filter_size is 2; it should be odd"),
        (lambda: ConvLSTMCell(4, 4, layer_norm=True), "map_size is None; with layer_norm it should be"),
        (lambda: cell_class("lstm"), "unknown predictor 'lstm'; known: convlstm, predrnn"),
    ],
)
def test_errors_name_the_argument(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("highway", [False, True])
def test_conv_lstm_is_its_equations(highway: bool, layer_norm: bool, backend: str) -> None:
    cell = randomised(ConvLSTMCell(3, 4, 3, layer_norm=layer_norm, map_size=(5, 6)))
    x, h, c, y = (drawn(2, n, 5, 6, seed=n + i) for i, n in enumerate((3, 4, 4, 4)))
    i, f, g, o = (cell.conv_x(x) + cell.conv_h(h)).chunk(4, 1)
    new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    new_h = torch.sigmoid(o) * torch.tanh(new_c) + (1 - torch.sigmoid(o)) * (y if highway else 0)
    with motionrnn_ext.backend(backend):
        found, state, memory = cell(x, LSTMState(h, c), highway=y if highway else None)
        assert memory is None and state.hidden is found
        wrt = [x, h, c, *([y] if highway else []), *cell.parameters()]
        assert_same((found, state.cell), (new_h, new_c), wrt)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("highway", [False, True])
def test_st_lstm_is_its_equations(highway: bool, layer_norm: bool, backend: str) -> None:
    cell = randomised(SpatioTemporalLSTMCell(3, 4, 3, layer_norm=layer_norm, map_size=(5, 6)))
    x, h, c, m, y = (drawn(2, n, 5, 6, seed=n + i) for i, n in enumerate((3, 4, 4, 4, 4)))
    i, f, g, i_m, f_m, g_m, o = cell.conv_x(x).chunk(7, 1)
    i_h, f_h, g_h, o_h = cell.conv_h(h).chunk(4, 1)
    i_n, f_n, g_n = cell.conv_m(m).chunk(3, 1)
    s = torch.sigmoid
    new_c = s(f + f_h + 1) * c + s(i + i_h) * torch.tanh(g + g_h)
    new_m = s(f_m + f_n + 1) * m + s(i_m + i_n) * torch.tanh(g_m + g_n)
    both = torch.cat([new_c, new_m], 1)
    o = s(o + o_h + cell.conv_o(both))
    new_h = o * torch.tanh(F.conv2d(both, cell.conv_last.weight)) + (1 - o) * (y if highway else 0)
    with motionrnn_ext.backend(backend):
        found, state, memory = cell(x, LSTMState(h, c), m, y if highway else None)
        wrt = [x, h, c, m, *([y] if highway else []), *cell.parameters()]
        assert_same((found, state.cell, memory), (new_h, new_c, new_m), wrt)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("level", [0, 1])
def test_every_registered_cell_keeps_the_interface(name: str, level: int) -> None:
    below = 4 if level else 3
    cell = cell_class(name).of_layer(level)(below, 4, 3, map_size=(6, 5))
    shape = cell.hidden_shape(2, 6, 5)
    start = cell.initial_state(torch.zeros(shape))
    memory = cell_class(name).of_layer(0)(3, 4, 3, map_size=(6, 5)).initial_memory(torch.zeros(shape))
    x = torch.randn(shape[0], below, *shape[2:])
    h, state, memory = cell(x, start, memory if cell.has_memory else None, torch.randn(shape))
    assert h.shape == state.hidden.shape == shape and state.hidden is h
    assert type(state) is type(start)
    assert (memory is not None) == cell.has_memory
