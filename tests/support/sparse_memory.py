"""Tensors of any size in address space, of which only the pages that are written take memory."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

_NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux


def sparse_zeros(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, strides: Sequence[int] | None = None
) -> Tensor:
    """Return zeros, contiguous or with these strides in elements."""
    if strides is None:
        strides = [prod(shape[d + 1 :]) for d in range(len(shape))]
    count = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype, count=count).as_strided(shape, strides)


def channels_last_strides(shape: Sequence[int], pixel: int | None = None) -> list[int]:
    """Return the strides of a channels_last image; pixel: the distance of two pixels, if there are gaps."""
    _, channels, height, width = shape
    pixel = channels if pixel is None else pixel
    return [height * width * pixel, 1, width * pixel, pixel]


def use_sparse_results(patch: pytest.MonkeyPatch) -> None:
    """Let `torch.empty`, `torch.empty_like` and `torch.zeros` return sparse tensors where they would be large."""
    for name in ("empty", "zeros"):
        make = getattr(torch, name)

        def sparsely(*shape: Any, make: Any = make, **options: Any) -> Tensor:
            sizes = shape[0] if isinstance(shape[0], Sequence) else shape
            if prod(sizes) < 2**24:
                return make(*shape, **options)
            last = options.get("memory_format") is torch.channels_last
            strides = channels_last_strides(sizes) if last else None
            return sparse_zeros(sizes, options.get("dtype", torch.float32), strides)

        patch.setattr(torch, name, sparsely)
    patch.setattr(torch, "empty_like", lambda t, **options: torch.empty(t.shape, dtype=t.dtype, **options))
