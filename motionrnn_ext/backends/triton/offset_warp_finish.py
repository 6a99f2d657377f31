"""The last launch of the warp's backward: it converts grad_x, and sums the parts of grad_weight in a fixed order.

With gates (gated_warp.py) kernels of their backward do its work instead.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..registration.wanted import Wanted
from .fixed_point import unit_exponent, value_of_sum
from .images import Image, load_image, needs_64_bits, store_image, tile_pixels
from .launch import launch, log2_ceil
from .offset_warp import channel_block
from .scalar import index, narrow

# The work of a program of the last launch: pixels of grad_x, or addends of grad_weight.
FINISH_PIXELS, FINISH_ADDENDS = 64, 4096


@triton.jit
def load_sums(sums, b, place, c, exists, size, C: tl.constexpr, exponent, DETERMINISTIC: tl.constexpr):
    """Return the channels c of the gradient of x at pixels, whose sums are multiples of 2^exponent if DETERMINISTIC."""
    value = load_image(sums, (b * size + place) * C, c, exists, size, C, C, True)
    if DETERMINISTIC:
        value = value_of_sum(value, exponent)
    return value


@triton.jit
def finish_weight(
    grad_weight_parts, grad_weight, parts, program, C: tl.constexpr, C_OUT: tl.constexpr, K: tl.constexpr,
    WEIGHT_PARTS: tl.constexpr, WEIGHTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Store a program's share of grad_weight, the sum of its parts."""
    # The indices of weights in the order (n, c, o).
    i = index(program, WIDE) * WEIGHTS + tl.arange(0, WEIGHTS)
    inside = i < C * C_OUT * K * K
    part = tl.arange(0, WEIGHT_PARTS)
    from_parts = grad_weight_parts + (index(part, WIDE)[:, None] * (C * C_OUT * K * K) + i[None, :])
    total = tl.sum(tl.load(from_parts, mask=(part < parts)[:, None] & inside[None, :], other=0), 0)
    n, c, o = i // (C * C_OUT), i // C_OUT % C, i % C_OUT
    to_weight = grad_weight + ((o * C + c) * (K * K) + n)
    tl.store(to_weight, narrow(total, grad_weight.dtype.element_ty), mask=inside)


@triton.jit
def offset_warp_finish_kernel(
    sums, grad_x, grad_weight_parts, grad_weight, height, width, pixels, parts, x_programs, log_addends,
    C: tl.constexpr, C_OUT: tl.constexpr, K: tl.constexpr, GRAD_X_PIXEL: tl.constexpr, DETERMINISTIC: tl.constexpr,
    WEIGHT_PARTS: tl.constexpr, WEIGHTS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The first programs write grad_x, the others sum the parts of grad_weight."""
    program = tl.program_id(0)
    width, pixels = index(width, WIDE), index(pixels, WIDE)
    if program < x_programs:
        LAST: tl.constexpr = GRAD_X_PIXEL != 1
        size = height * width
        exists, b, place, _, _ = tile_pixels(program, PIXELS, pixels, size, width, WIDE)
        exponent = 0
        if DETERMINISTIC:
            exponent = unit_exponent(sums + pixels * C, log_addends)
        for first in range(0, C, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            value = load_sums(sums, b, place, c, exists, size, C, exponent, DETERMINISTIC)
            if not LAST:
                value = tl.trans(value)
            to = b * (C * size) + place * GRAD_X_PIXEL
            store_image(grad_x, to, c, exists, size, C, GRAD_X_PIXEL, LAST, value)
    else:
        finish_weight(
            grad_weight_parts, grad_weight, parts, program - x_programs, C, C_OUT, K, WEIGHT_PARTS, WEIGHTS, WIDE
        )  # fmt: skip


class Sums(NamedTuple):
    """The gradients of offset and mask, and what the last launch makes the others of.

    x: the sums of its gradient, with channels last. weight: its gradient, to be summed from weight_parts.
    log_addends: the logarithm of the number of a deterministic sum's addends. shape: the sizes C, C_OUT and K.
    """

    x: Tensor
    offset: Tensor
    mask: Tensor
    weight: Tensor
    weight_parts: Tensor
    log_addends: int
    shape: dict[str, int]

    @property
    def constants(self) -> dict[str, int]:
        """Return those of a kernel that finishes the weight's gradient."""
        parts = 2 ** log2_ceil(self.weight_parts.shape[0])
        return {**self.shape, "WEIGHT_PARTS": parts, "WEIGHTS": FINISH_ADDENDS // parts}

    @property
    def is_deterministic(self) -> bool:
        """Return whether the sums are integers, with two maxima after them."""
        return self.x.dtype == torch.int64

    @property
    def weight_programs(self) -> int:
        """Return the number of programs that sum the parts of the weight's gradient."""
        return triton.cdiv(self.weight.numel(), self.constants["WEIGHTS"])


def finish(x: Tensor, grad_x: Tensor, wanted: int, made: Sums) -> None:
    """Write the gradients of x, with any memory format, and of the weight."""
    batch, channels, height, width = x.shape
    pixels = batch * height * width
    is_done = made.x is grad_x or not wanted & Wanted.X
    x_programs = 0 if is_done else triton.cdiv(pixels, FINISH_PIXELS)
    launch(
        offset_warp_finish_kernel, x_programs + made.weight_programs,
        made.x, grad_x, made.weight_parts, made.weight, height, width, pixels, made.weight_parts.shape[0],
        x_programs, made.log_addends, **made.constants, GRAD_X_PIXEL=pixel_of(grad_x), PIXELS=FINISH_PIXELS,
        CHANNELS=channel_block(channels, 32), DETERMINISTIC=made.is_deterministic,
        WIDE=needs_64_bits(made.x, grad_x, made.weight_parts), num_warps=4,
    )  # fmt: skip


def pixel_of(grad: Tensor) -> int:
    """Return a gradient's pixel stride, or 1 if it was not requested."""
    return Image.of(grad).pixel if grad.dim() == 4 else 1
