"""The kernels of the MotionGRU's gates by convolutions of any size, as matrix products per tap:

    gates_kernel           [u, r, z', m] = W_x * x + W_F * F + b,   s(r) F
    candidate_kernel       z = z' + W_z * (s(r) F);   F_t, D' = motion_update(u, z, F, D)

and backward, where the gradients of all logits are channels of one map, g = [g_u, g_r, g_z, g_m]:

    update_backward_kernel  g_u, g_z, g_m, and the gradients of F and D by motion_update
    reset_backward_kernel   d = W_z^T * g_z;   g_r = d F s'(r);   g_F += d s(r)
    inputs_backward_kernel  g_x = W_x^T * g;   g_F += W_F^T * [g_u, g_r]

A program takes the pixels of a tile, and some output channels of the convolution as columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .fixed_point import unit_exponent
from .images import load_image, store_image, tile_pixels
from .motion_gru import updated_motion, updated_motion_gradients
from .offset_warp_finish import finish_weight, load_sums
from .scalar import d_sigmoid, dot, index, narrow, sigmoid, tanh, widen


@triton.jit
def padded(COLUMNS: tl.constexpr):
    """Return the columns of a row of packed weights."""
    return (COLUMNS + 15) // 16 * 16


@triton.jit
def weight_tile(
    weight, r, n, tap, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr, BACKWARD: tl.constexpr,
    PACKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return the tile at a tap of a weight that sums over R channels and makes N columns: channels r x columns n.

    A weight has its columns first and its channels then, BACKWARD the channels first; PACKED its taps, its channels,
    and its columns, which are neighbours then. What is outside is 0.
    """
    rows, columns = index(r, WIDE)[:, None], index(n, WIDE)[None, :]
    there = (r < R)[:, None]
    if PACKED:
        PITCH: tl.constexpr = padded(N)
        at = (rows + tap * R) * PITCH + columns
        there &= (n < PITCH)[None, :]
    elif BACKWARD:
        at = rows * (N * G * G) + columns * (G * G) + tap
        there &= (n < N)[None, :]
    else:
        at = rows * (G * G) + columns * (R * G * G) + tap
        there &= (n < N)[None, :]
    return tl.load(weight + at, mask=there, other=0)


@triton.jit
def convolve(
    acc, image, at, p_row, p_col, exists, size, height, width, weight, n, R: tl.constexpr, N: tl.constexpr,
    PIXEL: tl.constexpr, G: tl.constexpr, BACKWARD: tl.constexpr, PACKED: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return acc with the products of an image's R channels with a weight of N columns, at the G x G taps of pixels.

    at: the index of each image's first element. BACKWARD: the weight is that of the convolution whose gradient this is.
    """
    HALF: tl.constexpr = (G - 1) // 2
    for tap in range(G * G):
        row, col = p_row + (tap // G - HALF), p_col + (tap % G - HALF)
        inside = exists & (row >= 0) & (row < height) & (col >= 0) & (col < width)
        at_tap = at + (row * width + col) * PIXEL
        place = tap
        if BACKWARD:
            place = G * G - 1 - tap
        for first in range(0, R, CHANNELS):
            r = first + tl.arange(0, CHANNELS)
            value = load_image(image, at_tap, r, inside, size, R, PIXEL, True)
            w = weight_tile(weight, r, n, place, R, N, G, BACKWARD, PACKED, WIDE)
            acc = dot(narrow(widen(value), weight.dtype.element_ty), w, acc, PRECISION)
    return acc


@triton.jit
def gates_kernel(
    x, offset, x_weight, x_bias, state_weight, update, reset, candidate, mask, reset_offset,
    x_batch, offset_batch, height, width, pixels,
    C: tl.constexpr, M: tl.constexpr, MASKS: tl.constexpr, G: tl.constexpr,
    X_PIXEL: tl.constexpr, OFFSET_PIXEL: tl.constexpr, MOTION_PIXEL: tl.constexpr, MASK_PIXEL: tl.constexpr,
    PIXELS: tl.constexpr, COLUMNS: tl.constexpr, X_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
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
        of_x, x, b * x_batch, p_row, p_col, exists, size, height, width, x_weight, n, C, ROWS,
        X_PIXEL, G, False, PACKED, X_CHANNELS, PRECISION, WIDE,
    )  # fmt: skip
    if part * COLUMNS < 2 * M:
        # A sum of its own: 0 times nan would be nan in the columns of z and m.
        of_state = tl.zeros((PIXELS, COLUMNS), offset.dtype.element_ty)
        of_state = convolve(
            of_state, offset, b * offset_batch, p_row, p_col, exists, size, height, width, state_weight, n, M, 2 * M,
            OFFSET_PIXEL, G, False, PACKED, CHANNELS, PRECISION, WIDE,
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
    PACKED: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
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
        z, reset_offset, b * (M * size), p_row, p_col, exists, size, height, width, candidate_weight, n, M, M,
        MOTION_PIXEL, G, False, PACKED, CHANNELS, PRECISION, WIDE,
    )  # fmt: skip
    store_image(new_candidate, at, n, exists, size, M, MOTION_PIXEL, True, z)
    opened = sigmoid(widen(load_image(update, at, n, exists, size, M, MOTION_PIXEL, True)))
    f = load_image(offset, b * offset_batch + place * OFFSET_PIXEL, n, exists, size, M, OFFSET_PIXEL, True)
    d = load_image(trend, b * trend_batch + place * TREND_PIXEL, n, exists, size, M, TREND_PIXEL, True)
    f, d = updated_motion(opened, tanh(z), f, d, alpha, max_offset)
    store_image(new_trend, at, n, exists, size, M, MOTION_PIXEL, True, d)
    store_image(new_offset, at, n, exists, size, M, MOTION_PIXEL, True, f)


@triton.jit
def update_backward_kernel(
    grad_offset, grad_trend, grad_mask, update, candidate, offset, new_offset, logits, new_grad_offset, new_grad_trend,
    warp_grad_offset, warp_weight_parts, grad_warp_weight,
    mask_batch, offset_batch, height, width, pixels, alpha, max_offset, parts_of_weight,
    M: tl.constexpr, MASKS: tl.constexpr, OFFSET_PIXEL: tl.constexpr, MOTION_PIXEL: tl.constexpr,
    GRAD_MASK_PIXEL: tl.constexpr, LOGITS_PIXEL: tl.constexpr, WARP: tl.constexpr, C: tl.constexpr, C_OUT: tl.constexpr,
    K: tl.constexpr, WEIGHT_PARTS: tl.constexpr, WEIGHTS: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """WARP: the gradient of F_t by a warp is added, and further programs finish that of the warp's weight."""
    OF_MOTION: tl.constexpr = (M + COLUMNS - 1) // COLUMNS
    PARTS: tl.constexpr = OF_MOTION + (MASKS + COLUMNS - 1) // COLUMNS
    part = tl.program_id(0) % PARTS
    size = height * index(width, WIDE)
    exists, b, place, _, _ = tile_pixels(tl.program_id(0) // PARTS, PIXELS, pixels, size, width, WIDE)
    at_logits = (b * size + place) * LOGITS_PIXEL
    n = tl.arange(0, COLUMNS)
    if part < OF_MOTION:
        n += part * COLUMNS
        at = b * (M * size) + place * MOTION_PIXEL
        g = load_image(grad_offset, at, n, exists, size, M, MOTION_PIXEL, True)
        if WARP:
            g += load_image(warp_grad_offset, at, n, exists, size, M, MOTION_PIXEL, True)
        g_trend = load_image(grad_trend, at, n, exists, size, M, MOTION_PIXEL, True)
        u = sigmoid(widen(load_image(update, at, n, exists, size, M, MOTION_PIXEL, True)))
        z = tanh(widen(load_image(candidate, at, n, exists, size, M, MOTION_PIXEL, True)))
        f = load_image(
            offset, b * offset_batch + place * OFFSET_PIXEL, n, exists, size, M, OFFSET_PIXEL, True
        )
        new_f = load_image(new_offset, at, n, exists, size, M, MOTION_PIXEL, True)
        of_u, of_z, into_offset, into_trend = updated_motion_gradients(
            g, g_trend, u, z, f, new_f, alpha, max_offset
        )
        store_image(logits, at_logits, n, exists, size, M, LOGITS_PIXEL, True, of_u)
        store_image(logits + 2 * M, at_logits, n, exists, size, M, LOGITS_PIXEL, True, of_z)
        store_image(new_grad_offset, at, n, exists, size, M, MOTION_PIXEL, True, into_offset)
        store_image(new_grad_trend, at, n, exists, size, M, MOTION_PIXEL, True, into_trend)
    else:
        n += (part - OF_MOTION) * COLUMNS
        at_mask = b * mask_batch + place * GRAD_MASK_PIXEL
        m = widen(load_image(grad_mask, at_mask, n, exists, size, MASKS, GRAD_MASK_PIXEL, True))
        store_image(logits + 3 * M, at_logits, n, exists, size, MASKS, LOGITS_PIXEL, True, m)
    if WARP:
        # These programs have no pixels above.
        program = tl.program_id(0) - (pixels + PIXELS - 1) // PIXELS * PARTS
        if program >= 0:
            finish_weight(
                warp_weight_parts, grad_warp_weight, parts_of_weight, program, C, C_OUT, K, WEIGHT_PARTS, WEIGHTS, WIDE
            )  # fmt: skip


@triton.jit
def reset_backward_kernel(
    logits, candidate_weight, reset, offset, grad_offset, new_grad_offset, reset_offset,
    offset_batch, height, width, pixels,
    M: tl.constexpr, G: tl.constexpr, OFFSET_PIXEL: tl.constexpr, MOTION_PIXEL: tl.constexpr,
    LOGITS_PIXEL: tl.constexpr, RESET_PIXEL: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = (M + COLUMNS - 1) // COLUMNS
    part = tl.program_id(0) % PARTS
    width = index(width, WIDE)
    size = height * width
    exists, b, place, p_row, p_col = tile_pixels(tl.program_id(0) // PARTS, PIXELS, pixels, size, width, WIDE)
    n = part * COLUMNS + tl.arange(0, COLUMNS)
    grad = tl.zeros((PIXELS, COLUMNS), offset.dtype.element_ty)
    grad = convolve(
        grad, logits + 2 * M, b * (size * LOGITS_PIXEL), p_row, p_col, exists, size, height, width, candidate_weight, n,
        M, M, LOGITS_PIXEL, G, True, PACKED, CHANNELS, PRECISION, WIDE,
    )  # fmt: skip
    at = b * (M * size) + place * MOTION_PIXEL
    opened = sigmoid(widen(load_image(reset, at, n, exists, size, M, MOTION_PIXEL, True)))
    f = load_image(offset, b * offset_batch + place * OFFSET_PIXEL, n, exists, size, M, OFFSET_PIXEL, True)
    at_logits = (b * size + place) * LOGITS_PIXEL
    store_image(logits + M, at_logits, n, exists, size, M, LOGITS_PIXEL, True, grad * f * d_sigmoid(opened))
    at_reset = (b * size + place) * RESET_PIXEL
    store_image(reset_offset, at_reset, n, exists, size, M, RESET_PIXEL, True, opened * f)
    into = load_image(grad_offset, at, n, exists, size, M, MOTION_PIXEL, True)
    store_image(new_grad_offset, at, n, exists, size, M, MOTION_PIXEL, True, into + grad * opened)


@triton.jit
def inputs_backward_kernel(
    logits, x_weight, state_weight, grad_offset, grad_x, new_grad_offset, warp_sums, height, width, pixels,
    log_addends,
    C: tl.constexpr, M: tl.constexpr, MASKS: tl.constexpr, G: tl.constexpr, MOTION_PIXEL: tl.constexpr,
    LOGITS_PIXEL: tl.constexpr, X_PIXEL: tl.constexpr, WARP: tl.constexpr, DETERMINISTIC: tl.constexpr,
    PIXELS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """WARP: the sums of the gradient of x by a warp are added."""
    OF_X: tl.constexpr = (C + COLUMNS - 1) // COLUMNS
    PARTS: tl.constexpr = OF_X + (M + COLUMNS - 1) // COLUMNS
    part = tl.program_id(0) % PARTS
    width = index(width, WIDE)
    size = height * width
    exists, b, place, p_row, p_col = tile_pixels(tl.program_id(0) // PARTS, PIXELS, pixels, size, width, WIDE)
    n = tl.arange(0, COLUMNS)
    at_logits = b * (size * LOGITS_PIXEL)
    acc = tl.zeros((PIXELS, COLUMNS), grad_offset.dtype.element_ty)
    if part < OF_X:
        n += part * COLUMNS
        acc = convolve(
            acc, logits, at_logits, p_row, p_col, exists, size, height, width, x_weight, n,
            3 * M + MASKS, C, LOGITS_PIXEL, G, True, PACKED, CHANNELS, PRECISION, WIDE,
        )  # fmt: skip
        if WARP:
            exponent = 0
            if DETERMINISTIC:
                exponent = unit_exponent(warp_sums + index(pixels, WIDE) * C, log_addends)
            acc += load_sums(warp_sums, b, place, n, exists, size, C, exponent, DETERMINISTIC)
        store_image(grad_x, b * (C * size) + place * X_PIXEL, n, exists, size, C, X_PIXEL, True, acc)
    else:
        n += (part - OF_X) * COLUMNS
        acc = convolve(
            acc, logits, at_logits, p_row, p_col, exists, size, height, width, state_weight, n,
            2 * M, M, LOGITS_PIXEL, G, True, PACKED, CHANNELS, PRECISION, WIDE,
        )  # fmt: skip
        at = b * (M * size) + place * MOTION_PIXEL
        acc += load_image(grad_offset, at, n, exists, size, M, MOTION_PIXEL, True)
        store_image(new_grad_offset, at, n, exists, size, M, MOTION_PIXEL, True, acc)
