"""The registration of the end of a MotionGRU step, which GPUs have for an output gate of 1x1: shapes and FLOPs. The ops
have no gradients: who calls them calls their backward as well (layers/nodes/output_gate.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..layouts import new_image
from . import flops, shapes


def register(namespace: str, *, is_native: bool) -> None:
    """Tell torch the shapes and the FLOPs of the ops. Triton's packing is made of ops of torch, which tell shapes."""
    ops = getattr(torch.ops, namespace)
    fakes: list[Callable[..., Any]] = [decode_blend, decode_blend_backward]
    for fake in [*fakes, decode_blend_pack] if is_native else fakes:
        shapes.register(f"{namespace}::{fake.__name__}", fake)
    flops.register_formula(ops.decode_blend, _flops)
    flops.register_formula(ops.decode_blend_backward, _flops_of_backward)


def decode_blend_pack(decoder_weight: Tensor, gate_weight: Tensor) -> tuple[Tensor, Tensor]:
    # Their bytes are the kernels' own affair; these are more, with channels and rows in whole fragments.
    count = 64 * sum(
        (w.shape[0] + 3) * (w.shape[1] + 7) * w.shape[2] ** 2 for w in (decoder_weight, gate_weight)
    )
    return decoder_weight.new_empty(count, dtype=torch.uint8), gate_weight.new_empty(count, dtype=torch.uint8)


def decode_blend(warped: Tensor, maps: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _three_like(maps)


def decode_blend_backward(grad: Tensor, maps: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _three_like(maps)


def _three_like(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    channels = maps.shape[1]
    return new_image(maps, channels), new_image(maps, channels), new_image(maps, channels)


def _flops(
    warped: Any, maps: Any, decoder: Any, decoder_bias: Any, gate: Any, *rest: Any, **more: Any
) -> int:
    batch, _, height, width = warped
    return 2 * batch * height * width * (math.prod(decoder) + 4 * math.prod(gate))


def _flops_of_backward(
    grad: Any, maps: Any, decoded: Any, logits: Any, decoder: Any, gate: Any, *rest: Any, **more: Any
) -> int:
    batch, _, height, width = maps
    return 2 * batch * height * width * math.prod(gate)
