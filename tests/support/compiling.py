"""Shared by the tests of torch.compile and torch.export: small models, comparisons, marks of what is slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch._inductor.config
from comparing import assert_close
from torch import Tensor
from under_test import ALL, CPU, NOT_TESTED, REFERENCE, UnderTest, on

from motionrnn_ext import MotionGRU, MotionRNN

# Compiled against eager, relative to the largest value. Measured: 0 of layers; 1.1e-6 of gradients of models, whose
# rollouts sum in another order than the modules that are compiled.
SAME = 5e-6
BY_INDUCTOR = 1e-5  # measured: up to 1.3e-6
NEEDS_CPU = pytest.mark.skipif(CPU not in ALL, reason=f"cpu is not tested: {NOT_TESTED.get('cpu')}")
slow = pytest.mark.slow


def on_slowly_on_reference(tests: Sequence[UnderTest]) -> pytest.MarkDecorator:
    """Its many small operations take a while to trace."""
    marked = [(p, [*p.marks, slow] if p.values[0] is REFERENCE else p.marks) for p in on(tests).args[1]]
    return pytest.mark.parametrize(
        "on", [pytest.param(*p.values, id=p.id, marks=marks) for p, marks in marked]
    )


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """No graph of another test, nor from the disk: torch keeps some there and does not know this package's version."""
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
        torch._dynamo.config.patch(automatic_dynamic_local_pgo=False),  # sizes seen before
    ):
        yield
    torch._dynamo.reset()


# As torch 2.10, whose compiler cannot run in two threads at once, and whose export does not load a size that grows.
OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)


def model_of(predictor: str, device: str = "cpu", **options: Any) -> MotionRNN:
    torch.manual_seed(0)
    options.setdefault("image_size", (16, 16))
    return MotionRNN(predictor, 1, (8, 8), 2, filter_size=3, **options).to(device)


def layer_of(device: str = "cpu") -> MotionGRU:
    """A layer with offsets of pixels, so that samples leave the image."""
    torch.manual_seed(0)
    layer = MotionGRU(8).to(device).eval()
    for parameter in layer.cell.parameters():
        parameter.data *= 4
    return layer


def frames(*shape: int, device: str = "cpu") -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(device)


def check_step(
    step: Callable[..., Any],
    compiled: Callable[..., Any],
    wrt: Sequence[Tensor],
    *inputs: Any,
    tolerance: float = SAME,
) -> None:
    """Outputs and gradients of a compiled function are those of the eager one."""
    found, expected = (
        [*out, *torch.autograd.grad(sum(o.square().sum() for o in out), wrt, materialize_grads=True)]
        for out in (tensors(f(*inputs)) for f in (compiled, step))
    )
    for f, e in zip(found, expected, strict=True):
        assert_close(f, e, tolerance)


def tensors(out: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor)]
