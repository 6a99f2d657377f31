"""Measure a MotionGRU's step on both sides of the rule in motionrnn_ext/layers/gates_rule.py, by shape: with the
package's kernels, CUDA's and Triton's, and with PyTorch's convolutions for the gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor

from motionrnn_ext import MotionGRU, backend, backends
from motionrnn_ext.layers import gates_rule
from motionrnn_ext.layers.rollout import rollout

from ..cases import VARIANTS
from ..measuring import timing

if TYPE_CHECKING:
    from .rollouts import Bench

# Batch, channels, and the side of the maps, which the encoder halves.
SHAPES = ((1, 64, 32), (8, 64, 32), (32, 64, 32), (8, 64, 16), (16, 64, 128))
STEPS = 4


def step_us(bench: Bench, variant: str, shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    """Return the time of a step, forward and backward, within a rollout in channels_last."""
    batch, channels, size = shape if bench.on_gpu else (1, 8, 4)
    torch.manual_seed(0)
    gru: Any = MotionGRU(channels, **VARIANTS[variant]).to(bench.device, dtype)
    gru = gru.to(memory_format=torch.channels_last)
    hidden = torch.randn(batch, channels, size, size, device=bench.device, dtype=dtype)
    hidden = hidden.contiguous(memory_format=torch.channels_last).requires_grad_()
    wanted = [hidden, *gru.parameters()]

    def call() -> tuple[Tensor, ...]:
        x, state, packed = hidden, None, gru.pack_ahead()
        with rollout(gru, STEPS, batch * size**2):
            for _ in range(STEPS):
                x, state = gru(x, state, packed)
        return torch.autograd.grad(x, wanted, torch.ones_like(x))

    if not bench.on_gpu:
        return 1e3 * bench.ms(call) / STEPS
    graph, count = timing.captured([call])
    return timing.device_us(graph.replay) / (count * STEPS)


def side(name: str) -> AbstractContextManager[Any]:
    """Run the package's ops by the kernels of this backend; "convolutions" leaves the gates to PyTorch's."""
    if name == "convolutions":
        return mock.patch.object(gates_rule, "takes_kernels", lambda x: False)
    return backend(name)


def sides(bench: Bench) -> list[str]:
    of_device = ["cuda", "triton"] if bench.on_gpu else ["cpu"]
    return [*(name for name in of_device if not backends.unavailable_reason(name)), "convolutions"]


def compare(variant: str, shape: tuple[int, int, int], dtype: torch.dtype) -> Callable[[Bench], str]:
    """Return an experiment, which names the faster side."""

    def measure(bench: Bench) -> str:
        times = {}
        for name in sides(bench):
            with side(name):
                times[name] = step_us(bench, variant, shape, dtype)
        said = ", ".join(f"{name} {us:.1f} us" for name, us in times.items())
        return f"{said}: {min(times, key=times.__getitem__)} is fastest"

    return measure


def experiments() -> Iterator[tuple[str, str, Callable[[Bench], str]]]:
    """Return what is measured, the prediction, and how, as rollouts.py lists them."""
    for variant in VARIANTS:
        for shape in SHAPES:
            for dtype in (torch.bfloat16, torch.float32):
                batch, channels, size = shape
                what = f"step of a MotionGRU, {variant}, B{batch} C{channels} {size}x{size}, {dtype}"
                predicted = "kernels are faster" if size < 128 else "no prediction"
                yield what.replace("torch.", ""), predicted, compare(variant, shape, dtype)
