"""The MotionGRU's gates: their convolutions as matrix products per tap, and the motion that they make.

    gates_kernel           [u, r, z', m] = W_x * x + W_F * F + b,   s(r) F
    candidate_kernel       z = z' + W_z * (s(r) F);   F_t, D' = motion_update(u, z, F, D)

and backward, after motion_update's own kernel:

    reset_backward_kernel  d = W_z^T * g_z;   g_r = d F s'(r);   g_F += d s(r)
    inputs_backward_kernel g_x = W_x^T * [g_u, g_r, g_z, g_m];   g_F += W_F^T * [g_u, g_r]

A program takes the pixels of a tile, and some output channels of the convolution as columns. PyTorch's convolution
makes the gradients of the weights.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import format_after
from .images import Image, load_image, needs_64_bits, store_image, tile_pixels
from .launch import PRECISION, Block, in_blocks, kernel_op, launch
from .motion_gru import motion_update_backward
from .offset_warp import channel_block
from .scalar import d_sigmoid, dot, index, narrow, sigmoid, tanh, widen


@triton.jit
def convolve(
    acc, image, at, p_row, p_col, exists, size, height, width, weight, columns, N: tl.constexpr,
    C: tl.constexpr, PIXEL: tl.constexpr, G: tl.constexpr, WEIGHT_C: tl.constexpr, WEIGHT_N: tl.constexpr,
    FLIPPED: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return acc with the products of an image's C channels with a weight of N columns, at the G x G taps of pixels.

    at: the index of each image's first element. FLIPPED: the taps of the weight are read backwards.
    """
    R: tl.constexpr = (G - 1) // 2
    for tap in range(G * G):
        row, col = p_row + (tap // G - R), p_col + (tap % G - R)
        inside = exists & (row >= 0) & (row < height) & (col >= 0) & (col < width)
        at_tap = at + (row * width + col) * PIXEL
        place = tap
        if FLIPPED:
            place = G * G - 1 - tap
        for first in range(0, C, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            value = load_image(image, at_tap, c, inside, size, C, PIXEL, True)
            at_weight = index(c, WIDE)[:, None] * WEIGHT_C + index(columns, WIDE)[None, :] * WEIGHT_N + place
            there = (c < C)[:, None] & ((columns >= 0) & (columns < N))[None, :]
            w = tl.load(weight + at_weight, mask=there, other=0)
            acc = dot(narrow(widen(value), weight.dtype.element_ty), w, acc, PRECISION)
    return acc


@triton.jit
def gates_kernel(
    x, offset, x_weight, x_bias, state_weight, update, reset, candidate, mask, reset_offset,
    x_batch, offset_batch, height, width, pixels,
    C: tl.constexpr, M: tl.constexpr, MASKS: tl.constexpr, G: tl.constexpr,
    X_PIXEL: tl.constexpr, OFFSET_PIXEL: tl.constexpr, MOTION_PIXEL: tl.constexpr, MASK_PIXEL: tl.constexpr,
    PIXELS: tl.constexpr, COLUMNS: tl.constexpr, X_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = 3 * M + MASKS
    PARTS: tl.constexpr = (ROWS + COLUMNS - 1) // COLUMNS
    part = tl.program_id(0) % PARTS
    width = index(width, WIDE)
    size = height * width
    exists, b, place, p_row, p_col = tile_pixels(tl.program_id(0) // PARTS, PIXELS, pixels, size, width, WIDE)
    n = part * COLUMNS + tl.arange(0, COLUMNS)
    of_x = tl.zeros((PIXELS, COLUMNS), offset.dtype.element_ty)
    of_x += widen(tl.load(x_bias + n, mask=n < ROWS, other=0))[None, :]
    of_x = convolve(
        of_x, x, b * x_batch, p_row, p_col, exists, size, height, width, x_weight, n, ROWS,
        C, X_PIXEL, G, G * G, C * G * G, False, X_CHANNELS, PRECISION, WIDE,
    )  # fmt: skip
    if part * COLUMNS < 2 * M:
        # A sum of its own: 0 times nan would be nan in the columns of z and m.
        of_state = tl.zeros((PIXELS, COLUMNS), offset.dtype.element_ty)
        of_state = convolve(
            of_state, offset, b * offset_batch, p_row, p_col, exists, size, height, width, state_weight, n, 2 * M,
            M, OFFSET_PIXEL, G, G * G, M * G * G, False, CHANNELS, PRECISION, WIDE,
        )  # fmt: skip
        of_x += tl.where((n < 2 * M)[None, :], of_state, 0)
    at = b * (M * size) + place * MOTION_PIXEL
    store_columns(update, at, n, exists, size, M, MOTION_PIXEL, of_x)
    store_columns(reset, at, n - M, exists, size, M, MOTION_PIXEL, of_x)
    store_columns(candidate, at, n - 2 * M, exists, size, M, MOTION_PIXEL, of_x)
    at_mask = b * (MASKS * size) + place * MASK_PIXEL
    store_columns(mask, at_mask, n - 3 * M, exists, size, MASKS, MASK_PIXEL, of_x)
    if (part * COLUMNS < 2 * M) & (part * COLUMNS + COLUMNS > M):
        of_reset = (n >= M) & (n < 2 * M)
        at_offset = b * offset_batch + place * OFFSET_PIXEL
        there = tl.where(of_reset, n - M, M)
        state = load_image(offset, at_offset, there, exists, size, M, OFFSET_PIXEL, True)
        store_columns(reset_offset, at, n - M, exists, size, M, MOTION_PIXEL, sigmoid(of_x) * widen(state))


@triton.jit
def store_columns(image, at, c, exists, size, COUNT: tl.constexpr, PIXEL: tl.constexpr, value):
    """Store the columns that are the channels c of an image; those below 0 and from COUNT on are not."""
    store_image(image, at, tl.where(c >= 0, c, COUNT), exists, size, COUNT, PIXEL, True, value)


@triton.jit
def candidate_kernel(
    reset_offset, candidate_weight, update, candidate, offset, trend, new_candidate, new_offset, new_trend,
    offset_batch, trend_batch, height, width, pixels, alpha, max_offset,
    M: tl.constexpr, G: tl.constexpr, OFFSET_PIXEL: tl.constexpr, TREND_PIXEL: tl.constexpr,
    MOTION_PIXEL: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = (M + COLUMNS - 1) // COLUMNS
    part = tl.program_id(0) % PARTS
    width = index(width, WIDE)
    size = height * width
    exists, b, place, p_row, p_col = tile_pixels(tl.program_id(0) // PARTS, PIXELS, pixels, size, width, WIDE)
    n = part * COLUMNS + tl.arange(0, COLUMNS)
    at = b * (M * size) + place * MOTION_PIXEL
    z = widen(load_image(candidate, at, n, exists, size, M, MOTION_PIXEL, True)).to(offset.dtype.element_ty)
    z = convolve(
        z, reset_offset, b * (M * size), p_row, p_col, exists, size, height, width, candidate_weight, n, M,
        M, MOTION_PIXEL, G, G * G, M * G * G, False, CHANNELS, PRECISION, WIDE,
    )  # fmt: skip
    store_image(new_candidate, at, n, exists, size, M, MOTION_PIXEL, True, z)
    opened = sigmoid(widen(load_image(update, at, n, exists, size, M, MOTION_PIXEL, True)))
    f = load_image(offset, b * offset_batch + place * OFFSET_PIXEL, n, exists, size, M, OFFSET_PIXEL, True)
    d = load_image(trend, b * trend_batch + place * TREND_PIXEL, n, exists, size, M, TREND_PIXEL, True)
    d += alpha * (f - d)
    store_image(new_trend, at, n, exists, size, M, MOTION_PIXEL, True, d)
    f += opened * (tanh(z) - f) + d
    # nan stays nan, because no comparison with it is true.
    f = tl.where(f > max_offset, max_offset, f)
    f = tl.where(f < -max_offset, -max_offset, f)
    store_image(new_offset, at, n, exists, size, M, MOTION_PIXEL, True, f)


@triton.jit
def reset_backward_kernel(
    grad_candidate, candidate_weight, reset, offset, grad_offset, grad_reset, new_grad_offset, reset_offset,
    candidate_batch, reset_batch, offset_batch, height, width, pixels,
    M: tl.constexpr, G: tl.constexpr, CANDIDATE_PIXEL: tl.constexpr, RESET_PIXEL: tl.constexpr,
    OFFSET_PIXEL: tl.constexpr, MOTION_PIXEL: tl.constexpr,
    PIXELS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = (M + COLUMNS - 1) // COLUMNS
    part = tl.program_id(0) % PARTS
    width = index(width, WIDE)
    size = height * width
    exists, b, place, p_row, p_col = tile_pixels(tl.program_id(0) // PARTS, PIXELS, pixels, size, width, WIDE)
    n = part * COLUMNS + tl.arange(0, COLUMNS)
    grad = tl.zeros((PIXELS, COLUMNS), offset.dtype.element_ty)
    grad = convolve(
        grad, grad_candidate, b * candidate_batch, p_row, p_col, exists, size, height, width, candidate_weight, n, M,
        M, CANDIDATE_PIXEL, G, M * G * G, G * G, True, CHANNELS, PRECISION, WIDE,
    )  # fmt: skip
    r = widen(load_image(reset, b * reset_batch + place * RESET_PIXEL, n, exists, size, M, RESET_PIXEL, True))
    f = load_image(offset, b * offset_batch + place * OFFSET_PIXEL, n, exists, size, M, OFFSET_PIXEL, True)
    opened = sigmoid(r)
    at = b * (M * size) + place * MOTION_PIXEL
    store_image(grad_reset, at, n, exists, size, M, MOTION_PIXEL, True, grad * f * d_sigmoid(opened))
    store_image(reset_offset, at, n, exists, size, M, MOTION_PIXEL, True, opened * f)
    into = load_image(grad_offset, at, n, exists, size, M, MOTION_PIXEL, True)
    store_image(new_grad_offset, at, n, exists, size, M, MOTION_PIXEL, True, into + grad * opened)


@triton.jit
def inputs_backward_kernel(
    grad_update, grad_reset, grad_candidate, grad_mask, x_weight, state_weight, grad_offset, grad_x, new_grad_offset,
    mask_batch, height, width, pixels,
    C: tl.constexpr, M: tl.constexpr, MASKS: tl.constexpr, G: tl.constexpr, MOTION_PIXEL: tl.constexpr,
    GRAD_MASK_PIXEL: tl.constexpr, X_PIXEL: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr, MASK_CHANNELS: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    OF_X: tl.constexpr = (C + COLUMNS - 1) // COLUMNS
    PARTS: tl.constexpr = OF_X + (M + COLUMNS - 1) // COLUMNS
    part = tl.program_id(0) % PARTS
    width = index(width, WIDE)
    size = height * width
    exists, b, place, p_row, p_col = tile_pixels(tl.program_id(0) // PARTS, PIXELS, pixels, size, width, WIDE)
    n = tl.arange(0, COLUMNS)
    at = b * (M * size)
    acc = tl.zeros((PIXELS, COLUMNS), grad_offset.dtype.element_ty)
    if part < OF_X:
        n += part * COLUMNS
        acc = convolve(
            acc, grad_update, at, p_row, p_col, exists, size, height, width, x_weight, n, C,
            M, MOTION_PIXEL, G, C * G * G, G * G, True, CHANNELS, PRECISION, WIDE,
        )  # fmt: skip
        acc = convolve(
            acc, grad_reset, at, p_row, p_col, exists, size, height, width, x_weight + M * C * G * G, n, C,
            M, MOTION_PIXEL, G, C * G * G, G * G, True, CHANNELS, PRECISION, WIDE,
        )  # fmt: skip
        acc = convolve(
            acc, grad_candidate, at, p_row, p_col, exists, size, height, width, x_weight + 2 * M * C * G * G, n, C,
            M, MOTION_PIXEL, G, C * G * G, G * G, True, CHANNELS, PRECISION, WIDE,
        )  # fmt: skip
        if MASKS:
            acc = convolve(
                acc, grad_mask, b * mask_batch, p_row, p_col, exists, size, height, width,
                x_weight + 3 * M * C * G * G, n, C,
                MASKS, GRAD_MASK_PIXEL, G, C * G * G, G * G, True, MASK_CHANNELS, PRECISION, WIDE,
            )  # fmt: skip
        store_image(grad_x, b * (C * size) + place * X_PIXEL, n, exists, size, C, X_PIXEL, True, acc)
    else:
        n += (part - OF_X) * COLUMNS
        acc = convolve(
            acc, grad_update, at, p_row, p_col, exists, size, height, width, state_weight, n, M,
            M, MOTION_PIXEL, G, M * G * G, G * G, True, CHANNELS, PRECISION, WIDE,
        )  # fmt: skip
        acc = convolve(
            acc, grad_reset, at, p_row, p_col, exists, size, height, width, state_weight + M * M * G * G, n, M,
            M, MOTION_PIXEL, G, M * G * G, G * G, True, CHANNELS, PRECISION, WIDE,
        )  # fmt: skip
        at += place * MOTION_PIXEL
        acc += load_image(grad_offset, at, n, exists, size, M, MOTION_PIXEL, True)
        store_image(new_grad_offset, at, n, exists, size, M, MOTION_PIXEL, True, acc)


def _new_map(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Return an empty map of so many channels, in the memory format that follows x."""
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=format_after(x))


def _launch(
    kernel: Any, columns: int, x: Tensor, images: list[Image], *arguments: Any, size: int, **constants: Any
) -> None:
    """Launch a kernel over all pixels of x, and over its columns in blocks of `size`, with its operands as `images`."""
    batch, channels, height, width = x.shape
    pixels = batch * height * width

    def in_block(block: Block) -> None:
        launch(
            kernel, triton.cdiv(pixels, block.size) * columns, *arguments[0], *arguments[1], height, width, pixels,
            *arguments[2:], PIXELS=block.size, COLUMNS=size, PRECISION=PRECISION, WIDE=needs_64_bits(*images),
            **constants, **block.options,
        )  # fmt: skip

    in_blocks("motion_gates", channels, x, pixels, in_block, kernel.__name__)


@kernel_op
def motion_gates(
    x: Tensor,
    offset: Tensor,
    trend: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    state_weight: Tensor,
    candidate_weight: Tensor,
    alpha: float,
    max_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    channels, motion, g = x.shape[1], offset.shape[1], x_weight.shape[2]
    masks = x_weight.shape[0] - 3 * motion
    new_offset, new_trend = (_new_map(x, motion, offset.dtype) for _ in range(2))
    mask = _new_map(x, masks, x.dtype)
    update, reset, candidate_x, candidate, reset_offset = (_new_map(x, motion, x.dtype) for _ in range(5))
    made = new_offset, new_trend, mask, update, reset, candidate
    if new_offset.numel() == 0 and mask.numel() == 0:
        return made
    x_image, offset_image, trend_image, mask_image, map_image = map(
        Image.of, (x, offset, trend, mask, update)
    )
    weights = [t.contiguous() for t in (x_weight, x_bias, state_weight, candidate_weight)]
    sizes = {"M": motion, "G": g, "MOTION_PIXEL": map_image.pixel, "OFFSET_PIXEL": offset_image.pixel}
    columns = channel_block(x_weight.shape[0], 64)
    images = [x_image, offset_image, mask_image, map_image]
    outputs = (update, reset, candidate_x, mask, reset_offset)
    _launch(
        gates_kernel, triton.cdiv(x_weight.shape[0], columns), x, images,
        (x_image.tensor, offset_image.tensor, *weights[:3], *outputs), (x_image.batch, offset_image.batch),
        size=columns, C=channels, MASKS=masks, X_PIXEL=x_image.pixel, MASK_PIXEL=mask_image.pixel,
        X_CHANNELS=channel_block(channels, 32), CHANNELS=channel_block(motion, 32), **sizes,
    )  # fmt: skip
    columns = channel_block(motion, 32)
    states = (update, candidate_x, offset_image.tensor, trend_image.tensor, candidate, new_offset, new_trend)
    _launch(
        candidate_kernel, triton.cdiv(motion, columns), x, [offset_image, trend_image, map_image],
        (reset_offset, weights[3], *states), (offset_image.batch, trend_image.batch), alpha, max_offset,
        size=columns, TREND_PIXEL=trend_image.pixel, CHANNELS=channel_block(motion, 32), **sizes,
    )  # fmt: skip
    return made


@kernel_op
def motion_gates_backward(
    grad_offset: Tensor,
    grad_trend: Tensor,
    grad_mask: Tensor,
    x: Tensor,
    offset: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    state_weight: Tensor,
    candidate_weight: Tensor,
    update_logits: Tensor,
    reset_logits: Tensor,
    candidate_logits: Tensor,
    new_offset: Tensor,
    alpha: float,
    max_offset: float,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    channels, motion, g = x.shape[1], offset.shape[1], x_weight.shape[2]
    masks = x_weight.shape[0] - 3 * motion
    grad_update, grad_candidate, into_offset, into_trend = motion_update_backward(
        grad_offset, grad_trend, update_logits, candidate_logits, offset, new_offset, alpha, max_offset
    )
    grad_reset, reset_offset = (_new_map(x, motion, x.dtype) for _ in range(2))
    by_reset, by_inputs = (_new_map(x, motion, offset.dtype) for _ in range(2))
    grad_x = _new_map(x, channels, x.dtype)
    layout = format_after(x)
    parts = [
        t.contiguous(memory_format=layout) for t in (grad_update, grad_candidate, into_offset, into_trend)
    ]
    grad_update, grad_candidate, into_offset, into_trend = parts
    weights = [t.contiguous() for t in (x_weight, state_weight, candidate_weight)]
    if x.shape[0] * x.shape[2] * x.shape[3]:
        offset_image, reset_image, mask_image = map(Image.of, (offset, reset_logits, grad_mask))
        map_image, x_image = Image.of(grad_update), Image.of(grad_x)
        columns = channel_block(motion, 32)
        sizes = {"M": motion, "G": g, "MOTION_PIXEL": map_image.pixel, "CHANNELS": channel_block(motion, 32)}
        _launch(
            reset_backward_kernel, triton.cdiv(motion, columns), x, [offset_image, reset_image, map_image],
            (grad_candidate, weights[2], reset_image.tensor, offset_image.tensor, into_offset, grad_reset, by_reset,
             reset_offset),
            (map_image.batch, reset_image.batch, offset_image.batch),
            size=columns, CANDIDATE_PIXEL=map_image.pixel, RESET_PIXEL=reset_image.pixel,
            OFFSET_PIXEL=offset_image.pixel, **sizes,
        )  # fmt: skip
        columns = channel_block(max(channels, motion), 32)
        _launch(
            inputs_backward_kernel, triton.cdiv(channels, columns) + triton.cdiv(motion, columns), x,
            [map_image, mask_image, x_image],
            (grad_update, grad_reset, grad_candidate, mask_image.tensor, weights[0], weights[1], by_reset, grad_x,
             by_inputs),
            (mask_image.batch,),
            size=columns, C=channels, MASKS=masks, GRAD_MASK_PIXEL=mask_image.pixel, X_PIXEL=x_image.pixel,
            MASK_CHANNELS=channel_block(masks, 32), **sizes,
        )  # fmt: skip
    of_x, of_motion = wanted & 1, wanted & 2
    maps = (
        grad_x if of_x else x.new_empty(0),
        by_inputs if of_motion else offset.new_empty(0),
        into_trend if of_motion else offset.new_empty(0),
    )
    if not wanted & 8:
        return (*maps, x.new_empty(0), x.new_empty(0), x.new_empty(0), x.new_empty(0))
    of_logits = torch.cat([grad_update, grad_reset, grad_candidate, grad_mask.to(x.dtype)], dim=1)
    to_x_weight, to_bias = _weight_gradient(of_logits, x, x_weight, True)
    to_state_weight, _ = _weight_gradient(of_logits[:, : 2 * motion], offset.to(x.dtype), state_weight, False)
    to_candidate_weight, _ = _weight_gradient(grad_candidate, reset_offset, candidate_weight, False)
    return (*maps, to_x_weight, to_bias, to_state_weight, to_candidate_weight)


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, has_bias: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weight and the bias of a convolution that keeps the size of x."""
    pad = weight.shape[-1] // 2
    _, of_weight, of_bias = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        [weight.shape[0]],
        [1, 1],
        [pad, pad],
        [1, 1],
        False,
        [0, 0],
        1,
        [False, True, has_bias],
    )
    return of_weight.contiguous(), of_bias
