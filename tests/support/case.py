"""A case: an op, tensors by name in their layouts, parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from motionrnn_ext import ops

STATE = {"offset", "trend"}  # float32 beside half features


@dataclass(frozen=True)
class Case:
    op: str
    name: str
    make: Callable[[torch.Generator], dict[str, Tensor | None]]  # float64 tensors by argument name
    parameters: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    def inputs(
        self, dtype: torch.dtype, device: str = "cpu", *, grad: bool = True
    ) -> dict[str, Tensor | None]:
        """The case's tensors in their dtypes, layouts kept; leaves that want gradients."""
        state = torch.float64 if dtype == torch.float64 else torch.float32
        made = self.make(generator())
        return {
            name: t if t is None else like(t, state if name in STATE else dtype, device).requires_grad_(grad)
            for name, t in made.items()
        }

    def run(self, inputs: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
        out = getattr(ops, self.op)(**inputs, **self.parameters)
        return out if isinstance(out, tuple) else (out,)


MAX_OFFSET = 2.5


def partly_bounded(inputs: dict[str, Tensor | None], exact: bool = True) -> dict[str, Tensor | None]:
    """The inputs of a motion op, changed in place: with MAX_OFFSET a third of F_t is far beyond the bound, the rest far
    within. With `exact` every other channel is not updated, so that F_t is a multiple of a quarter, often the bound."""
    offset, trend = inputs["offset"], inputs["trend"]
    far = torch.arange(offset.numel()).view(offset.shape) % 3 == 0
    for t in (offset, trend):
        t.copy_(torch.where(far, torch.copysign(torch.full_like(t, 10.0), offset), t.clamp(-0.5, 0.5)))
        if exact:
            t[:, ::2] = (8 * t[:, ::2].clamp(-0.5, 0.5)).round() / 2
    if exact and "x_bias" in inputs:
        inputs["x_bias"][: offset.shape[1] : 2] = -800.0
    elif exact:
        inputs["update_logits"][:, ::2] = -800.0
    return inputs


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def like(t: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """A leaf with t's values, strides (also where those leave gaps) and place in its storage."""
    size = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride())) if t.numel() else 0
    storage = torch.empty(t.storage_offset() + size, dtype=dtype, device=device)
    return storage.as_strided(t.shape, t.stride(), t.storage_offset()).copy_(t.detach()).detach()


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def cut(t: Tensor) -> Tensor:
    """The first channels of a tensor that has twice as many, in the same memory format."""
    return as_format_of(t, torch.cat([t, t.neg()], dim=1))[:, : t.shape[1]]


def as_format_of(x: Tensor, t: Tensor) -> Tensor:
    return t.contiguous() if x.is_contiguous() else channels_last(t)


def misaligned(t: Tensor) -> Tensor:
    """t one element past an address that a vector could be read from."""
    return torch.empty(1 + t.numel(), dtype=t.dtype).as_strided(t.shape, t.stride(), 1).copy_(t)


def normal(*shape: int, scale: float = 1.0) -> Callable[[torch.Generator], Tensor]:
    return lambda g: torch.randn(shape, generator=g, dtype=torch.float64) * scale
