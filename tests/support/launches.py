"""Counts the kernels that a MotionGRU's step launches within a rollout.

A step is what three steps launch beyond two, so that what is packed once does not count. The rule:

- a launch of our own kernels counts 1;
- each operation of PyTorch that writes memory counts 1, one on a list of tensors 1 for each of them. So a convolution
  counts 1 with its bias, which PyTorch adds by one more kernel where cuDNN does not.

Backward is that of the maps and the motion, without the weights' gradients, which are made once for many steps.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch
from case import channels_last
from torch.utils._python_dispatch import TorchDispatchMode

from motionrnn_ext import MotionGRU
from motionrnn_ext.benchmarks.cases import VARIANTS
from motionrnn_ext.layers.rollout import rollout

CHANNELS, SIZE = 32, 8
OPTIONS: dict[str, dict[str, Any]] = {"official": VARIANTS["official"], "paper": {}}


class Launches(TorchDispatchMode):
    """`found`: how often what is launched by PyTorch's operations. Subclasses add what our kernels launch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten" and not is_free(func):
            name = func._opname
            self.found[name] += len(args[0]) if name.startswith("_foreach") else 1
        return func(*args, **(kwargs or {}))


def is_free(func: Any) -> bool:
    """Return whether an operation returns a view or memory that it does not write."""
    returned = [r.alias_info for r in func._schema.returns]
    return "empty" in func._opname or any(alias is not None and not alias.is_write for alias in returned)


def of_steps(
    steps: int, gru: MotionGRU, dtype: torch.dtype, launches: Callable[[], Launches], batch: int = 2
) -> list[collections.Counter[str]]:
    """Return what a rollout launches forward, and backward."""
    shape = (batch, gru.hidden_channels, SIZE, SIZE)
    hidden = channels_last(torch.randn(shape, dtype=dtype)).requires_grad_()
    state = gru.initial_state(hidden)
    state = type(state)(*(t.clone().requires_grad_() for t in state))
    with rollout(gru, steps, pixels=batch * SIZE * SIZE), launches() as forward:
        x, packed = hidden, gru.pack_ahead()
        for _ in range(steps):
            x, state = gru(x, state, packed)
    with launches() as backward:
        torch.autograd.backward((x, *state), tuple(torch.ones_like(t) for t in (x, *state)))
    return [forward.found, backward.found]


def of_a_step(
    gru: MotionGRU, dtype: torch.dtype, launches: Callable[[], Launches], batch: int = 2
) -> list[collections.Counter[str]]:
    """Return what a step launches forward, and backward."""
    two, three = (of_steps(steps, gru, dtype, launches, batch) for steps in (2, 3))
    return [after - before for before, after in zip(two, three)]


def made(variant: str, dtype: torch.dtype, channels: int = CHANNELS) -> MotionGRU:
    torch.manual_seed(0)
    gru = MotionGRU(channels, **OPTIONS[variant]).to(dtype, memory_format=torch.channels_last)
    return gru.requires_grad_(False)
