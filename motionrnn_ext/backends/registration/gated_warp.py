"""The registration of a MotionGRU step's gates and warp with packed weights, which GPUs have: shapes and FLOPs. The ops
have no gradients: who calls them calls their backward as well (layers/nodes/motion_step.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..layouts import format_after, new_like
from . import flops, shapes
from .base import new_weight
from .wanted import Wanted

_ALL = Wanted.X | Wanted.MOTION | Wanted.WEIGHTS
_WEIGHTS = ("x_weight", "state_weight", "candidate_weight", "warp_weight")


def register(namespace: str, *, is_native: bool) -> None:
    """Tell torch the shapes and the FLOPs of the ops. Triton's packing is made of ops of torch, which tell shapes."""
    ops = getattr(torch.ops, namespace)
    fakes: list[Callable[..., Any]] = [gated_warp, gated_warp_backward]
    for fake in [*fakes, motion_gates_pack] if is_native else fakes:
        shapes.register(f"{namespace}::{fake.__name__}", fake)
    flops.register(ops.gated_warp, dict.fromkeys(_WEIGHTS, _ALL))
    flops.register_formula(ops.gated_warp_backward, _flops_of_backward)


def motion_gates_pack(
    x_weight: Tensor, x_bias: Tensor, state_weight: Tensor, candidate_weight: Tensor, warp_weight: Tensor
) -> tuple[Tensor, Tensor]:
    # Their bytes are the kernels' own affair; these are more, with channels and rows in whole fragments.
    sizes = [w.shape for w in (x_weight, state_weight, candidate_weight, warp_weight)]
    count = 64 * sum((8 + rows) * (8 + channels) * (4 + k * k) for rows, channels, k, _ in sizes)
    return tuple(x_weight.new_empty(count, dtype=torch.uint8) for _ in range(2))  # type: ignore[return-value]


def gated_warp(
    x: Tensor,
    offset: Tensor,
    trend: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    state_weight: Tensor,
    candidate_weight: Tensor,
    warp_weight: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    motion = offset.shape[1]
    states = [new_like(offset, layout=x) for _ in range(2)]
    counts = (x_weight.shape[0] - 3 * motion, motion, motion, motion)
    warped, *logits = (_new_map(x, count, format_after(x)) for count in (warp_weight.shape[0], *counts))
    return (warped, *states, *logits)


def gated_warp_backward(
    grad: Tensor,
    grad_offset: Tensor,
    grad_trend: Tensor,
    x: Tensor,
    offset: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    state_weight: Tensor,
    candidate_weight: Tensor,
    warp_weight: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    wanted = rest[-2]
    made = [(t, bit) for t, bit in ((x, Wanted.X), (offset, Wanted.MOTION), (offset, Wanted.MOTION))]
    maps = [new_like(t, layout=x) if wanted & bit else t.new_empty(0) for t, bit in made]
    if not wanted & Wanted.WEIGHTS:
        return (*maps, *(x.new_empty(0) for _ in range(3)))
    # Pixel rows of whole quads, of which the results are the first channels.
    factors = [
        _new_map(x, (count + 3) // 4 * 4, torch.channels_last).narrow(1, 0, count)
        for count in (x_weight.shape[0], offset.shape[1])
    ]
    return (*maps, *factors, new_weight(warp_weight))


def _new_map(x: Tensor, channels: int, memory_format: torch.memory_format) -> Tensor:
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _flops_of_backward(*shapes: Any, **more: Any) -> int:
    """Return the FLOPs; the gradients of the gates' weights are made elsewhere, of what this op returns."""
    batch, _, height, width = shapes[3]
    x_weight, _, state_weight, candidate_weight, warp_weight = (math.prod(shape) for shape in shapes[5:10])
    wanted = shapes[-2]
    total = candidate_weight + warp_weight * (2 if wanted & Wanted.WEIGHTS else 1)
    total += x_weight if wanted & Wanted.X else 0
    total += state_weight if wanted & Wanted.MOTION else 0
    return 2 * batch * height * width * total
