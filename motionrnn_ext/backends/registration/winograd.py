"""The registration of the convolutions by Winograd's algorithm: shapes and FLOPs. They have no gradients: who calls
them makes those by the same ops (backends/convolution.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layouts import new_image
from . import flops, shapes

# The most output channels that are packed beyond those there are.
_PADDING = 13


def register(namespace: str) -> None:
    """Tell torch the shapes and the FLOPs of the ops."""
    ops = getattr(torch.ops, namespace)
    for fake in (winograd_pack, winograd_conv, winograd_weight_gradient):
        shapes.register(f"{namespace}::{fake.__name__}", fake)
    flops.register_formula(ops.winograd_conv, _flops_of_conv)
    flops.register_formula(ops.winograd_weight_gradient, _flops_of_weight_gradient)


def winograd_pack(weight: Tensor, transposed: bool) -> Tensor:
    outs, channels = weight.shape[:2]
    if transposed:
        outs, channels = channels, outs
    tile = _results(weight.dtype, weight.shape[2]) + weight.shape[2] - 1
    return weight.new_empty(tile * tile * channels * (outs + _PADDING), dtype=_arithmetic(weight))


def winograd_conv(
    x: Tensor, packed: Tensor, kernel_size: int, out_channels: int, bias: Tensor | None
) -> Tensor:
    return new_image(x, out_channels)


def winograd_weight_gradient(grads: Sequence[Tensor], xs: Sequence[Tensor], kernel_size: int) -> Tensor:
    shape = grads[0].shape[1], xs[0].shape[1], kernel_size, kernel_size
    return xs[0].new_empty(shape, dtype=_arithmetic(xs[0]))


def _results(dtype: torch.dtype, kernel_size: int) -> int:
    """Return the side of a tile of results: csrc/cpu/winograd/transforms.h, `TileSize`."""
    if kernel_size == 3:
        return 2 if dtype == torch.float64 else 4
    return 4 if dtype == torch.bfloat16 else 2


def _arithmetic(maps: Tensor) -> torch.dtype:
    """Return the dtype of the arithmetic on maps, in which packed weights and gradients of weights are."""
    return torch.float32 if maps.dtype == torch.bfloat16 else maps.dtype


def _flops_of_conv(
    x: Sequence[int], packed: Any, kernel_size: int, out_channels: int, *unused: Any, **more: Any
) -> int:
    batch, channels, height, width = x
    return 2 * kernel_size**2 * batch * height * width * channels * out_channels


def _flops_of_weight_gradient(
    grads: Sequence[Sequence[int]], xs: Sequence[Sequence[int]], kernel_size: int, **more: Any
) -> int:
    return sum(_flops_of_conv(x, None, kernel_size, grad[1]) for grad, x in zip(grads, xs))
