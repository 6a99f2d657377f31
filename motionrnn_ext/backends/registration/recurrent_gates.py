"""The registration of the recurrent cells' pointwise ops."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Pointwise


class MemoryUpdate(Pointwise):
    """The two addends of the gates have the same gradient, which the backward op returns once."""

    name = "memory_update"
    outputs = ("memory",)
    gradients = ("gates_x", "memory")

    def backward(self, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_gates, grad_memory = self.run_backward(*grads, *ctx.saved_tensors, *ctx.numbers)
        return self.needed(ctx, (grad_gates, grad_gates, grad_memory))

    def reference_backward(self, *arguments: Any) -> tuple[Any, ...]:
        return super().reference_backward(*arguments)[1:]


class HighwayOutput(Pointwise):
    """`highway` may be None, and has an empty gradient then."""

    name = "highway_output"
    outputs = ("output_logits",)
    gradients = ("output_logits", "content", "highway")


class GatedBlend(Pointwise):
    name = "gated_blend"
    outputs = ("gate_logits",)
    gradients = ("gate_logits", "a", "b")
