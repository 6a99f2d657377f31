"""The registration of the offset warp."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import reference
from ..layouts import new_image, new_like
from .base import Weighted, new_weight
from .second import reference_gradients
from .wanted import Wanted


class OffsetWarp(Weighted):
    name = "offset_warp"
    gradients: ClassVar = {
        "x": Wanted.X,
        "offset": Wanted.MOTION,
        "mask_logits": Wanted.MASK,
        "weight": Wanted.WEIGHTS,
    }
    products: ClassVar = {"weight": Wanted.X | Wanted.MOTION | Wanted.MASK}

    def fake(self, x: Tensor, offset: Tensor, mask_logits: Tensor, weight: Tensor) -> Tensor:
        return new_image(x, weight.shape[0])

    def fake_backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        given = self.backward_inputs(*arguments)
        made = (
            new_image(given.x, given.x.shape[1]),
            new_like(given.offset),
            new_like(given.mask_logits),
            new_weight(given.weight),
        )
        return self.only_wanted(made, given.wanted)

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        is_deterministic = torch.are_deterministic_algorithms_enabled()
        found = self.run_backward(grad, *ctx.saved_tensors, self.wanted(ctx), is_deterministic)
        return self.needed(ctx, found)

    def reference_backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        grad, *tensors = arguments[: len(self.gradients) + 1]
        return reference_gradients(reference.offset_warp, tensors, (), (grad,))
