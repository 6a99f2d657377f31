"""The registration of the MotionGRU's step as one op of the CPU: shapes and FLOPs. It has no gradients: who calls it
calls its backward as well (layers/nodes/motion_step.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layouts import memory_format, new_image, new_like
from . import flops, shapes
from .base import new_weight
from .wanted import Wanted

# The weights among the arguments of the backward op: packed weights and three numbers follow.
_WEIGHTS = slice(-13, -4)


def register(namespace: str) -> None:
    """Tell torch the shapes and the FLOPs of the ops."""
    ops = getattr(torch.ops, namespace)
    for fake in (motion_step_pack, motion_step, motion_step_backward, motion_gates_weight_gradients):
        shapes.register(f"{namespace}::{fake.__name__}", fake)
    flops.register_formula(ops.motion_step, _flops)
    flops.register_formula(ops.motion_step_backward, _flops_of_backward)
    flops.register_formula(ops.motion_gates_weight_gradients, _flops_of_weights)


def motion_step_pack(weights: Sequence[Tensor], backward: bool) -> Tensor:
    # The bytes depend on the instruction set; these are the most, with all outputs in whole blocks.
    return weights[0].new_empty(
        16 * sum(w.numel() + 9 * math.prod(w.shape[1:]) for w in weights), dtype=torch.uint8
    )


def motion_step(
    maps: Tensor, offset: Tensor, trend: Tensor, encoder: Tensor, x_weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    motion = offset.shape[1]
    shape = (maps.shape[0], encoder.shape[0], maps.shape[2] // 2, maps.shape[3] // 2)
    features = torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=memory_format(maps))
    states = [new_like(offset, layout=features) for _ in range(2)]
    counts = (x_weight.shape[0] - 3 * motion, motion, motion, motion)
    logits = [new_image(features, count) for count in counts]
    return new_image(maps, maps.shape[1]), *states, features, *logits, new_image(features, encoder.shape[0])


def motion_step_backward(
    grad_decoded: Tensor,
    grad_maps: Tensor,
    grad_offset: Tensor,
    grad_trend: Tensor,
    offset: Tensor,
    features: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    weights, wanted = rest[_WEIGHTS], rest[-1]
    states = [new_like(offset, layout=features) for _ in range(2)]
    made = new_image(features, weights[1].shape[0]).to(offset.dtype), new_weight(weights[5])
    return (
        new_image(grad_maps, grad_maps.shape[1]),
        *(t if wanted & Wanted.MOTION else t.new_empty(0) for t in states),
        new_image(features, features.shape[1]),
        *(t if wanted & Wanted.WEIGHTS else t.new_empty(0) for t in made),
    )


def motion_gates_weight_gradients(
    grad_logits: Tensor, x: Tensor, offset: Tensor, reset_logits: Tensor, kernel_size: int
) -> tuple[Tensor, ...]:
    logits = grad_logits.shape[1]
    shapes = _shapes_of_gates(logits, x.shape[1], offset.shape[1], kernel_size)
    to_x, *others = (x.new_empty(shape) for shape in shapes)
    return to_x, x.new_empty(logits), *others


def _shapes_of_gates(logits: int, channels: int, motion: int, k: int) -> list[tuple[int, ...]]:
    return [(logits, channels, k, k), (2 * motion, motion, k, k), (motion, motion, k, k)]


def _flops_of_weights(
    grad: Sequence[int], x: Sequence[int], offset: Sequence[int], reset: Any, k: int, **more: Any
) -> int:
    batch, logits, height, width = grad
    shapes = _shapes_of_gates(logits, x[1], offset[1], k)
    return 2 * batch * height * width * sum(map(math.prod, shapes))


def _flops(maps: Sequence[int], offset: Any, trend: Any, *rest: Any, **more: Any) -> int:
    weights = list(rest[:9])
    return _of_weights(maps, weights[:2] + weights[3:7])


def _flops_of_backward(grad_decoded: Sequence[int], *rest: Any, **more: Any) -> int:
    weights, wanted = rest[_WEIGHTS], rest[-1]
    encoder, x_weight, _, state_weight, candidate_weight, warp, decoder = weights[:7]
    # The gradients of maps and samples, and that of the warp's weight.
    of_maps = [encoder, x_weight, candidate_weight, warp, decoder]
    of_weights = [warp] if wanted & Wanted.WEIGHTS else []
    of_state = [state_weight] if wanted & Wanted.MOTION else []
    return _of_weights(grad_decoded, of_maps + of_weights + of_state)


def _of_weights(maps: Sequence[int], weights: Sequence[Sequence[int]]) -> int:
    batch, _, height, width = maps
    return 2 * batch * (height // 2) * (width // 2) * sum(map(math.prod, weights))
