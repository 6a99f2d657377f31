"""The registration of the gates with packed weights, which GPUs have: shapes and FLOPs. They have no gradients: who
calls them calls their backward as well (layers/nodes/motion_step.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..layouts import format_after, new_like
from . import flops
from .wanted import Wanted

# The gradients for which backward needs that of s(r) F.
_ALL = Wanted.X | Wanted.MOTION | Wanted.WEIGHTS


def register(namespace: str, *, is_native: bool) -> None:
    """Tell torch the shapes and the FLOPs of the ops. Triton's packing is made of ops of torch, which tell shapes."""
    ops = getattr(torch.ops, namespace)
    fakes: list[Callable[..., Any]] = [motion_gates_packed, motion_gates_packed_backward]
    for fake in [*fakes, motion_gates_pack] if is_native else fakes:
        torch.library.register_fake(f"{namespace}::{fake.__name__}", fake)
    flops.register(
        ops.motion_gates_packed, dict.fromkeys(("x_weight", "state_weight", "candidate_weight"), _ALL)
    )
    flops.register_formula(ops.motion_gates_packed_backward, _flops_of_backward)


def motion_gates_pack(
    x_weight: Tensor, x_bias: Tensor, state_weight: Tensor, candidate_weight: Tensor
) -> tuple[Tensor, Tensor]:
    # Their bytes are the kernels' own affair; these are more, with channels and rows in whole fragments.
    sizes = [w.shape for w in (x_weight, state_weight, candidate_weight)]
    count = 64 * sum((1 + rows) * (1 + channels) * g * g for rows, channels, g, _ in sizes)
    return tuple(x_weight.new_empty(count, dtype=torch.uint8) for _ in range(2))  # type: ignore[return-value]


def motion_gates_packed(
    x: Tensor, offset: Tensor, trend: Tensor, x_weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    motion = offset.shape[1]
    states = [new_like(offset, layout=x) for _ in range(2)]
    counts = (x_weight.shape[0] - 3 * motion, motion, motion, motion)
    return (*states, *(_new_map(x, count, format_after(x)) for count in counts))


def motion_gates_packed_backward(
    grad_offset: Tensor,
    grad_trend: Tensor,
    grad_mask: Tensor,
    x: Tensor,
    offset: Tensor,
    x_weight: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    wanted = rest[-1]
    made = [(t, bit) for t, bit in ((x, Wanted.X), (offset, Wanted.MOTION), (offset, Wanted.MOTION))]
    maps = [new_like(t, layout=x) if wanted & bit else t.new_empty(0) for t, bit in made]
    if not wanted & Wanted.WEIGHTS:
        return (*maps, x.new_empty(0), x.new_empty(0))
    # Pixel rows of whole quads, of which the results are the first channels.
    factors = [
        _new_map(x, (count + 3) // 4 * 4, torch.channels_last).narrow(1, 0, count)
        for count in (x_weight.shape[0], offset.shape[1])
    ]
    return (*maps, *factors)


def _new_map(x: Tensor, channels: int, memory_format: torch.memory_format) -> Tensor:
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _flops_of_backward(*shapes: Any, **more: Any) -> int:
    batch, _, height, width = shapes[3]
    x_weight, _, state_weight, candidate_weight = shapes[5:9]
    wanted = shapes[-1]
    total = _count(candidate_weight)
    if wanted & Wanted.X:
        total += _count(x_weight)
    if wanted & Wanted.MOTION:
        total += _count(state_weight)
    return 2 * batch * height * width * total


def _count(shape: Sequence[int]) -> int:
    out, channels, height, width = shape
    return out * channels * height * width
