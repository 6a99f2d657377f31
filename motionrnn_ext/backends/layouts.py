"""How operands lie in memory: the memory format that results follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .transforms import is_mapped


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last where x is that and not contiguous; contiguous otherwise, and inside of vmap."""
    if x.is_contiguous() or is_mapped():
        return torch.contiguous_format
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def format_after(t: Tensor) -> torch.memory_format:
    """Of a pointwise result that follows t: channels_last where t, or a tensor it was split from, is that."""
    if t.dim() != 4 or t.numel() == 0 or is_dense(t, (3, 2, 1)):
        return torch.contiguous_format
    return torch.channels_last if is_rows(t) else torch.contiguous_format


def is_rows(t: Tensor) -> bool:
    """Whether channels are last, C contiguous elements a pixel and all pixels at one distance."""
    return (t.shape[1] == 1 or t.stride(1) == 1) and is_dense(t, (3, 2, 0), pixel_distance(t))


def pixel_distance(t: Tensor) -> int:
    """From one pixel to the next, where channels are last. The stride of a dimension of one element may be anything."""
    return next((t.stride(d) for d in (3, 2, 0) if t.shape[d] != 1), t.shape[1])


def is_dense(t: Tensor, dimensions: Sequence[int], expected: int = 1) -> bool:
    """Whether `dimensions`, the innermost first, follow one another without gaps from a stride of `expected`."""
    for d in dimensions:
        if t.shape[d] != 1 and t.stride(d) != expected:
            return False
        expected *= t.shape[d]
    return True


def new_image(x: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """An empty image with the batch, the size and the memory format of x."""
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=memory_format(x))
