"""The registration of motion_update and offset_warp in one op, which has a kernel on CUDA."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import reference
from ..layouts import new_image, new_like
from .base import Weighted, new_weight
from .motion_gru import motion_update_backward
from .second import reference_gradients
from .wanted import Wanted


class MotionWarp(Weighted):
    """Backward reads the new offset in place of the trend, as that of motion_update."""

    name = "motion_warp"
    gradients: ClassVar = {
        "x": Wanted.X,
        "update_logits": Wanted.MOTION,
        "candidate_logits": Wanted.MOTION,
        "offset": Wanted.MOTION,
        "trend": Wanted.MOTION,
        "mask_logits": Wanted.MASK,
        "weight": Wanted.WEIGHTS,
    }
    products: ClassVar = {"weight": Wanted.X | Wanted.MOTION | Wanted.MASK}

    def fake(self, *arguments: Any) -> tuple[Tensor, ...]:
        given = self.inputs(*arguments)
        out = new_image(given.x, given.weight.shape[0])
        motion = [new_like(t, layout=given.update_logits) for t in (given.offset, given.trend)]
        return (out, *motion)

    def fake_backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        given = self.backward_inputs(*arguments)
        # The trend has the shape and dtype of the offset.
        motion = (given.update_logits, given.candidate_logits, given.offset, given.offset)
        made = (
            new_image(given.x, given.x.shape[1]),
            *[new_like(t, layout=given.update_logits) for t in motion],
            new_like(given.mask_logits),
            new_weight(given.weight),
        )
        return self.only_wanted(made, given.wanted)

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        given, new_offset = self.inputs(*inputs), output[1]
        ctx.numbers = given.alpha, given.max_offset
        motion = (given.update_logits, given.candidate_logits, given.offset, new_offset)
        ctx.save_for_backward(given.x, *motion, given.mask_logits, given.weight)

    def backward(self, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        is_deterministic = torch.are_deterministic_algorithms_enabled()
        found = self.run_backward(
            *grads, *ctx.saved_tensors, *ctx.numbers, self.wanted(ctx), is_deterministic
        )
        return self.needed(ctx, found)

    def reference_backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        given = self.backward_inputs(*arguments)
        warp_inputs = (given.x, given.new_offset, given.mask_logits, given.weight)
        grad_x, by_warp, grad_mask, grad_weight = reference_gradients(
            reference.offset_warp, warp_inputs, (), (given.grad,)
        )
        motion = (given.update_logits, given.candidate_logits, given.offset, given.new_offset)
        grads = motion_update_backward(
            given.grad_offset + by_warp, given.grad_trend, *motion, given.alpha, given.max_offset
        )
        return grad_x, *grads, grad_mask, grad_weight
