"""Memory formats: how operands lie in memory, and which format results follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .transforms import is_mapped


def memory_format(x: Tensor) -> torch.memory_format:
    """Return channels_last if x has that format and is not contiguous; contiguous otherwise, and inside of vmap."""
    if x.is_contiguous() or is_mapped():
        return torch.contiguous_format
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def format_after(t: Tensor) -> torch.memory_format:
    """Return the memory format of a pointwise result that follows t: channels_last if t has that format, or was split
    from a tensor that has it."""
    if t.dim() != 4 or t.numel() == 0 or is_dense(t, (3, 2, 1)):
        return torch.contiguous_format
    return torch.channels_last if is_channels_last(t) else torch.contiguous_format


def is_channels_last(t: Tensor) -> bool:
    """Return whether channels come last: C contiguous elements a pixel, and all pixels at one distance."""
    return (t.shape[1] == 1 or t.stride(1) == 1) and is_dense(t, (3, 2, 0), pixel_distance(t))


def pixel_distance(t: Tensor) -> int:
    """Return the distance from one pixel to the next in an image whose channels come last.

    It is not `t.stride(3)`, because the stride of a dimension of one element may be anything.
    """
    return next((t.stride(d) for d in (3, 2, 0) if t.shape[d] != 1), t.shape[1])


def is_dense(t: Tensor, dimensions: Sequence[int], expected: int = 1) -> bool:
    """Return whether `dimensions`, the innermost first, follow one another without gaps from a stride of `expected`."""
    for d in dimensions:
        if t.shape[d] != 1 and t.stride(d) != expected:
            return False
        expected *= t.shape[d]
    return True


def new_image(x: Tensor, channels: int) -> Tensor:
    """Return an empty image with the batch, the size and the memory format of x."""
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def new_like(t: Tensor, layout: Tensor | None = None) -> Tensor:
    """Return an empty tensor of t's shape and dtype, in the memory format that follows `layout` (t by default)."""
    memory_format = format_after(t if layout is None else layout)
    return torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=memory_format)
