"""How long a stream may run: motion is bounded, states stay finite, memory does not grow, and lost motion is told."""

from __future__ import annotations

import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from case import generator
from comparing import assert_close
from compiling import nothing_compiled  # noqa: F401
from official_modules import StandIn
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree
from under_test import ALL, REFERENCE, UnderTest, on

from motionrnn_ext import MotionGRU, MotionGRUCell, MotionRNN, ops
from motionrnn_ext.benchmarks.measuring import counting
from motionrnn_ext.cli.settings import _named_value
from motionrnn_ext.layers import from_official
from motionrnn_ext.layers.cells import CELLS
from motionrnn_ext.layers.motion_gru import MotionState
from motionrnn_ext.models.off_map import share_off_map
from motionrnn_ext.models.variants import Options, variant_options
from motionrnn_ext.training.config import Config

BOUND = 1e4
quiet = pytest.mark.filterwarnings("ignore:the MotionGRU after layer")


def rnn(predictor: str = "convlstm", variant: str = "paper", **options: Any) -> MotionRNN:
    torch.manual_seed(0)
    options.setdefault("image_size", (8, 8))
    return MotionRNN(predictor, 1, (4, 4), 2, variant, filter_size=3, **options)


def frames(*shape: int) -> Tensor:
    return torch.rand(shape or (1, 2, 1, 8, 8), generator=generator())


def saturated(model: MotionRNN) -> MotionRNN:
    """Update gates closed, where F grows fastest: by 1.707 a step."""
    for gru in model.interfaces:
        torch.nn.init.constant_(gru.cell.update.bias, -30.0)
    return model


# ---- The op


@on(ALL)
@pytest.mark.parametrize("gate, growth", [(0.0, 1.309), (-30.0, 1.707)])
def test_motion_grows_without_a_bound_and_stays_finite_with_one(on: UnderTest, gate: float, growth: float):
    """A thousand steps; the growth is the spectral radius of the recurrence at s(u) = 0.5 and 0."""
    logits = torch.full((1, 18, 2, 2), gate, device=on.device), torch.zeros(1, 18, 2, 2, device=on.device)
    steps = 60 if on.is_slow else 1000
    with on.chosen():
        for bound in (BOUND, None):
            f = d = torch.ones_like(logits[0])
            for _ in range(steps):
                before, (f, d) = f, ops.motion_update(*logits, f, d, max_offset=bound)
                if bound is None and f.isfinite().all() and f.max() < 1e6:
                    last = (f / before).max().item()
            if bound is None:
                assert abs(last - growth) < 0.02
                assert on.is_slow or f.isnan().all()
            else:
                assert (f == BOUND).all() and (d <= BOUND).all()


@on(ALL)
def test_motion_that_starts_beyond_the_bound(on: UnderTest):
    """F is within it after a step; D, between D and F, comes nearer by 1 - alpha a step. nan stays nan."""
    f = torch.tensor([[1e6, -1e6, 1e30, math.nan]], device=on.device)
    d = torch.tensor([[1e6, -1e6, 0.0, 0.0]], device=on.device)
    zero = torch.zeros_like(f)
    with on.chosen():
        f, d = ops.motion_update(zero, zero, f, d, max_offset=BOUND)
        assert f[0, :3].tolist() == [BOUND, -BOUND, BOUND] and f[0, 3].isnan()
        for _ in range(30):
            f, d = ops.motion_update(zero, zero, f, d, max_offset=BOUND)
    assert (d[0, :2].abs() <= BOUND * (1 + 1e-5)).all()


@on(ALL)
def test_the_gradient_ends_at_the_bound(on: UnderTest):
    """An independent formula in float64 agrees, exactly at the bound as well; D' has its own gradient everywhere."""
    f = torch.tensor([[0.5, 1.0, 2.0, -2.0, 9.0, -9.0]], dtype=torch.float64)
    d, u, z = f.clone(), torch.full_like(f, 0.25), torch.full_like(f, -0.5)
    u[:, 1:4] = -800.0  # F_t = 2 F, where F = D
    inputs = [t.to(on.device, on.dtypes[0]).requires_grad_() for t in (u, z, f, d)]
    with on.chosen():
        new_f, new_d = ops.motion_update(*inputs, alpha=0.25, max_offset=4.0)
        found = torch.autograd.grad((new_f * 3.0 + new_d * 5.0).sum(), inputs)
    assert new_f[0, 1:].tolist() == [2.0, 4.0, -4.0, 4.0, -4.0]
    through = torch.tensor([[3.0, 3.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    gate, value = u.sigmoid(), z.tanh()
    expected = (
        through * (value - f) * gate * (1 - gate),
        through * gate * (1 - value**2),
        through * (1 - gate) + 0.25 * (through + 5.0),
        0.75 * (through + 5.0),
    )
    for a, e in zip(found, expected):
        assert_close(a, e, 1e-5)


# ---- Layers and models


@pytest.mark.parametrize(
    "options", [{}, {"trend": False}, {"transient": False}, {"gate_kernel_size": 1}], ids=str
)
def test_every_form_of_the_cell_is_bounded(options: dict[str, Any]):
    """A bound far below 1, which the ablations reach as well."""
    torch.manual_seed(0)
    cell = MotionGRUCell(4, max_offset=0.05, zero_init=False, **options).double()
    x = frames(1, 4, 4, 4).double()
    state = cell.initial_state(x)
    for _ in range(16):
        _, *state = cell(x, *state)
    assert state[0].abs().max() == 0.05 and (state[0].abs() < 0.05).any()
    cell.max_offset = None
    for _ in range(16):
        _, *state = cell(x, *state)
    assert state[0].abs().max() > 0.05


def test_the_bound_is_an_option_of_every_layer_and_model():
    assert (
        MotionGRUCell(4).max_offset
        == MotionGRU(8).cell.max_offset
        == rnn().interfaces[0].cell.max_offset
        == BOUND
    )
    for bound in (None, 32.0):
        made = MotionGRUCell(4, max_offset=bound), MotionGRU(8, max_offset=bound).cell
        for cell in (*made, rnn(max_offset=bound).interfaces[0].cell, copy.deepcopy(made[0])):
            assert cell.max_offset == bound and f"max_offset={bound}" in repr(cell)
    for variant in ("paper", "official"):
        assert variant_options(variant, 5).max_offset == BOUND
        assert f"max_offset={BOUND}" in rnn(variant=variant).extra_repr()


def test_the_bound_is_an_option_of_the_program(tmp_path: Path):
    for text, bound in (("null", None), ("None", None), ("64", 64)):
        name, value = _named_value(f"max_offset={text}")
        config = Config(overrides={name: value}, hidden=(4, 4), filter_size=3)
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        assert MotionRNN(**Config.read(tmp_path / "config.json").model()).options.max_offset == bound
    before = {k: v for k, v in Config(hidden=(4, 4)).to_dict().items() if k != "max_offset"}
    assert MotionRNN(**Config(**before).model()).options.max_offset == BOUND
    with pytest.raises(
        ValueError, match="max_offset is -1.0; it should be above 0 and at most 3.4e38, or None"
    ):
        Config(overrides={"max_offset": -1})


def test_a_converted_layer_has_the_official_ones_motion():
    assert from_official(StandIn(4)).max_offset is None


def test_a_cell_or_model_of_before_still_runs():
    """Pickled whole, they come back without what they did not have."""
    model = rnn()
    for gru in model.interfaces:
        del gru.cell.max_offset
    object.__delattr__(model.options, "max_offset")
    assert model.predict(frames(), 2).equal(rnn().predict(frames(), 2))
    assert model.options.max_offset == Options.max_offset


@quiet
@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("predictor", CELLS)
def test_the_default_bound_changes_no_frame(predictor: str, variant: str):
    """60 steps, in which the unbounded F comes to 1e10 and more."""
    bounded, free = (saturated(rnn(predictor, variant, max_offset=b)) for b in (BOUND, None))
    assert_close(bounded.predict(frames(), 60), free.predict(frames(), 60), 1e-6)


@quiet
@pytest.mark.parametrize("variant", ["paper", pytest.param("official", marks=pytest.mark.slow)])
@pytest.mark.parametrize("predictor", CELLS)
def test_400_frames_are_finite(predictor: str, variant: str):
    """The first nan without the bound came at frame 71 with closed gates, at 168 and 323 otherwise."""
    assert saturated(rnn(predictor, variant)).predict(frames(), 400).isfinite().all()


def test_without_a_bound_they_are_not():
    with pytest.warns(
        RuntimeWarning, match="its motion is nan after step 40.; frames and weights should be finite"
    ):
        assert saturated(rnn(max_offset=None)).predict(frames(), 400).isnan().any()


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("predictor", CELLS)
# Without the bound the first nan came at frame 323 at the latest; 10,000 steps of all predictors take 10 minutes.
@pytest.mark.parametrize("steps", [1_000, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_thousands_of_steps_are_finite(steps: int, predictor: str, dtype: torch.dtype):
    """Every tensor of the state, which does not grow either."""
    options = {"cell_options": {"history": 4}} if predictor == "e3d_lstm" else {}
    model, frame, state = saturated(rnn(predictor, **options)).to(dtype), frames(1, 1, 8, 8).to(dtype), None
    sizes = set()
    with torch.no_grad():
        for step in range(steps):
            frame, state = model.step(frame, state)
            if step % 100 == 99:
                leaves = [t for t in pytree.tree_leaves((frame, state)) if isinstance(t, Tensor)]
                assert all(bool(t.isfinite().all()) for t in leaves), step
                sizes.add(sum(t.numel() for t in leaves))
    assert len(sizes) == 1


@on(ALL)
@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 256), (torch.float16, 2048)], ids=str)
def test_a_half_memory_comes_to_rest(on: UnderTest, dtype: torch.dtype, most: int):
    """C grows by 1 a step with open gates, until 1 is half of its last digit: it never overflows."""
    gates = torch.full((1, 3, 2), 30.0, device=on.device, dtype=dtype)
    memory = torch.full((1, 1, 2), most - 20.0, device=on.device, dtype=dtype)
    with on.chosen():
        for _ in range(40):
            memory = ops.memory_update(gates, gates, memory)
    assert (memory == most).all()


# ---- Memory


@quiet
@pytest.mark.parametrize("predictor", ["convlstm", pytest.param("predrnn", marks=pytest.mark.slow)])
def test_predict_keeps_no_more_than_its_frames(predictor: str):
    """Apart from three copies of the predictions (folded, joined, unfolded), 100 steps take what 20 do."""
    model = rnn(predictor)
    given = frames(1, 12, 1, 8, 8)

    def beside(n: int) -> int:
        predicted = 3 * n * frames(1, 1, 8, 8).nbytes
        return counting.peak_bytes(lambda: model.predict(given, n), "cpu") - predicted

    beside(3)
    few, many = beside(20), beside(100)
    assert many < few + 20_000, (few, many)  # of motion alone 80 steps would be 92,160
    streamed = counting.peak_bytes(lambda: stream(model, given, 100), "cpu")
    assert counting.peak_bytes(lambda: model.predict(given, 100), "cpu") < 2 * streamed


@torch.no_grad()
def stream(model: MotionRNN, given: Tensor, n: int) -> list[Tensor]:
    state, predicted = None, []
    for frame in given.unbind(1):
        prediction, state = model.step(frame, state)
    for _ in range(n):
        predicted.append(prediction)
        prediction, state = model.step(prediction, state)
    return predicted


@quiet
@pytest.mark.parametrize("predictor", CELLS)
def test_predict_is_the_stream(predictor: str):
    model, given = rnn(predictor), frames(2, 3, 1, 8, 8)
    # Measured: 6e-7. A rollout joins convolutions, and so sums in another order.
    assert_close(model.predict(given, 5), torch.stack(stream(model, given, 5), dim=1), 1e-5)


def test_e3d_lstm_recalls_a_limited_history():
    """The same as long as it holds everything; then the attention over the last ones, and no more memory."""
    given = frames(1, 8, 1, 8, 8)
    limited, free = (rnn("e3d_lstm", cell_options={"history": n}) for n in (4, None))
    states = None, None
    for t, frame in enumerate(given.unbind(1)):
        (a, first), (b, second) = limited.step(frame, states[0]), free.step(frame, states[1])
        states = first, second
        assert a.equal(b) == (t < 4)
    rows = 2 * 4 * 4
    assert (
        states[0].layers[0].history.shape[1] == 4 * rows and states[1].layers[0].history.shape[1] == 9 * rows
    )
    cell, state = limited.cells[0], states[0].layers[0]
    query = frames(1, 4, 2, 4, 4).sigmoid()
    keys = state.history
    expected = torch.softmax(cell.rows(query) @ keys.mT, dim=-1) @ keys
    assert_close(cell._recall(query, state.history), expected.mT.reshape(query.shape), 1e-6)
    assert state.history[:, -rows:].equal(cell.rows(state.cell))


# ---- The warning


def offsets(value: float) -> MotionState:
    return MotionState(torch.full((1, 18, 2, 2), value), torch.zeros(1, 18, 2, 2))


def at_rest(size: int) -> MotionState:
    return MotionState(*torch.zeros(2, 1, 18, size, size))


def at(model: MotionRNN, value: float) -> Any:
    """An initial state with this motion, kept by a trend and filter that do not change."""
    return model.initial_state(1, 8, 8)._replace(motion=(offsets(value),))


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (8, 2)], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0, 1e6])
def test_the_share_off_the_map_is_what_the_warp_reads(size: tuple[int, int], scale: float):
    """A tap is off the map where the warp reads 0 from an image of ones by it alone."""
    offset = scale * torch.randn(2, 18, *size, generator=generator())
    ones, open_mask = torch.ones(2, 1, *size), torch.full((2, 9, *size), 50.0)
    off = 0.0
    with REFERENCE.chosen():
        for n in range(9):
            weight = torch.zeros(1, 1, 9).index_fill_(2, torch.tensor(n), 1.0).view(1, 1, 3, 3)
            off += (ops.offset_warp(ones, offset, open_mask, weight) == 0).double().mean().item() / 9
    assert abs(share_off_map(offset).item() - off) < 1e-6


def test_lost_motion_is_told_once():
    for call in (
        lambda m: m.predict(frames(), 1, at(m, 9.0)),
        lambda m: m(frames(), 1, state=at(m, 9.0)),
        lambda m: [m.step(frames(1, 1, 8, 8), at(m, 9.0)) for _ in range(16)],
    ):
        model = rnn()
        with pytest.warns(
            RuntimeWarning, match=r"after layer 1: \d+% of its taps .* after (this step|step \d)"
        ) as said:
            call(model)
            call(model)
        assert [warning.filename for warning in said] == [__file__]


def test_near_motion_is_not_told():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = rnn()
        model.predict(frames(), 2, at(model, 0.1))
        model.predict(frames(), 1, at(model, 0.0))  # of a map of 2x2 pixels most taps lie outside at rest
        tiny = frames(1, 2, 1, 4, 4)  # 1x1
        rnn().predict(tiny, 1, model.initial_state(1, 4, 4)._replace(motion=(at_rest(1),)))
        rnn(motion_gru=False).predict(frames(), 2)


@pytest.mark.usefixtures("nothing_compiled")
def test_nothing_is_asked_where_nobody_waits_for_it():
    """No value is read of another device's tensors, while compiling or tracing, or of tensors that have none."""
    model = rnn()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        far = at(model, 9.0)
        torch.compile(model.predict, backend="eager", fullgraph=True)(frames(), 1, far)
        torch.export.export(model, (frames(), 1), {"state": far})
        torch.func.vmap(lambda f: model(f, 1, state=far))(frames()[None])
        with FakeTensorMode(allow_non_fake_inputs=True):
            rnn()(torch.rand(1, 2, 1, 8, 8), 1)
        on_meta = rnn().to("meta")
        on_meta(frames().to("meta"), 1)
    assert not model._has_warned
