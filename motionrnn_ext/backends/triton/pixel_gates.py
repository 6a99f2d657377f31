"""The kernels of the MotionGRU's gates by 1x1 convolutions, in which a pixel needs no other: one each way.

    [u, r] = W_x x + W_F F + b;   z = W_x x + W_z (s(r) F) + b;   m = W_x x + b;   F_t, D' = motion_update(u, z, F, D)

The equations of backward are those of tap_gates.py. A program takes all channels of its pixels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .fixed_point import unit_exponent
from .images import load_image, store_image, tile_pixels
from .motion_gru import updated_motion, updated_motion_gradients
from .offset_warp_finish import finish_weight, load_sums
from .scalar import d_sigmoid, dot, index, narrow, sigmoid, tanh, widen
from .tap_gates import weight_tile


@triton.jit
def bias_tile(
    bias, n, first: tl.constexpr, COUNT: tl.constexpr, PIXELS: tl.constexpr, N: tl.constexpr, dtype
):
    """Return the columns n of COUNT biases from `first` on, for each pixel."""
    return tl.zeros((PIXELS, N), dtype) + widen(tl.load(bias + first + n, mask=n < COUNT, other=0))[None, :]


@triton.jit
def of_group(n, first: tl.constexpr, COUNT: tl.constexpr, ALL: tl.constexpr):
    """Return the places of a group's COUNT channels among ALL, from `first` on; ALL for those that it has not."""
    return tl.where(n < COUNT, first + n, ALL)


@triton.jit
def multiply(
    acc, a, weight, r, n, R: tl.constexpr, N: tl.constexpr, BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return acc with the product of pixels x channels r with a weight of R channels and N columns, of which n."""
    return dot(a, weight_tile(weight, r, n, 0, R, N, 1, BACKWARD, False, WIDE), acc, PRECISION)


@triton.jit
def make_motion(
    x, offset, trend, x_weight, x_bias, state_weight, candidate_weight,
    new_offset, new_trend, mask, update, reset, candidate,
    x_batch, offset_batch, trend_batch, exists, b, place, size, alpha, max_offset,
    C: tl.constexpr, M: tl.constexpr, MASKS: tl.constexpr, X_PIXEL: tl.constexpr, OFFSET_PIXEL: tl.constexpr,
    TREND_PIXEL: tl.constexpr, MOTION_PIXEL: tl.constexpr, MASK_PIXEL: tl.constexpr, PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr, MASK_COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Store the logits of a tile's pixels, F_t and D'."""
    ROWS: tl.constexpr = 3 * M + MASKS
    state: tl.constexpr = offset.dtype.element_ty
    stored: tl.constexpr = x_weight.dtype.element_ty
    n, k = tl.arange(0, COLUMNS), tl.arange(0, MASK_COLUMNS)
    u = bias_tile(x_bias, n, 0, M, PIXELS, COLUMNS, state)
    r = bias_tile(x_bias, n, M, M, PIXELS, COLUMNS, state)
    z = bias_tile(x_bias, n, 2 * M, M, PIXELS, COLUMNS, state)
    m = bias_tile(x_bias, k, 3 * M, MASKS, PIXELS, MASK_COLUMNS, state)
    for first in range(0, C, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        value = load_image(x, b * x_batch + place * X_PIXEL, c, exists, size, C, X_PIXEL, True)
        value = narrow(widen(value), stored)
        u = multiply(u, value, x_weight, c, of_group(n, 0, M, ROWS), C, ROWS, False, PRECISION, WIDE)
        r = multiply(r, value, x_weight, c, of_group(n, M, M, ROWS), C, ROWS, False, PRECISION, WIDE)
        z = multiply(z, value, x_weight, c, of_group(n, 2 * M, M, ROWS), C, ROWS, False, PRECISION, WIDE)
        if MASKS:
            m = multiply(
                m, value, x_weight, c, of_group(k, 3 * M, MASKS, ROWS), C, ROWS, False, PRECISION, WIDE
            )
    if MASKS:
        at_mask = b * (MASKS * size) + place * MASK_PIXEL
        store_image(mask, at_mask, k, exists, size, MASKS, MASK_PIXEL, True, m)
    f = load_image(offset, b * offset_batch + place * OFFSET_PIXEL, n, exists, size, M, OFFSET_PIXEL, True)
    value = narrow(f, stored)
    u = multiply(u, value, state_weight, n, of_group(n, 0, M, 2 * M), M, 2 * M, False, PRECISION, WIDE)
    r = multiply(r, value, state_weight, n, of_group(n, M, M, 2 * M), M, 2 * M, False, PRECISION, WIDE)
    at = b * (M * size) + place * MOTION_PIXEL
    store_image(update, at, n, exists, size, M, MOTION_PIXEL, True, u)
    store_image(reset, at, n, exists, size, M, MOTION_PIXEL, True, r)
    # Columns beyond M are 0, where 0 times inf would be nan.
    reset_offset = tl.where((n < M)[None, :], sigmoid(r) * f, 0)
    z = multiply(z, narrow(reset_offset, stored), candidate_weight, n, n, M, M, False, PRECISION, WIDE)
    store_image(candidate, at, n, exists, size, M, MOTION_PIXEL, True, z)
    d = load_image(trend, b * trend_batch + place * TREND_PIXEL, n, exists, size, M, TREND_PIXEL, True)
    f, d = updated_motion(sigmoid(u), tanh(z), f, d, alpha, max_offset)
    store_image(new_trend, at, n, exists, size, M, MOTION_PIXEL, True, d)
    store_image(new_offset, at, n, exists, size, M, MOTION_PIXEL, True, f)


@triton.jit
def pixel_gates_kernel(
    x, offset, trend, x_weight, x_bias, state_weight, candidate_weight,
    new_offset, new_trend, mask, update, reset, candidate,
    x_batch, offset_batch, trend_batch, height, width, pixels, alpha, max_offset,
    C: tl.constexpr, M: tl.constexpr, MASKS: tl.constexpr, X_PIXEL: tl.constexpr, OFFSET_PIXEL: tl.constexpr,
    TREND_PIXEL: tl.constexpr, MOTION_PIXEL: tl.constexpr, MASK_PIXEL: tl.constexpr, PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr, MASK_COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    size = height * index(width, WIDE)
    exists, b, place, _, _ = tile_pixels(tl.program_id(0), PIXELS, pixels, size, width, WIDE)
    make_motion(
        x, offset, trend, x_weight, x_bias, state_weight, candidate_weight,
        new_offset, new_trend, mask, update, reset, candidate,
        x_batch, offset_batch, trend_batch, exists, b, place, size, alpha, max_offset,
        C, M, MASKS, X_PIXEL, OFFSET_PIXEL, TREND_PIXEL, MOTION_PIXEL, MASK_PIXEL, PIXELS,
        COLUMNS, MASK_COLUMNS, CHANNELS, PRECISION, WIDE,
    )  # fmt: skip


@triton.jit
def motion_backward(
    grad_offset, grad_trend, grad_mask, update, reset, candidate, offset, new_offset,
    x_weight, state_weight, candidate_weight, logits, reset_offset, grad_x, new_grad_offset, new_grad_trend,
    warp_grad_offset, warp_sums, mask_batch, offset_batch, exists, b, place, size, pixels, alpha, max_offset,
    log_addends,
    C: tl.constexpr, M: tl.constexpr, MASKS: tl.constexpr, X_PIXEL: tl.constexpr, OFFSET_PIXEL: tl.constexpr,
    MOTION_PIXEL: tl.constexpr, GRAD_MASK_PIXEL: tl.constexpr, LOGITS_PIXEL: tl.constexpr, RESET_PIXEL: tl.constexpr,
    PIXELS: tl.constexpr, COLUMNS: tl.constexpr, MASK_COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    WARP: tl.constexpr, DETERMINISTIC: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Store the gradients of a tile's pixels: those of all logits, of x, F and D; and s(r) F.

    WARP: the gradients of F_t and x by a warp are added, that of x as its sums.
    """
    ROWS: tl.constexpr = 3 * M + MASKS
    stored: tl.constexpr = x_weight.dtype.element_ty
    n, k = tl.arange(0, COLUMNS), tl.arange(0, MASK_COLUMNS)
    at = b * (M * size) + place * MOTION_PIXEL
    at_logits = (b * size + place) * LOGITS_PIXEL
    g = load_image(grad_offset, at, n, exists, size, M, MOTION_PIXEL, True)
    if WARP:
        g += load_image(warp_grad_offset, at, n, exists, size, M, MOTION_PIXEL, True)
    g_trend = load_image(grad_trend, at, n, exists, size, M, MOTION_PIXEL, True)
    u = sigmoid(widen(load_image(update, at, n, exists, size, M, MOTION_PIXEL, True)))
    z = tanh(widen(load_image(candidate, at, n, exists, size, M, MOTION_PIXEL, True)))
    f = load_image(offset, b * offset_batch + place * OFFSET_PIXEL, n, exists, size, M, OFFSET_PIXEL, True)
    new_f = load_image(new_offset, at, n, exists, size, M, MOTION_PIXEL, True)
    of_u, of_z, into_offset, into_trend = updated_motion_gradients(
        g, g_trend, u, z, f, new_f, alpha, max_offset
    )
    store_image(new_grad_trend, at, n, exists, size, M, MOTION_PIXEL, True, into_trend)
    of_u, of_z = narrow(of_u, stored), narrow(of_z, stored)
    store_image(logits, at_logits, n, exists, size, M, LOGITS_PIXEL, True, widen(of_u))
    store_image(logits + 2 * M, at_logits, n, exists, size, M, LOGITS_PIXEL, True, widen(of_z))
    # The gradient of s(r) F.
    grad = tl.zeros((PIXELS, COLUMNS), offset.dtype.element_ty)
    grad = multiply(grad, of_z, candidate_weight, n, n, M, M, True, PRECISION, WIDE)
    opened = sigmoid(widen(load_image(reset, at, n, exists, size, M, MOTION_PIXEL, True)))
    # Columns beyond M are 0, where 0 times inf would be nan.
    of_r = narrow(tl.where((n < M)[None, :], grad * f * d_sigmoid(opened), 0), stored)
    store_image(logits + M, at_logits, n, exists, size, M, LOGITS_PIXEL, True, widen(of_r))
    at_reset = (b * size + place) * RESET_PIXEL
    store_image(reset_offset, at_reset, n, exists, size, M, RESET_PIXEL, True, opened * f)
    into_offset += grad * opened
    into_offset = multiply(
        into_offset, of_u, state_weight, of_group(n, 0, M, 2 * M), n, 2 * M, M, True, PRECISION, WIDE
    )
    into_offset = multiply(
        into_offset, of_r, state_weight, of_group(n, M, M, 2 * M), n, 2 * M, M, True, PRECISION, WIDE
    )
    store_image(new_grad_offset, at, n, exists, size, M, MOTION_PIXEL, True, into_offset)
    at_mask = b * mask_batch + place * GRAD_MASK_PIXEL
    of_m = widen(load_image(grad_mask, at_mask, k, exists, size, MASKS, GRAD_MASK_PIXEL, True))
    store_image(logits + 3 * M, at_logits, k, exists, size, MASKS, LOGITS_PIXEL, True, of_m)
    of_m = narrow(of_m, stored)
    exponent = 0
    if DETERMINISTIC:
        exponent = unit_exponent(warp_sums + index(pixels, WIDE) * C, log_addends)
    for first in range(0, C, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        acc = tl.zeros((PIXELS, CHANNELS), offset.dtype.element_ty)
        acc = multiply(acc, of_u, x_weight, of_group(n, 0, M, ROWS), c, ROWS, C, True, PRECISION, WIDE)
        acc = multiply(acc, of_r, x_weight, of_group(n, M, M, ROWS), c, ROWS, C, True, PRECISION, WIDE)
        acc = multiply(acc, of_z, x_weight, of_group(n, 2 * M, M, ROWS), c, ROWS, C, True, PRECISION, WIDE)
        if MASKS:
            acc = multiply(
                acc, of_m, x_weight, of_group(k, 3 * M, MASKS, ROWS), c, ROWS, C, True, PRECISION, WIDE
            )
        if WARP:
            acc += load_sums(warp_sums, b, place, c, exists, size, C, exponent, DETERMINISTIC)
        store_image(grad_x, b * (C * size) + place * X_PIXEL, c, exists, size, C, X_PIXEL, True, acc)


@triton.jit
def pixel_gates_backward_kernel(
    grad_offset, grad_trend, grad_mask, update, reset, candidate, offset, new_offset,
    x_weight, state_weight, candidate_weight, logits, reset_offset, grad_x, new_grad_offset, new_grad_trend,
    warp_grad_offset, warp_sums, warp_weight_parts, grad_warp_weight,
    mask_batch, offset_batch, height, width, pixels, alpha, max_offset, parts_of_weight, log_addends,
    C: tl.constexpr, M: tl.constexpr, MASKS: tl.constexpr, X_PIXEL: tl.constexpr, OFFSET_PIXEL: tl.constexpr,
    MOTION_PIXEL: tl.constexpr, GRAD_MASK_PIXEL: tl.constexpr, LOGITS_PIXEL: tl.constexpr, RESET_PIXEL: tl.constexpr,
    WARP: tl.constexpr, C_OUT: tl.constexpr, K: tl.constexpr, WEIGHT_PARTS: tl.constexpr, WEIGHTS: tl.constexpr,
    DETERMINISTIC: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr, MASK_COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """WARP: the gradients of F_t and x by a warp are added, and further programs finish that of the warp's weight."""
    tiles = (pixels + PIXELS - 1) // PIXELS
    if tl.program_id(0) < tiles:
        size = height * index(width, WIDE)
        exists, b, place, _, _ = tile_pixels(tl.program_id(0), PIXELS, pixels, size, width, WIDE)
        motion_backward(
            grad_offset, grad_trend, grad_mask, update, reset, candidate, offset, new_offset,
            x_weight, state_weight, candidate_weight, logits, reset_offset, grad_x, new_grad_offset, new_grad_trend,
            warp_grad_offset, warp_sums, mask_batch, offset_batch, exists, b, place, size, pixels, alpha, max_offset,
            log_addends, C, M, MASKS, X_PIXEL, OFFSET_PIXEL, MOTION_PIXEL, GRAD_MASK_PIXEL, LOGITS_PIXEL, RESET_PIXEL,
            PIXELS, COLUMNS, MASK_COLUMNS, CHANNELS, WARP, DETERMINISTIC, PRECISION, WIDE,
        )  # fmt: skip
    elif WARP:
        finish_weight(
            warp_weight_parts, grad_warp_weight, parts_of_weight, tl.program_id(0) - tiles, C, C_OUT, K, WEIGHT_PARTS,
            WEIGHTS, WIDE,
        )  # fmt: skip
