"""The number of kernels that a MotionGRU's step launches on CUDA, within a rollout.

A step is what three steps launch beyond two, so that what is packed once does not count. The rule:

- a launch of our own kernels counts 1, as the stand-in CUDA runtime of tests/ptx sees it; the warp's backward counts 1
  more for the memory that it clears, unless sums are deterministic;
- each remaining operation of PyTorch that writes memory counts 1, one on a list of tensors 1 for each of them. So a
  convolution counts 1 with its bias, which PyTorch adds by one more kernel where cuDNN does not.

Backward is that of the maps and the motion, without the weights' gradients, which are made once for many steps.
"""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from case import channels_last
from torch.utils._python_dispatch import TorchDispatchMode
from under_test import EMULATED, PTX, UnderTest, on

from motionrnn_ext import MotionGRU
from motionrnn_ext.benchmarks.cases import VARIANTS
from motionrnn_ext.layers.rollout import rollout

OFFICIAL = VARIANTS["official"]
# The launches of a step, forward and backward, by variant.
LAUNCHES = {"official": (OFFICIAL, 8, 12), "paper": ({}, 3, 7)}
CHANNELS, SIZE = 32, 8

pytestmark = pytest.mark.skipif(
    not PTX, reason="launches are counted by the stand-in CUDA runtime of tests/ptx"
)


class Launches(TorchDispatchMode):
    """`found`: how often what is launched by PyTorch's operations and by our kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> Launches:
        PTX.launches()
        return super().__enter__()

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        for launch in PTX.launches():
            self.found[launch.kernel] += 1
            if "warp_backward" in launch.kernel:
                self.found["cudaMemsetAsync"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten" and not is_free(func):
            name = func._opname
            self.found[name] += len(args[0]) if name.startswith("_foreach") else 1
        return func(*args, **(kwargs or {}))


def is_free(func: Any) -> bool:
    """Return whether an operation returns a view or memory that it does not write."""
    returned = [r.alias_info for r in func._schema.returns]
    return "empty" in func._opname or any(alias is not None and not alias.is_write for alias in returned)


def of_steps(steps: int, gru: MotionGRU, dtype: torch.dtype) -> list[collections.Counter[str]]:
    """Return what a rollout launches forward, and backward."""
    hidden = channels_last(torch.randn(2, CHANNELS, SIZE, SIZE, dtype=dtype)).requires_grad_()
    state = gru.initial_state(hidden)
    state = type(state)(*(t.clone().requires_grad_() for t in state))
    with rollout(gru, steps, pixels=2 * SIZE * SIZE), Launches() as forward:
        x, packed = hidden, gru.pack_ahead()
        for _ in range(steps):
            x, state = gru(x, state, packed)
    with Launches() as backward:
        torch.autograd.backward((x, *state), tuple(torch.ones_like(t) for t in (x, *state)))
    return [forward.found, backward.found]


def made(variant: str, dtype: torch.dtype) -> MotionGRU:
    torch.manual_seed(0)
    gru = MotionGRU(CHANNELS, **LAUNCHES[variant][0]).to(dtype, memory_format=torch.channels_last)
    return gru.requires_grad_(False)


@on([EMULATED] if PTX else [], dtypes=[torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", LAUNCHES)
def test_a_step_launches_few_kernels(on: UnderTest, dtype: torch.dtype, variant: str) -> None:
    gru = made(variant, dtype)
    with on.chosen():
        two, three = of_steps(2, gru, dtype), of_steps(3, gru, dtype)
    for way, before, after, count in zip(("forward", "backward"), two, three, LAUNCHES[variant][1:]):
        step = after - before
        assert step.total() == count, (way, step)


@on([EMULATED] if PTX else [])
@pytest.mark.parametrize("variant", LAUNCHES)
def test_our_ops_copy_nothing(on: UnderTest, variant: str) -> None:
    """Inside of them no operation of PyTorch launches a kernel, but where weights are packed."""
    gru = made(variant, torch.float32)
    with on.chosen(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        of_steps(2, gru, torch.float32)
    launching = ("aten::copy_", "aten::zero_", "aten::fill_", "aten::add_")
    inside = [e.cpu_parent for e in profile.events() if e.name in launching]
    owners = set()
    for event in inside:
        while event is not None and not event.name.startswith("motionrnn_ext"):
            event = event.cpu_parent
        owners |= set() if event is None else {event.name.partition("::")[2]}
    assert owners <= {"motion_gates_pack", "decode_blend_pack"}
