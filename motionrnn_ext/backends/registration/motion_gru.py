"""The registration of the MotionGRU's pointwise ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .base import Pointwise
from .second import reference_gradients


class MotionReset(Pointwise):
    name = "motion_reset"
    outputs = ("reset_logits",)
    gradients = ("reset_logits", "offset")


class MotionUpdate(Pointwise):
    """Backward reads the new offset in place of the trend: it is linear in the trend, and has to know the bound."""

    name = "motion_update"
    outputs = ("offset", "trend")
    gradients = ("update_logits", "candidate_logits", "offset", "offset")

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        update_logits, candidate_logits, offset, _, *ctx.numbers = inputs
        ctx.save_for_backward(update_logits, candidate_logits, offset, output[0])

    def reference_backward(self, *arguments: Any) -> tuple[Any, ...]:
        return motion_update_backward(*arguments)


def motion_update_backward(
    grad_offset: Tensor,
    grad_trend: Tensor,
    update_logits: Tensor,
    candidate_logits: Tensor,
    offset: Tensor,
    new_offset: Tensor,
    alpha: float,
    max_offset: float,
) -> tuple[Any, ...]:
    """Return the gradients of motion_update's four tensors, by the reference."""
    # The op is linear in the trend, so that the gradients are the same for every trend.
    motion = (update_logits, candidate_logits, offset, torch.zeros_like(offset))
    grads = reference.bounded_backward(grad_offset, new_offset, max_offset), grad_trend
    return reference_gradients(reference.motion_update, motion, (alpha,), grads)
