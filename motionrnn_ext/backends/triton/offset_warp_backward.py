"""The offset warp, backward: a program takes one tap through its tiles of pixels, gathering once for all gradients.

Launches: the sums of grad_x are cleared; deterministic only, the largest addend is found; the main kernel; the last one
sums the parts of grad_weight in a fixed order and brings grad_x into its dtype.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import format_after, new_image
from .bilinear import (
    bilinear_col_derivative,
    bilinear_row_derivative,
    bilinear_weights,
    corners_inside,
)
from .fixed_point import add_exactly, raise_maximum, unit_exponent, value_of_sum
from .images import Image, as_columns, as_rows, channel_stride, needs_64_bits, tile_pixels
from .launch import PRECISION, Block, in_blocks, kernel_op, launch, log2_ceil
from .offset_warp import channel_block, load_corner, load_tap, load_weight, weight_strides
from .scalar import d_sigmoid, dot, narrow, widen

MAX_PARTS = 256  # of grad_weight, which a program of the last launch sums at once
FINISH_ELEMENTS, FINISH_WEIGHTS = 1024, 16


@triton.jit
def load_image(
    image, batch_stride, b, place, channel, exists, size, COUNT: tl.constexpr, PIXEL: tl.constexpr, LAST: tl.constexpr
):  # fmt: skip
    """pixels x channels"""
    index = as_rows(b * batch_stride + place * PIXEL, LAST) + as_columns(
        channel * channel_stride(PIXEL, size), LAST
    )
    return tl.load(image + index, mask=as_rows(exists, LAST) & as_columns(channel < COUNT, LAST), other=0)


@triton.jit
def add(sums, value, inside, exponent, DETERMINISTIC: tl.constexpr):
    if DETERMINISTIC:
        add_exactly(sums, value, exponent, inside)
    else:
        tl.atomic_add(sums, value, mask=inside, sem="relaxed")


@triton.jit
def offset_warp_backward_kernel(
    grad, x, offset, mask_logits, weight, sums, grad_offset, grad_mask_logits, grad_weight_parts,
    grad_batch, x_batch, offset_batch, mask_batch, height, width, pixels, log_addends,
    C: tl.constexpr, C_OUT: tl.constexpr, K: tl.constexpr, GRAD_PIXEL: tl.constexpr, X_PIXEL: tl.constexpr,
    OFFSET_PIXEL: tl.constexpr, MASK_PIXEL: tl.constexpr, WEIGHT_C: tl.constexpr, WEIGHT_TAP: tl.constexpr,
    SUMS_PIXEL: tl.constexpr, GRAD_OFFSET_PIXEL: tl.constexpr, GRAD_MASK_PIXEL: tl.constexpr,
    WANT_X: tl.constexpr, WANT_OFFSET: tl.constexpr, WANT_MASK: tl.constexpr, WANT_WEIGHT: tl.constexpr,
    DETERMINISTIC: tl.constexpr, TILES: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    LAST: tl.constexpr = X_PIXEL != 1
    CHANNEL_AXIS: tl.constexpr = 1 if LAST else 0
    IN_REGISTERS: tl.constexpr = C <= CHANNELS and C_OUT <= OUT_CHANNELS  # the part of grad_weight
    ARITHMETIC: tl.constexpr = offset.dtype.element_ty
    part, n = tl.program_id(0) // (K * K), tl.program_id(0) % (K * K)
    size = height * width
    exponent = 0
    if DETERMINISTIC:
        exponent = unit_exponent(sums + pixels * C, log_addends)
    parts = grad_weight_parts + (part * (K * K) + n) * (C * C_OUT)
    by_weight = tl.zeros((CHANNELS, OUT_CHANNELS), ARITHMETIC)
    for tile in range(TILES):
        exists, b, place, p_row, p_col = tile_pixels(part * TILES + tile, PIXELS, pixels, size, width, WIDE)
        row, col, row_fraction, col_fraction, mask = load_tap(
            offset, mask_logits, offset_batch, mask_batch, n, exists, b, place, p_row, p_col, height, width,
            K, OFFSET_PIXEL, MASK_PIXEL,
        )  # fmt: skip
        i00, i01, i10, i11 = corners_inside(row, col, exists, height, width)
        w00, w01, w10, w11 = bilinear_weights(row_fraction, col_fraction)
        at00 = b * x_batch + (row * width + col) * X_PIXEL
        at10 = at00 + width * X_PIXEL
        to00 = b * (C * size) + (row * width + col) * SUMS_PIXEL
        to10 = to00 + width * SUMS_PIXEL
        q00 = tl.zeros((PIXELS,), ARITHMETIC)  # <x at the corner, gradient of the sample>
        q01, q10, q11 = q00, q00, q00
        for first_c in range(0, C, CHANNELS):
            c = first_c + tl.arange(0, CHANNELS)
            shape: tl.constexpr = (PIXELS, CHANNELS) if LAST else (CHANNELS, PIXELS)
            d = tl.zeros(shape, ARITHMETIC)  # gradient of the masked sample: pixels x channels
            for first_o in range(0, C_OUT, OUT_CHANNELS):
                o = first_o + tl.arange(0, OUT_CHANNELS)
                g = load_image(grad, grad_batch, b, place, o, exists, size, C_OUT, GRAD_PIXEL, LAST)
                w = load_weight(weight, c, n, o, C, C_OUT, K, WEIGHT_C, WEIGHT_TAP, LAST)
                if LAST:
                    d = dot(g, tl.trans(w), d, PRECISION)
                else:
                    d = dot(tl.trans(w), g, d, PRECISION)
            if WANT_OFFSET or WANT_MASK or WANT_WEIGHT:
                v00 = load_corner(x, at00, i00, c, size, C, X_PIXEL, LAST)
                v01 = load_corner(x, at00 + X_PIXEL, i01, c, size, C, X_PIXEL, LAST)
                v10 = load_corner(x, at10, i10, c, size, C, X_PIXEL, LAST)
                v11 = load_corner(x, at10 + X_PIXEL, i11, c, size, C, X_PIXEL, LAST)
            if WANT_OFFSET or WANT_MASK:
                q00 += tl.sum(v00 * d, CHANNEL_AXIS)
                q01 += tl.sum(v01 * d, CHANNEL_AXIS)
                q10 += tl.sum(v10 * d, CHANNEL_AXIS)
                q11 += tl.sum(v11 * d, CHANNEL_AXIS)
            if WANT_WEIGHT:
                sample = as_rows(mask * w00, LAST) * v00 + as_rows(mask * w01, LAST) * v01
                sample += as_rows(mask * w10, LAST) * v10 + as_rows(mask * w11, LAST) * v11
                sample = narrow(sample, weight.dtype.element_ty)
                for first_o in range(0, C_OUT, OUT_CHANNELS):
                    o = first_o + tl.arange(0, OUT_CHANNELS)
                    g = load_image(grad, grad_batch, b, place, o, exists, size, C_OUT, GRAD_PIXEL, LAST)
                    to = parts + c[:, None] * C_OUT + o[None, :]
                    inside = (c < C)[:, None] & (o < C_OUT)[None, :]
                    if not IN_REGISTERS:  # this program's own part: no other touches it
                        by_weight = tl.load(to, mask=inside & (tile > 0), other=0)
                    if LAST:
                        by_weight = dot(tl.trans(sample), g, by_weight, PRECISION)
                    else:
                        by_weight = dot(sample, tl.trans(g), by_weight, PRECISION)
                    if not IN_REGISTERS:
                        tl.store(to, by_weight, mask=inside)
            if WANT_X:
                d *= as_rows(mask, LAST)
                at = as_columns(c * channel_stride(SUMS_PIXEL, size), LAST)
                is_channel = as_columns(c < C, LAST)
                to = sums + (as_rows(to00, LAST) + at)
                add(to, as_rows(w00, LAST) * d, as_rows(i00, LAST) & is_channel, exponent, DETERMINISTIC)
                to = sums + (as_rows(to00 + SUMS_PIXEL, LAST) + at)
                add(to, as_rows(w01, LAST) * d, as_rows(i01, LAST) & is_channel, exponent, DETERMINISTIC)
                to = sums + (as_rows(to10, LAST) + at)
                add(to, as_rows(w10, LAST) * d, as_rows(i10, LAST) & is_channel, exponent, DETERMINISTIC)
                to = sums + (as_rows(to10 + SUMS_PIXEL, LAST) + at)
                add(to, as_rows(w11, LAST) * d, as_rows(i11, LAST) & is_channel, exponent, DETERMINISTIC)
        if WANT_OFFSET:
            to = grad_offset + (b * (2 * K * K * size) + place * GRAD_OFFSET_PIXEL)
            plane = channel_stride(GRAD_OFFSET_PIXEL, size)
            by_row = mask * bilinear_row_derivative(col_fraction, q00, q01, q10, q11)
            by_col = mask * bilinear_col_derivative(row_fraction, q00, q01, q10, q11)
            tl.store(to + n * plane, by_row, mask=exists)
            tl.store(to + (n + K * K) * plane, by_col, mask=exists)
        if WANT_MASK:
            sample_grad = w00 * q00 + w01 * q01 + w10 * q10 + w11 * q11
            to = grad_mask_logits + (b * (K * K * size) + place * GRAD_MASK_PIXEL)
            by_mask = narrow(sample_grad * d_sigmoid(mask), grad_mask_logits.dtype.element_ty)
            tl.store(to + n * channel_stride(GRAD_MASK_PIXEL, size), by_mask, mask=exists)
    if IN_REGISTERS and WANT_WEIGHT:
        c, o = tl.arange(0, CHANNELS), tl.arange(0, OUT_CHANNELS)
        inside = (c < C)[:, None] & (o < C_OUT)[None, :]
        tl.store(parts + c[:, None] * C_OUT + o[None, :], by_weight, mask=inside)


@triton.jit
def offset_warp_maxima_kernel(
    grad, weight, sums, grad_batch, height, width, pixels, C: tl.constexpr, C_OUT: tl.constexpr, K: tl.constexpr,
    GRAD_PIXEL: tl.constexpr, PIXELS: tl.constexpr, OUT_CHANNELS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The factors of an addend to grad_x: the largest |grad|, and the largest sum over o of |W[o,c,n]|."""
    program, size = tl.program_id(0), height * width
    exists, b, place, _, _ = tile_pixels(program, PIXELS, pixels, size, width, WIDE)
    maxima = sums + pixels * C
    largest = tl.zeros((PIXELS,), tl.float32)
    for first in range(0, C_OUT, OUT_CHANNELS):
        o = first + tl.arange(0, OUT_CHANNELS)
        g = tl.abs(widen(load_image(grad, grad_batch, b, place, o, exists, size, C_OUT, GRAD_PIXEL, True)))
        largest = tl.maximum(largest, tl.max(tl.where(g < float("inf"), g, 0), 1))
    raise_maximum(maxima, largest)
    if program * PIXELS < C * K * K:
        i = program * PIXELS + tl.arange(0, PIXELS)
        total = tl.zeros((PIXELS,), tl.float32)
        for out in range(C_OUT):
            total += tl.abs(widen(tl.load(weight + (out * (C * K * K) + i), mask=i < C * K * K, other=0)))
        raise_maximum(maxima + 1, total)


@triton.jit
def offset_warp_finish_kernel(
    sums, grad_x, grad_weight_parts, grad_weight, count, parts, x_programs, log_addends,
    C: tl.constexpr, C_OUT: tl.constexpr, K: tl.constexpr, DETERMINISTIC: tl.constexpr, PARTS: tl.constexpr,
    ELEMENTS: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """The first programs bring grad_x into its dtype, the others sum the parts of grad_weight."""
    program = tl.program_id(0)
    if program < x_programs:
        i = program.to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
        value = tl.load(sums + i, mask=i < count, other=0)
        if DETERMINISTIC:
            value = value_of_sum(value, unit_exponent(sums + count, log_addends))
        tl.store(grad_x + i, narrow(value, grad_x.dtype.element_ty), mask=i < count)
    else:
        i = (program - x_programs) * WEIGHTS + tl.arange(0, WEIGHTS)  # n, c, o
        inside = i < C * C_OUT * K * K
        part = tl.arange(0, PARTS)
        from_parts = grad_weight_parts + (part[:, None] * (C * C_OUT * K * K) + i[None, :])
        total = tl.sum(tl.load(from_parts, mask=(part < parts)[:, None] & inside[None, :], other=0), 0)
        n, c, o = i // (C * C_OUT), i // C_OUT % C, i % C_OUT
        to = grad_weight + ((o * C + c) * (K * K) + n)
        tl.store(to, narrow(total, grad_weight.dtype.element_ty), mask=inside)


@kernel_op
def offset_warp_backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    mask_logits: Tensor,
    weight: Tensor,
    wanted: int,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def in_block(block: Block) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _backward(grad, x, offset, mask_logits, weight, wanted, deterministic, block)

    return in_blocks("offset_warp_backward", "offset_warp_backward", x.shape[1], x, in_block)


def _backward(
    grad: Tensor, x: Tensor, offset: Tensor, mask_logits: Tensor, weight: Tensor, wanted: int, deterministic: bool,
    block: Block,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    batch, channels, height, width = x.shape
    pixels, c_out, k = batch * height * width, weight.shape[0], weight.shape[2]
    grads = _new_gradients(x, offset, mask_logits, weight, wanted)
    grad_x, grad_offset, grad_mask, grad_weight = grads
    if 0 in (pixels, channels, c_out):
        for g in grads:
            g.zero_()
        return grads
    deterministic = (
        deterministic and bool(wanted & 1) and x.dtype != torch.float64
    )  # interpreted: in order anyway
    sums = _new_sums(grad_x, offset.dtype, deterministic)
    tiles = triton.cdiv(pixels, block.size)
    per_part = 2 ** log2_ceil(triton.cdiv(tiles, MAX_PARTS))
    parts = triton.cdiv(tiles, per_part)
    n_weights = weight.numel() if wanted & 8 else 0
    grad_weight_parts = offset.new_empty((parts, n_weights))

    out, image, motion, mask = (Image.of(t) for t in (grad, x, offset, mask_logits))
    taps, strides = weight_strides(weight)
    log_addends = log2_ceil(height * width * k * k)
    shape = {"C": channels, "C_OUT": c_out, "K": k}
    of_out = channel_block(c_out)
    tile = {"PIXELS": block.size, "OUT_CHANNELS": of_out, "WIDE": needs_64_bits(out, image, motion, mask)}
    if deterministic:
        launch(
            offset_warp_maxima_kernel, max(tiles, triton.cdiv(channels * k * k, block.size)),
            out.tensor, taps, sums, out.batch, height, width, pixels, **shape, GRAD_PIXEL=out.pixel, **tile,
        )  # fmt: skip
    launch(
        offset_warp_backward_kernel, parts * k * k,
        out.tensor, image.tensor, motion.tensor, mask.tensor, taps, sums, grad_offset, grad_mask, grad_weight_parts,
        out.batch, image.batch, motion.batch, mask.batch, height, width, pixels, log_addends,
        **shape, GRAD_PIXEL=out.pixel, X_PIXEL=image.pixel, OFFSET_PIXEL=motion.pixel, MASK_PIXEL=mask.pixel, **strides,
        SUMS_PIXEL=_pixel(grad_x), GRAD_OFFSET_PIXEL=_pixel(grad_offset), GRAD_MASK_PIXEL=_pixel(grad_mask),
        WANT_X=bool(wanted & 1), WANT_OFFSET=bool(wanted & 2), WANT_MASK=bool(wanted & 4), WANT_WEIGHT=bool(wanted & 8),
        DETERMINISTIC=deterministic, TILES=per_part, CHANNELS=channel_block(channels), **tile,
        PRECISION=PRECISION, **block.options,
    )  # fmt: skip
    n_sums = 0 if sums is grad_x else grad_x.numel()
    x_programs = triton.cdiv(n_sums, FINISH_ELEMENTS)
    launch(
        offset_warp_finish_kernel, x_programs + triton.cdiv(n_weights, FINISH_WEIGHTS),
        sums, grad_x, grad_weight_parts, grad_weight, n_sums, parts, x_programs, log_addends, **shape,
        DETERMINISTIC=deterministic, PARTS=2 ** log2_ceil(parts), ELEMENTS=FINISH_ELEMENTS, WEIGHTS=FINISH_WEIGHTS,
    )  # fmt: skip
    return grads


def _new_gradients(
    x: Tensor, offset: Tensor, mask_logits: Tensor, weight: Tensor, wanted: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Those that are wanted, in the memory formats that torch is told of; the others empty."""
    return (
        new_image(x, x.shape[1]) if wanted & 1 else x.new_empty(0),
        _new_after(offset) if wanted & 2 else offset.new_empty(0),
        _new_after(mask_logits) if wanted & 4 else mask_logits.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format)
        if wanted & 8
        else weight.new_empty(0),
    )


def _new_after(t: Tensor) -> Tensor:
    return torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=format_after(t))


def _new_sums(grad_x: Tensor, dtype: torch.dtype, deterministic: bool) -> Tensor:
    """Zeros that lie as grad_x does, grad_x itself where its dtype will do; deterministic: then the two maxima."""
    if deterministic:
        return torch.zeros(grad_x.numel() + 2, dtype=torch.int64, device=grad_x.device)
    return grad_x.zero_() if grad_x.dtype == dtype else torch.zeros_like(grad_x, dtype=dtype)


def _pixel(grad: Tensor) -> int:
    """Of a dense image that may be left out."""
    return Image.of(grad).pixel if grad.dim() == 4 else 1
