"""The offset warp, forward: a program gathers the taps of its pixels one by one, and contracts each on tensor cores."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import new_image
from .bilinear import bilinear_cell, bilinear_corner
from .images import (
    Image,
    as_columns,
    as_rows,
    channel_stride,
    load_image,
    needs_64_bits,
    store_image,
    tile_pixels,
    zero_tile,
)
from .launch import PRECISION, Block, in_blocks, kernel_op, launch, log2_ceil
from .scalar import dot, index, narrow, sigmoid, widen

# torch.compile takes a value that a helper function loads from a tensor for a pointer into that tensor. Where the value
# becomes part of an address that is written, as a tap's place does, the kernel itself has to load it: otherwise
# torch.compile takes the tensor for overwritten.


@triton.jit
def offset_tap(n, row_offset, col_offset, logit, row, col, height, width, K: tl.constexpr):
    """Return, for tap n of each pixel, the upper left corner of its cell, its fractions in the cell, and s(m)."""
    reach = (height + width + K) * 1.0
    row, row_fraction = bilinear_cell(row + (n // K - (K - 1) // 2), row_offset, reach)
    col, col_fraction = bilinear_cell(col + (n % K - (K - 1) // 2), col_offset, reach)
    return row, col, row_fraction, col_fraction, sigmoid(widen(logit))


@triton.jit
def load_tap(n, at_offset, at_mask, offset_plane, mask_plane, exists, K: tl.constexpr):
    """Return, for tap n of each pixel, its offset by rows and by columns, and the mask's logit."""
    row_offset = tl.load(at_offset + n * offset_plane, mask=exists, other=0)
    col_offset = tl.load(at_offset + (n + K * K) * offset_plane, mask=exists, other=0)
    return row_offset, col_offset, tl.load(at_mask + n * mask_plane, mask=exists, other=0)


@triton.jit
def load_weight(
    weight, c, n, o, C: tl.constexpr, C_OUT: tl.constexpr, K: tl.constexpr,
    WEIGHT_C: tl.constexpr, WEIGHT_TAP: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return the tile of weights of tap n, channels x out channels."""
    at = (
        as_rows(index(c, WIDE) * WEIGHT_C, LAST)
        + as_columns(index(o, WIDE) * (C * K * K), LAST)
        + n * WEIGHT_TAP
    )
    return tl.load(weight + at, mask=as_rows(c < C, LAST) & as_columns(o < C_OUT, LAST), other=0)


@triton.jit
def warp_tile(
    x, offset, mask_logits, weight, b, place, p_row, p_col, exists, o, x_batch, offset_batch, mask_batch, height, width,
    C: tl.constexpr, C_OUT: tl.constexpr, K: tl.constexpr, X_PIXEL: tl.constexpr, OFFSET_PIXEL: tl.constexpr,
    MASK_PIXEL: tl.constexpr, WEIGHT_C: tl.constexpr, WEIGHT_TAP: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return the channels o of a tile's pixels: sum over c, n of W[o,c,n] s(m[n]) bilinear0(x[c], p + p_n + F[n])."""
    LAST: tl.constexpr = X_PIXEL != 1
    size = height * width
    acc = zero_tile(PIXELS, OUT_CHANNELS, LAST, offset.dtype.element_ty)
    at_offset = offset + (b * offset_batch + place * OFFSET_PIXEL)
    offset_plane = channel_stride(OFFSET_PIXEL, size)
    at_mask = mask_logits + (b * mask_batch + place * MASK_PIXEL)
    mask_plane = channel_stride(MASK_PIXEL, size)
    if LAST:
        row_offset, col_offset, logit = load_tap(0, at_offset, at_mask, offset_plane, mask_plane, exists, K)
    for n in range(K * K):
        if not LAST:
            row_offset, col_offset, logit = load_tap(
                n, at_offset, at_mask, offset_plane, mask_plane, exists, K
            )
        row, col, row_fraction, col_fraction, mask = offset_tap(
            n, row_offset, col_offset, logit, p_row, p_col, height, width, K
        )
        if LAST:
            # The next tap is loaded here, so that its gather does not wait. With channels as planes, this would take
            # more registers than there are. After the last tap that one is loaded again: a masked load spilled on sm_90
            # (with gates), and tl.minimum on sm_120.
            row_offset, col_offset, logit = load_tap(
                n + (n + 1 < K * K), at_offset, at_mask, offset_plane, mask_plane, exists, K
            )
        at = b * x_batch + (row * width + col) * X_PIXEL
        for first in range(0, C, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            sample = zero_tile(PIXELS, CHANNELS, LAST, acc.dtype)
            for corner in tl.static_range(4):
                inside, share, _, _ = bilinear_corner(
                    corner, row, col, row_fraction, col_fraction, exists, height, width
                )
                at_corner = at + (width * (corner // 2) + corner % 2) * X_PIXEL
                value = load_image(x, at_corner, c, inside, size, C, X_PIXEL, LAST)
                sample += as_rows(mask * share, LAST) * widen(value)
            sample = narrow(sample, weight.dtype.element_ty)
            w = load_weight(weight, c, n, o, C, C_OUT, K, WEIGHT_C, WEIGHT_TAP, LAST, WIDE)
            if LAST:
                acc = dot(sample, w, acc, PRECISION)
            else:
                acc = dot(w, sample, acc, PRECISION)
    return acc


@triton.jit
def offset_warp_kernel(
    x, offset, mask_logits, weight, out, x_batch, offset_batch, mask_batch, height, width, pixels,
    C: tl.constexpr, C_OUT: tl.constexpr, K: tl.constexpr, X_PIXEL: tl.constexpr, OFFSET_PIXEL: tl.constexpr,
    MASK_PIXEL: tl.constexpr, OUT_PIXEL: tl.constexpr, WEIGHT_C: tl.constexpr, WEIGHT_TAP: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = (C_OUT + OUT_CHANNELS - 1) // OUT_CHANNELS
    tile, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    width = index(width, WIDE)
    size = height * width
    exists, b, place, p_row, p_col = tile_pixels(tile, PIXELS, pixels, size, width, WIDE)
    o = part * OUT_CHANNELS + tl.arange(0, OUT_CHANNELS)
    acc = warp_tile(
        x, offset, mask_logits, weight, b, place, p_row, p_col, exists, o, x_batch, offset_batch, mask_batch, height,
        width, C, C_OUT, K, X_PIXEL, OFFSET_PIXEL, MASK_PIXEL, WEIGHT_C, WEIGHT_TAP, PIXELS, CHANNELS, OUT_CHANNELS,
        PRECISION, WIDE,
    )  # fmt: skip
    at = b * (C_OUT * size) + place * OUT_PIXEL
    store_image(out, at, o, exists, size, C_OUT, OUT_PIXEL, X_PIXEL != 1, acc)


def channel_block(channels: int, most: int) -> int:
    """Return the number of channels of a tile: at least 16 for tensor cores, at most `most` for the registers."""
    return min(max(16, 2 ** log2_ceil(channels)), most)


def weight_strides(weight: Tensor) -> tuple[Tensor, dict[str, int]]:
    """Return the weight and the strides of its channels and taps. It is read in place in either memory format."""
    _, channels, k, _ = weight.shape
    if not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
        return weight, {"WEIGHT_C": 1, "WEIGHT_TAP": channels}
    return weight.contiguous(), {"WEIGHT_C": k * k, "WEIGHT_TAP": 1}


@kernel_op
def offset_warp(x: Tensor, offset: Tensor, mask_logits: Tensor, weight: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    out = new_image(x, weight.shape[0])
    if out.numel() == 0 or channels == 0:
        return out.zero_()
    image, motion, mask, (taps, strides) = *map(Image.of, (x, offset, mask_logits)), weight_strides(weight)
    pixels = batch * height * width

    def in_block(block: Block) -> Tensor:
        of_out = channel_block(out.shape[1], 64)
        is_wide = needs_64_bits(image, motion, mask, taps, out)
        launch(
            offset_warp_kernel, triton.cdiv(pixels, block.size) * triton.cdiv(out.shape[1], of_out),
            image.tensor, motion.tensor, mask.tensor, taps, out, image.batch, motion.batch, mask.batch,
            height, width, pixels, C=channels, C_OUT=out.shape[1], K=weight.shape[2],
            X_PIXEL=image.pixel, OFFSET_PIXEL=motion.pixel, MASK_PIXEL=mask.pixel, OUT_PIXEL=Image.of(out).pixel,
            **strides, PIXELS=block.size, CHANNELS=channel_block(channels, 32), OUT_CHANNELS=of_out,
            PRECISION=PRECISION, WIDE=is_wide, **block.options,
        )  # fmt: skip
        return out

    return in_blocks("offset_warp", channels, x, pixels, in_block)
