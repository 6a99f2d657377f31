"""Is the gated trend (`trend_gate`) the stated formula, stable where the paper's is not, and kept with its model?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from case import generator
from comparing import assert_close
from torch import Tensor, nn
from under_test import REFERENCE

from motionrnn_ext import MotionGRU, MotionGRUCell, MotionRNN
from motionrnn_ext.layers import MotionState
from motionrnn_ext.models import load_checkpoint, save_official
from motionrnn_ext.models.variants import variant_options
from motionrnn_ext.training.config import Config


def rnn(predictor: str = "convlstm", variant: str = "paper", **options: Any) -> MotionRNN:
    torch.manual_seed(0)
    return MotionRNN(predictor, 1, (4, 4), 2, variant, filter_size=3, **options)


def frames(*shape: int) -> Tensor:
    return torch.rand(shape or (1, 6, 1, 8, 8), generator=generator())


Logits = tuple[Tensor, Tensor]


def held(u: float, z: float) -> Logits:
    """Return the logits of an update gate u and a candidate z, for maps of one pixel."""
    gate, candidate = torch.tensor([u, z], dtype=torch.float64)
    return gate.logit().expand(1, 18, 1, 1), candidate.atanh().expand(1, 18, 1, 1)


def moved(logits: Logits, steps: int, alpha: float = 0.5, **options: Any) -> MotionState:
    """Return the motion after so many steps from F = D = 1, without a bound."""
    cell = MotionGRUCell(4, alpha=alpha, max_offset=None, **options)
    state = torch.ones_like(logits[0]), torch.ones_like(logits[0])
    for _ in range(steps):
        state = cell._move(*logits, *state)
    return MotionState(*state)


# ---- The formula


@pytest.mark.parametrize("c", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("bound", [None, 0.3])
def test_the_formula_and_its_gradients(c: float, bound: float | None) -> None:
    """Beside F + u (z - F) + c u D', written out, with the gates by modules' calls; at a bound F has no gradient."""
    torch.manual_seed(0)
    cell = MotionGRUCell(3, alpha=0.4, max_offset=bound, trend_gate=c, zero_init=False).double()
    x, f, d = (
        torch.randn(2, n, 3, 4, dtype=torch.float64, generator=generator()).requires_grad_()
        for n in (3, 18, 18)
    )
    u = cell.update(torch.cat([x, f], 1)).sigmoid()
    r = cell.reset(torch.cat([x, f], 1)).sigmoid()
    z = cell.output(torch.cat([x, r * f], 1)).tanh()
    new_d = d + 0.4 * (f - d)
    free = u * z + (1 - u) * f + c * u * new_d
    new_f = free if bound is None else free.clamp(-bound, bound)
    with REFERENCE.chosen():
        out = cell.warp(x, new_f)
    expected = (out, new_f, new_d)
    found = cell(x, f, d)
    inputs = [x, f, d, *cell.parameters()]
    for a, e in zip(found, expected):
        assert_close(a, e, 1e-12)
    weights = [torch.randn(e.shape, dtype=e.dtype, generator=generator()) for e in expected]

    def gradients(results: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum((w * t).sum() for w, t in zip(weights, results)), inputs)

    for a, e in zip(gradients(found), gradients(expected)):
        assert_close(a, e, 1e-10)


def test_a_learned_alpha_gets_a_gradient() -> None:
    cell = MotionGRUCell(3, alpha=nn.Parameter(torch.tensor(0.4)), trend_gate=0.9, zero_init=False)
    x = frames(1, 3, 4, 4)
    state = cell.initial_state(x)
    for _ in range(3):
        out, *state = cell(x, *state)
    out.square().sum().backward()
    assert cell.alpha.grad.abs() > 0


@pytest.mark.filterwarnings("ignore:the MotionGRU after layer")  # of the paper's form
@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("predictor", ["convlstm", "predrnn"])
def test_a_rollout_computes_what_the_steps_do(predictor: str, variant: str) -> None:
    """The one-node step, which knows the paper's form alone, is not taken; without the option the motion differs."""
    model, given = rnn(predictor, variant, trend_gate=0.8), frames()
    for gru in model.interfaces:
        nn.init.normal_(gru.cell.update.weight, std=0.3)
        nn.init.normal_(gru.cell.output.bias)
    found, motion = model(given, 3, return_motion=True)
    state, prediction, streamed = None, None, []
    for t in range(given.shape[1] - 1):
        prediction, state = model.step(given[:, t] if t < 3 else prediction, state)
        streamed.append(prediction)
    # Measured: 2e-7. A rollout joins convolutions, and so sums in another order.
    assert_close(found, torch.stack(streamed, dim=1), 1e-5)
    assert_close(motion[0].offset[:, -1], state.motion[0].offset, 1e-5)
    paper = rnn(predictor, variant)
    paper.load_state_dict(model.state_dict())
    _, of_paper = paper(given, 3, return_motion=True)
    assert (of_paper[0].offset - motion[0].offset).abs().max() > 0.5  # pixels


# ---- Stability


@pytest.mark.parametrize("alpha", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("u", [0.05, 0.5, 0.95])
def test_the_largest_eigenvalue_is_below_1_where_the_trend_weighs_less_than_u(u: float, alpha: float) -> None:
    """Of the matrix that a step applies to (F, D), read off by steps from two unit states."""

    def radius(c: float | None) -> float:
        cell = MotionGRUCell(4, alpha=alpha, max_offset=None, trend_gate=c)
        one, zero = (
            torch.ones(1, 18, 1, 1, dtype=torch.float64),
            torch.zeros(1, 18, 1, 1, dtype=torch.float64),
        )
        columns = [torch.stack(cell._move(*held(u, 0.0), *state)) for state in ((one, zero), (zero, one))]
        matrix = torch.stack(columns, dim=1)[:, :, 0, 0, 0, 0]
        w = 1.0 if c is None else c * u
        stated = [[1 - u + w * alpha, w * (1 - alpha)], [alpha, 1 - alpha]]
        assert_close(matrix, torch.tensor(stated, dtype=torch.float64), 1e-12)
        return torch.linalg.eigvals(matrix).abs().max().item()

    assert radius(None) > 1 + 1e-3
    assert abs(radius(1.0) - 1) < 1e-12
    assert radius(0.9) < 1 - 1e-4


def test_10_000_steps_of_constant_gates() -> None:
    """The paper's F is beyond all numbers; ours comes to rest at 1 / (1 - c) pixels, with any sign of z."""
    assert not moved(held(0.5, 0.9), 10_000).offset.isfinite().any()
    for z in (0.9, -0.9, 0.0):
        f, d = moved(held(0.5, z), 10_000, trend_gate=0.9)
        assert (f - z / (1 - 0.9)).abs().max() < 1e-9 and (d - f).abs().max() < 1e-9


def test_at_the_edge_motion_grows_by_the_same_step() -> None:
    """With c = 1: nothing without a candidate, and u z alpha / (alpha + u (1 - alpha)) a step with one."""
    u, z, alpha = 0.3, 0.9, 0.4
    assert (moved(held(u, 0.0), 10_000, alpha, trend_gate=1.0).offset - 1).abs().max() < 1e-9
    first, last = (moved(held(u, z), n, alpha, trend_gate=1.0).offset for n in (1_000, 10_000))
    step = u * z * alpha / (alpha + u * (1 - alpha))
    assert_close((last - first) / 9_000, torch.full_like(first, step), 1e-9)


def test_no_gates_leave_the_bound() -> None:
    """|F| and |D| stay within 1 / (1 - c), for gates that change at every step and follow the motion's own sign."""
    torch.manual_seed(0)
    cell = MotionGRUCell(4, trend_gate=0.75, max_offset=None)
    highest = 0.0
    f = d = torch.zeros(1, 18, 4, 4)
    for step in range(2_000):
        u = 4 * torch.randn(f.shape, generator=generator(step))
        z = torch.where(f >= 0, 9.0, -9.0) if step % 400 < 300 else 9 * torch.randn(f.shape)
        f, d = cell._move(u, z, f, d)
        highest = max(highest, f.abs().max().item(), d.abs().max().item())
    assert 3.9 < highest <= 4.0 + 1e-5


# ---- An option of everything


def test_it_is_an_option_of_layers_models_and_program(tmp_path: Path) -> None:
    assert MotionGRUCell(4).trend_gate is None and variant_options("official", 5).trend_gate is None
    for made in (MotionGRUCell(4, trend_gate=0.9), MotionGRU(8, trend_gate=0.9).cell):
        assert made.trend_gate == 0.9 and "trend_gate=0.9" in repr(made)
    model = rnn(trend_gate=1)
    assert model.interfaces[0].cell.trend_gate == 1.0 and "trend_gate=1.0" in model.extra_repr()
    assert model.state_dict().keys() == rnn().state_dict().keys()
    config = Config(overrides={"trend_gate": 0.9}, hidden=(4, 4), filter_size=3)
    config.write(tmp_path / "config.json")
    assert MotionRNN(**Config.read(tmp_path / "config.json").model()).options.trend_gate == 0.9
    for wrong in (-0.1, 1.5):
        for make in (lambda v: MotionGRUCell(4, trend_gate=v), lambda v: rnn(trend_gate=v)):
            with pytest.raises(ValueError, match=rf"trend_gate is {wrong}; it should be in \[0, 1\]"):
                make(wrong)
    with pytest.raises(TypeError, match="trend_gate is tensor.*; it should be a number"):
        MotionGRUCell(4, trend_gate=torch.tensor(0.5))


@pytest.mark.parametrize("options", [{"trend": False}, {"transient": False}], ids=str)
def test_it_has_no_effect_where_there_is_nothing_to_weigh(options: dict[str, bool]) -> None:
    given = frames()
    assert rnn(**options, trend_gate=0.5)(given, 3).equal(rnn(**options)(given, 3))


def test_a_checkpoint_keeps_it(tmp_path: Path) -> None:
    model, given = rnn(trend_gate=0.7), frames()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    found = load_checkpoint(tmp_path / "model.pt")
    assert found.options.trend_gate == 0.7 and found(given, 3).equal(model(given, 3))
    model.interfaces[0].cell.trend_gate = None  # what is set later is what is kept
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert load_checkpoint(tmp_path / "model.pt").options.trend_gate is None


def test_no_public_program_has_it(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="no public program has this model: trend_gate is 0.9; it should be None"
    ):
        save_official(rnn("predrnn", "official", trend_gate=0.9), tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()
