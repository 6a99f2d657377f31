"""The number of kernels that a MotionGRU's step launches on Triton's kernels, within a rollout.

Kernels are not run, so that results are arbitrary. What the ops call inside of them counts as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from launches import Launches, made, of_a_step
from under_test import KERNELS, TRITON, UnderTest, on

IN_INTERPRETER = [TRITON] if TRITON in KERNELS and TRITON.is_slow else []
if IN_INTERPRETER:
    from motionrnn_ext.backends import triton
    from motionrnn_ext.backends.triton import decode_blend, gated_warp, launch, ops
    from motionrnn_ext.backends.triton.launch import BLOCKS, MANY, Block

# The launches of a step, forward and backward, by variant.
LAUNCHES = {"official": (8, 12), "paper": (3, 7)}


class TritonLaunches(Launches):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != triton.NAMESPACE:
            return super().__torch_dispatch__(func, types, args, kwargs)
        modules = [vars(getattr(ops, name)) for name in ops.__all__]
        op = next(module[func._opname] for module in modules if func._opname in module)
        with self:
            return getattr(op, "_init_fn", op)(*args, **(kwargs or {}))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], TritonLaunches]:
    """Make launches be counted by the modes that are returned."""
    modes: list[TritonLaunches] = []

    def launches() -> TritonLaunches:
        modes.append(TritonLaunches())
        return modes[-1]

    class Counted:
        def __init__(self, kernel: Any) -> None:
            self.name = kernel.fn.__name__

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return self.count

        def count(self, *arguments: Any, **constants: Any) -> None:
            modes[-1].found[self.name] += 1

    monkeypatch.setattr(launch, "_launchable", Counted)
    return launches


@on(IN_INTERPRETER, dtypes=[torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", LAUNCHES)
def test_a_step_launches_few_kernels(
    on: UnderTest, dtype: torch.dtype, variant: str, counted: Callable[[], TritonLaunches]
) -> None:
    with on.chosen():
        found = of_a_step(made(variant, dtype), dtype, counted)
    assert tuple(way.total() for way in found) == LAUNCHES[variant], found


@on(IN_INTERPRETER)
def test_more_channels_than_a_program_holds_are_decoded_and_gated_by_convolutions(
    on: UnderTest, counted: Callable[[], TritonLaunches]
) -> None:
    with on.chosen():
        found, _ = of_a_step(
            made("paper", torch.float32, decode_blend.MOST_CHANNELS + 4), torch.float32, counted
        )
    assert found["convolution"] == 3 and not found["decode_blend_kernel"], found


@on(IN_INTERPRETER)
@pytest.mark.parametrize("multiprocessors, forward", [(2, 3), (1, 4)])
def test_the_warp_is_joined_while_a_multiprocessor_has_one_program(
    on: UnderTest, multiprocessors: int, forward: int, counted: Callable[[], TritonLaunches],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Two maps of 8x8, of which the encoder makes 32 pixels."""
    monkeypatch.setitem(BLOCKS, "gated_warp", [(MANY, Block(16, 8), Block(16, 8))])
    monkeypatch.setattr(gated_warp, "MULTIPROCESSORS", multiprocessors)
    with on.chosen():
        found, _ = of_a_step(made("paper", torch.float32), torch.float32, counted)
    assert found.total() == forward, found
