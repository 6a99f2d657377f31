"""The registration of a MotionGRU step up to its warp, which the native backends have."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import reference
from ..layouts import format_after, new_like
from .base import Weighted, new_weight
from .second import reference_gradients
from .wanted import Wanted

_WEIGHTS = ("x_weight", "x_bias", "state_weight", "candidate_weight")


class MotionGates(Weighted):
    """The op also returns the logits of u, r and z, for its backward alone."""

    name = "motion_gates"
    gradients: ClassVar = {
        "x": Wanted.X,
        "offset": Wanted.MOTION,
        "trend": Wanted.MOTION,
        **dict.fromkeys(_WEIGHTS, Wanted.WEIGHTS),
    }
    # The gradient of s(r) F is part of the gradients of r, which x and every weight want, and of F.
    products: ClassVar = {
        "x_weight": Wanted.X,
        "state_weight": Wanted.MOTION,
        "candidate_weight": Wanted.X | Wanted.MOTION | Wanted.WEIGHTS,
    }

    def fake(self, *arguments: Any) -> tuple[Tensor, ...]:
        given = self.inputs(*arguments)
        x, motion = given.x, given.offset.shape[1]
        states = [new_like(given.offset, layout=x) for _ in range(2)]
        logits = [
            torch.empty(
                (x.shape[0], channels, *x.shape[2:]),
                dtype=x.dtype,
                device=x.device,
                memory_format=format_after(x),
            )
            for channels in (given.x_weight.shape[0] - 3 * motion, motion, motion, motion)
        ]
        return (*states, *logits)

    def fake_backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        given = self.backward_inputs(*arguments)
        # The trend has the shape and dtype of the offset.
        maps = [new_like(t, layout=given.x) for t in (given.x, given.offset, given.offset)]
        weights = [new_weight(getattr(given, name)) for name in _WEIGHTS]
        return self.only_wanted((*maps, *weights), given.wanted)

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        given, (new_offset, _, _, *logits) = self.inputs(*inputs), output
        ctx.numbers = given.alpha, given.max_offset
        weights = [getattr(given, name) for name in _WEIGHTS]
        ctx.save_for_backward(given.x, given.offset, *weights, *logits, new_offset)
        ctx.set_materialize_grads(False)

    def backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if any(g is not None for g in grads[3:]):
            raise RuntimeError("motion_gates: its logits have no gradient; they are there for its backward")
        # Checkpointing allows one reading.
        saved = ctx.saved_tensors
        x, offset, x_weight = saved[:3]
        mask_shape = (x.shape[0], x_weight.shape[0] - 3 * offset.shape[1], *x.shape[2:])
        likes = ((offset, offset.shape), (offset, offset.shape), (x, mask_shape))
        given = [t.new_zeros(shape) if g is None else g for g, (t, shape) in zip(grads, likes)]
        return self.needed(ctx, self.run_backward(*given, *saved, *ctx.numbers, self.wanted(ctx)))

    def reference_backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        given = self.backward_inputs(*arguments)
        grad_offset = reference.bounded_backward(given.grad_offset, given.new_offset, given.max_offset)
        # The op is linear in the trend, so that the gradients are the same for every trend.
        maps = (given.x, given.offset, torch.zeros_like(given.offset))
        weights = [getattr(given, name) for name in _WEIGHTS]
        return reference_gradients(
            reference.motion_gates,
            (*maps, *weights),
            (given.alpha,),
            (grad_offset, given.grad_trend, given.grad_mask),
        )
