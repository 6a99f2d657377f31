"""Does a cell that is called by itself, outside of any rollout, lay its weights out where that is faster, and compute
the same?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import assert_close
from torch import Tensor, nn
from torch.utils import checkpoint
from under_test import ALL, CPU, NOT_TESTED

from motionrnn_ext.layers import cells, rollout
from motionrnn_ext.layers.cells import CELLS, RecurrentCell

pytestmark = pytest.mark.skipif(
    CPU not in ALL, reason=f"the cpu backend is not tested: {NOT_TESTED.get('cpu')}"
)
SMALL, LARGE = 16, 32
# Of the largest element, against float64. Measured: 2e-6; composed, 2e-6.
BOUND = 2e-5


def made(name: str, size: int) -> tuple[RecurrentCell, Tensor]:
    """Return the cell of a second layer, and x for it."""
    torch.manual_seed(0)
    cell = CELLS[name].of_layer(1)(32, 32, map_size=(size, size))
    depth = () if cell.depth == 1 else (cell.depth,)
    return cell, torch.randn(1, 32, *depth, size, size).requires_grad_()


def leaves(cell: nn.Module, x: Tensor) -> list[Tensor]:
    return [x, *cell.parameters()]


def second_step(cell: RecurrentCell, x: Tensor) -> list[Tensor]:
    """Return what the cell returns in a sequence's second step."""
    _, state, memory = cell(x)
    return [t for t in torch.utils._pytree.tree_leaves(cell(x, state, memory, None)) if t is not None]


def results(cell: RecurrentCell, x: Tensor) -> list[Tensor | None]:
    out = second_step(cell, x)
    loss = sum(t.sin().sum() for t in out)
    return [*out, *torch.autograd.grad(loss, leaves(cell, x), allow_unused=True)]


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Return the cells that begin a rollout of their own."""
    found: list[nn.Module] = []
    real = cells.base.rollout
    monkeypatch.setattr(cells.base, "rollout", lambda cell: [found.append(cell), real(cell)][1])
    return found


@pytest.mark.parametrize("name", CELLS)
def test_results(name: str, rollouts: list[nn.Module]) -> None:
    cell, x = made(name, LARGE)
    found = results(cell, x)
    assert rollouts == [cell] * 2
    exact = results(cell.double(), x.detach().double().requires_grad_())
    for i, (f, e) in enumerate(zip(found, exact)):
        assert (f is None) == (e is None), i
        if f is not None and e is not None:
            assert_close(f, e, BOUND, f"result {i}")


@pytest.mark.parametrize("change", [lambda cell: cell.double(), None], ids=["float64", "small maps"])
def test_where_it_gains_nothing(change: Callable[[Any], Any] | None, rollouts: list[nn.Module]) -> None:
    cell, x = made("convlstm", LARGE if change else SMALL)
    if change is not None:
        change(cell)
    cell(x.to(cell.conv_h[0].weight.dtype))
    assert not rollouts


def test_hooks_run() -> None:
    cell, x = made("predrnn", LARGE)
    calls: list[int] = []
    cell.conv_x.register_forward_hook(lambda *_: calls.append(1))
    second_step(cell, x)
    assert len(calls) == 2


def test_checkpointing(rollouts: list[nn.Module]) -> None:
    """What checkpointing saves and computes again are the ops of the composed cell."""
    cell, x = made("predrnn", LARGE)
    state = cell.initial_state(torch.zeros_like(x))
    out = checkpoint.checkpoint(lambda t: cell(t, state)[0], x, use_reentrant=False)
    found = torch.autograd.grad(out.sin().sum(), leaves(cell, x), allow_unused=True)
    assert not rollouts
    expected = torch.autograd.grad(cell(x, state)[0].sin().sum(), leaves(cell, x), allow_unused=True)
    for f, e in zip(found, expected):
        if f is not None and e is not None:
            assert_close(f, e, BOUND)


@pytest.mark.parametrize("name", ["predrnn", "convlstm"])
def test_second_derivatives(name: str) -> None:
    def penalty(cell: RecurrentCell, x: Tensor) -> list[Tensor]:
        loss = sum(t.sin().sum() for t in second_step(cell, x))
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        return list(torch.autograd.grad(grad.square().sum(), leaves(cell, x)))

    cell, x = made(name, LARGE)
    found = penalty(cell, x)
    for f, e in zip(found, penalty(cell.double(), x.detach().double().requires_grad_())):
        assert_close(f, e, BOUND)


def test_function_transforms() -> None:
    cell, x = made("predrnn", LARGE)
    found = torch.func.grad(lambda t: cell(t)[0].sin().sum())(x.detach())
    assert_close(found, torch.autograd.grad(cell(x)[0].sin().sum(), x)[0], BOUND)


def test_a_weight_written_before_backward_is_an_error() -> None:
    cell, x = made("convlstm", LARGE)
    out = cell(x)[0]
    with torch.no_grad():
        cell.conv_x[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_calls_in_a_rollout_begin_none(rollouts: list[nn.Module]) -> None:
    cell, x = made("convlstm", LARGE)
    with rollout.rollout(cell):
        second_step(cell, x)
    assert not rollouts
