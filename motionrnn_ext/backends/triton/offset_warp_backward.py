"""The offset warp, backward: a program has one tap and several tiles of pixels, and gathers once for all gradients.

The launches:
    1. The sums of grad_x are cleared.
    2. If x or grad has to be copied to channels_last, or deterministic gradients need the largest addend, a kernel
       prepares these.
    3. The main kernel.
    4. The last kernel sums the parts of grad_weight in a fixed order, and converts grad_x to its dtype and memory
       format (offset_warp_finish.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import new_image, new_like
from ..registration.base import new_weight
from ..registration.wanted import Wanted
from .bilinear import bilinear_corner
from .fixed_point import add_exactly, raise_maximum, unit_exponent
from .images import Image, channel_stride, image_indices, load_image, needs_64_bits, store_image, tile_pixels
from .launch import PRECISION, Block, Result, in_blocks, kernel_op, launch, log2_ceil
from .offset_warp import channel_block, load_weight, offset_tap, weight_strides
from .offset_warp_finish import Sums, finish, pixel_of
from .scalar import d_sigmoid, dot, index, narrow, widen

# The most parts of grad_weight, which a program of the last launch sums at once.
MAX_PARTS = 256


@triton.jit
def offset_warp_prepare_kernel(
    grad, x, weight, grad_rows, x_rows, sums, grad_batch, x_batch, height, width, pixels,
    C: tl.constexpr, C_OUT: tl.constexpr, K: tl.constexpr, COPY_GRAD: tl.constexpr, COPY_X: tl.constexpr,
    GRAD_PIXEL: tl.constexpr, DETERMINISTIC: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Copy grad and x to channels_last, and find the largest factors of an addend to grad_x.

    The factors are |grad|, and the sum over o of |W[o,c,n]|.
    """
    program = tl.program_id(0)
    width, pixels = index(width, WIDE), index(pixels, WIDE)
    size = height * width
    exists, b, place, _, _ = tile_pixels(program, PIXELS, pixels, size, width, WIDE)
    LAST: tl.constexpr = GRAD_PIXEL != 1
    largest = tl.zeros((PIXELS,), tl.float32)
    if COPY_GRAD or DETERMINISTIC:
        for first in range(0, C_OUT, OUT_CHANNELS):
            o = first + tl.arange(0, OUT_CHANNELS)
            g = load_image(
                grad, b * grad_batch + place * GRAD_PIXEL, o, exists, size, C_OUT, GRAD_PIXEL, LAST
            )
            if COPY_GRAD:
                to = (b * size + place) * C_OUT
                store_image(grad_rows, to, o, exists, size, C_OUT, C_OUT, True, tl.trans(g))
            if DETERMINISTIC:
                finite = tl.abs(widen(g))
                finite = tl.where(finite < float("inf"), finite, 0)
                largest = tl.maximum(largest, tl.max(finite, 1 if LAST else 0))
    if COPY_X:
        for first in range(0, C, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            values = load_image(x, b * x_batch + place, c, exists, size, C, 1, False)
            store_image(x_rows, (b * size + place) * C, c, exists, size, C, C, True, tl.trans(values))
    if DETERMINISTIC:
        raise_maximum(sums + pixels * C, largest)
        if program * PIXELS < C * K * K:
            i = program * PIXELS + tl.arange(0, PIXELS)
            total = tl.zeros((PIXELS,), tl.float32)
            for out in range(C_OUT):
                total += tl.abs(
                    widen(tl.load(weight + (index(out, WIDE) * (C * K * K) + i), mask=i < C * K * K, other=0))
                )
            raise_maximum(sums + pixels * C + 1, total)


@triton.jit
def offset_warp_backward_kernel(
    grad, x, offset, mask_logits, weight, sums, grad_offset, grad_mask_logits, grad_weight_parts,
    grad_batch, x_batch, offset_batch, mask_batch, height, width, pixels, log_addends,
    C: tl.constexpr, C_OUT: tl.constexpr, K: tl.constexpr, GRAD_PIXEL: tl.constexpr, X_PIXEL: tl.constexpr,
    OFFSET_PIXEL: tl.constexpr, MASK_PIXEL: tl.constexpr, WEIGHT_C: tl.constexpr, WEIGHT_TAP: tl.constexpr,
    GRAD_OFFSET_PIXEL: tl.constexpr, GRAD_MASK_PIXEL: tl.constexpr,
    WANT_X: tl.constexpr, WANT_OFFSET: tl.constexpr, WANT_MASK: tl.constexpr, WANT_WEIGHT: tl.constexpr,
    DETERMINISTIC: tl.constexpr, TILES: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """All tiles are pixels x channels; grad and x have their channels last."""
    # Whether the tap's weight and the program's part of grad_weight stay in registers from tile to tile.
    IN_REGISTERS: tl.constexpr = C <= CHANNELS and C_OUT <= OUT_CHANNELS
    ARITHMETIC: tl.constexpr = offset.dtype.element_ty
    part, n = tl.program_id(0) // (K * K), tl.program_id(0) % (K * K)
    width, pixels = index(width, WIDE), index(pixels, WIDE)
    size = height * width
    exponent = 0
    if DETERMINISTIC:
        exponent = unit_exponent(sums + pixels * C, log_addends)
    parts = grad_weight_parts + (index(part, WIDE) * (K * K) + n) * (C * C_OUT)
    by_weight = tl.zeros((CHANNELS, OUT_CHANNELS), ARITHMETIC)
    if IN_REGISTERS:
        tap_weight = load_weight(
            weight, tl.arange(0, CHANNELS), n, tl.arange(0, OUT_CHANNELS), C, C_OUT, K, WEIGHT_C, WEIGHT_TAP,
            False, WIDE,
        )  # fmt: skip
    # TILES is a constexpr, as all bounds are: others fail in Triton 3.6's interpreter with numpy >= 2.4.
    for tile in range(TILES):
        exists, b, place, p_row, p_col = tile_pixels(part * TILES + tile, PIXELS, pixels, size, width, WIDE)
        at_offset = offset + (b * offset_batch + place * OFFSET_PIXEL)
        offset_plane = channel_stride(OFFSET_PIXEL, size)
        row_offset = tl.load(at_offset + n * offset_plane, mask=exists, other=0)
        col_offset = tl.load(at_offset + (n + K * K) * offset_plane, mask=exists, other=0)
        at_mask = mask_logits + (b * mask_batch + place * MASK_PIXEL)
        logit = tl.load(at_mask + n * channel_stride(MASK_PIXEL, size), mask=exists, other=0)
        row, col, row_fraction, col_fraction, mask = offset_tap(
            n, row_offset, col_offset, logit, p_row, p_col, height, width, K
        )
        at_grad = b * grad_batch + place * GRAD_PIXEL
        at, to = b * x_batch + (row * width + col) * X_PIXEL, (b * size + row * width + col) * C
        # The gradients of s(m), and of the tap's row and column.
        by_mask = tl.zeros((PIXELS,), ARITHMETIC)
        by_row, by_col = by_mask, by_mask
        for first_c in range(0, C, CHANNELS):
            c = first_c + tl.arange(0, CHANNELS)
            # The gradient of the masked sample.
            d = tl.zeros((PIXELS, CHANNELS), ARITHMETIC)
            for first_o in range(0, C_OUT, OUT_CHANNELS):
                o = first_o + tl.arange(0, OUT_CHANNELS)
                g = load_image(grad, at_grad, o, exists, size, C_OUT, GRAD_PIXEL, True)
                if IN_REGISTERS:
                    w = tap_weight
                else:
                    w = load_weight(weight, c, n, o, C, C_OUT, K, WEIGHT_C, WEIGHT_TAP, False, WIDE)
                d = dot(g, w, d, PRECISION)
            sample = tl.zeros((PIXELS, CHANNELS), ARITHMETIC)
            # The adds to grad_x stand between the loads of x, so that the compiler does not hold four corners in
            # registers: 126 registers instead of 254 for float32, C = 16, sm_90.
            for corner in tl.static_range(4):
                inside, share, d_row, d_col = bilinear_corner(
                    corner, row, col, row_fraction, col_fraction, exists, height, width
                )
                step = width * (corner // 2) + corner % 2
                if WANT_OFFSET or WANT_MASK or WANT_WEIGHT:
                    value = widen(load_image(x, at + step * X_PIXEL, c, inside, size, C, X_PIXEL, True))
                    sample += (mask * share)[:, None] * value
                    if WANT_OFFSET or WANT_MASK:
                        by_corner = tl.sum(value * d, 1)
                        by_mask += share * by_corner
                        by_row += d_row * by_corner
                        by_col += d_col * by_corner
                if WANT_X:
                    addend = (mask * share)[:, None] * d
                    there = inside[:, None] & (c < C)[None, :]
                    sum_at = sums + image_indices(to + step * C, c, size, C, True)
                    if DETERMINISTIC:
                        add_exactly(sum_at, addend, exponent, there)
                    else:
                        tl.atomic_add(sum_at, addend, mask=there, sem="relaxed")
            if WANT_WEIGHT:
                sample = narrow(sample, weight.dtype.element_ty)
                for first_o in range(0, C_OUT, OUT_CHANNELS):
                    o = first_o + tl.arange(0, OUT_CHANNELS)
                    g = load_image(grad, at_grad, o, exists, size, C_OUT, GRAD_PIXEL, True)
                    to_part = parts + index(c, WIDE)[:, None] * C_OUT + o[None, :]
                    is_weight = (c < C)[:, None] & (o < C_OUT)[None, :]
                    if not IN_REGISTERS:
                        # No other program writes this part, but the threads of this program load and store the same
                        # elements as others.
                        tl.debug_barrier()
                        by_weight = tl.load(to_part, mask=is_weight & (tile > 0), other=0)
                    by_weight = dot(tl.trans(sample), g, by_weight, PRECISION)
                    if not IN_REGISTERS:
                        tl.debug_barrier()
                        tl.store(to_part, by_weight, mask=is_weight)
        if WANT_OFFSET:
            to_offset = grad_offset + (b * (2 * K * K * size) + place * GRAD_OFFSET_PIXEL)
            plane = channel_stride(GRAD_OFFSET_PIXEL, size)
            tl.store(to_offset + n * plane, mask * by_row, mask=exists)
            tl.store(to_offset + (n + K * K) * plane, mask * by_col, mask=exists)
        if WANT_MASK:
            to_mask = grad_mask_logits + (b * (K * K * size) + place * GRAD_MASK_PIXEL)
            by_logit = narrow(by_mask * d_sigmoid(mask), grad_mask_logits.dtype.element_ty)
            tl.store(to_mask + n * channel_stride(GRAD_MASK_PIXEL, size), by_logit, mask=exists)
    if IN_REGISTERS and WANT_WEIGHT:
        c, o = tl.arange(0, CHANNELS), tl.arange(0, OUT_CHANNELS)
        is_weight = (c < C)[:, None] & (o < C_OUT)[None, :]
        tl.store(parts + c[:, None] * C_OUT + o[None, :], by_weight, mask=is_weight)


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
    def run(block: Block, deterministic: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        grads = _new_gradients(x, offset, mask_logits, weight, wanted)
        if 0 in (x.numel(), grad.numel()):
            for g in grads:
                g.zero_()
            return grads
        sums = _new_sums(grads[0], offset.dtype, deterministic)
        made = _sum_gradients(grad, x, offset, mask_logits, weight, wanted, deterministic, grads, sums, block)
        finish(x, grads[0], wanted, made)
        return grads

    return _in_blocks(x, wanted, deterministic, run)


def unfinished_backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    mask_logits: Tensor,
    weight: Tensor,
    wanted: int,
    deterministic: bool,
) -> Sums:
    """Return the gradients as they are before the last launch, in place of which the caller has one of its own.

    Those of x, offset and mask are always made. No tensor may be empty.
    """

    def run(block: Block, deterministic: bool) -> Sums:
        grads = _new_gradients(x, offset, mask_logits, weight, wanted & ~Wanted.X)
        sums = _new_addends(x, offset.dtype, deterministic)
        return _sum_gradients(grad, x, offset, mask_logits, weight, wanted, deterministic, grads, sums, block)

    wanted |= Wanted.X | Wanted.MOTION | Wanted.MASK
    return _in_blocks(x, wanted, deterministic, run)


def _in_blocks(x: Tensor, wanted: int, deterministic: bool, run: Callable[[Block, bool], Result]) -> Result:
    # float64 exists under the interpreter alone, whose order is fixed anyway.
    is_float64 = x.dtype == torch.float64
    deterministic = deterministic and bool(wanted & Wanted.X) and not is_float64
    op = "offset_warp_backward_deterministic" if deterministic else "offset_warp_backward"
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return in_blocks(op, x.shape[1], x, pixels, lambda block: run(block, deterministic))


def _sum_gradients(
    grad: Tensor, x: Tensor, offset: Tensor, mask_logits: Tensor, weight: Tensor, wanted: int, deterministic: bool,
    grads: tuple[Tensor, Tensor, Tensor, Tensor], sums: Tensor, block: Block,
) -> Sums:  # fmt: skip
    batch, channels, height, width = x.shape
    pixels, c_out, k = batch * height * width, weight.shape[0], weight.shape[2]
    _, grad_offset, grad_mask, grad_weight = grads
    wants_x, wants_offset, wants_mask, wants_weight = (bool(wanted & bit) for bit in Wanted)
    tiles = triton.cdiv(pixels, block.size)
    per_part = 2 ** log2_ceil(triton.cdiv(tiles, MAX_PARTS))
    parts = triton.cdiv(tiles, per_part)
    n_weights = weight.numel() if wants_weight else 0
    grad_weight_parts = offset.new_empty((parts, n_weights))

    out, image, motion, mask = (Image.of(t) for t in (grad, x, offset, mask_logits))
    out_rows = out if out.is_channels_last else Image.new_channels_last(grad)
    image_rows = image
    if wanted != Wanted.X and not image.is_channels_last:
        image_rows = Image.new_channels_last(x)
    taps, strides = weight_strides(weight)
    log_addends = log2_ceil(height * width * k * k) if deterministic else 0
    shape = {"C": channels, "C_OUT": c_out, "K": k}
    tile = {
        "PIXELS": block.size, "CHANNELS": channel_block(channels, 32), "OUT_CHANNELS": channel_block(c_out, 32),
        "WIDE": needs_64_bits(out, image, motion, mask, out_rows, image_rows, taps, sums, grad_weight_parts, *grads),
    }  # fmt: skip
    copies = {"COPY_GRAD": out_rows is not out, "COPY_X": image_rows is not image}
    if deterministic or any(copies.values()):
        launch(
            offset_warp_prepare_kernel, max(tiles, triton.cdiv(channels * k * k, block.size) if deterministic else 0),
            out.tensor, image.tensor, taps, out_rows.tensor, image_rows.tensor, sums, out.batch, image.batch,
            height, width, pixels, **shape, **copies, GRAD_PIXEL=out.pixel, DETERMINISTIC=deterministic, **tile,
            **block.options,
        )  # fmt: skip
    launch(
        offset_warp_backward_kernel, parts * k * k,
        out_rows.tensor, image_rows.tensor, motion.tensor, mask.tensor, taps, sums, grad_offset, grad_mask,
        grad_weight_parts, out_rows.batch, image_rows.batch, motion.batch, mask.batch, height, width, pixels,
        log_addends, **shape, GRAD_PIXEL=out_rows.pixel, X_PIXEL=image_rows.pixel, OFFSET_PIXEL=motion.pixel,
        MASK_PIXEL=mask.pixel, **strides, GRAD_OFFSET_PIXEL=pixel_of(grad_offset), GRAD_MASK_PIXEL=pixel_of(grad_mask),
        WANT_X=wants_x, WANT_OFFSET=wants_offset, WANT_MASK=wants_mask, WANT_WEIGHT=wants_weight,
        DETERMINISTIC=deterministic, TILES=per_part, **tile, PRECISION=PRECISION, **block.options,
    )  # fmt: skip
    return Sums(sums, grad_offset, grad_mask, grad_weight, grad_weight_parts, log_addends, shape)


def _new_gradients(
    x: Tensor, offset: Tensor, mask_logits: Tensor, weight: Tensor, wanted: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return new gradients in the memory formats that are registered with torch; those not wanted are empty."""
    return (
        new_image(x, x.shape[1]) if wanted & Wanted.X else x.new_empty(0),
        new_like(offset) if wanted & Wanted.MOTION else offset.new_empty(0),
        new_like(mask_logits) if wanted & Wanted.MASK else mask_logits.new_empty(0),
        new_weight(weight) if wanted & Wanted.WEIGHTS else weight.new_empty(0),
    )


def _new_sums(grad_x: Tensor, dtype: torch.dtype, deterministic: bool) -> Tensor:
    """Return zeros for the sums of grad_x, with channels last; `deterministic` sums are followed by two maxima.

    This is grad_x itself if it has that layout and `dtype`, and sums are not deterministic.
    Half precision is summed in float32, since its atomic adds are slow and inexact, and Triton's interpreter does not
    support them.
    """
    has_layout = grad_x.dim() != 4 or Image.of(grad_x).is_channels_last
    if has_layout and grad_x.dtype == dtype and not deterministic:
        return grad_x.zero_()
    return _new_addends(grad_x, dtype, deterministic)


def _new_addends(x: Tensor, dtype: torch.dtype, deterministic: bool) -> Tensor:
    if deterministic:
        return torch.zeros(x.numel() + 2, dtype=torch.int64, device=x.device)
    return torch.zeros(x.numel(), dtype=dtype, device=x.device)
