"""The gates and the warp of a MotionGRU step with packed weights, as ops for its node (layers/nodes/motion_step.py).

Gates of 1x1 and the warp are one launch forward, where maps are small: a program makes the motion of its pixels, stores
it for backward, and loads the taps from there. Else the kernels are those of motion_gates.py and offset_warp.py. In
backward the gates' kernels do what the warp's last launch would do.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..layouts import new_image
from ..registration.wanted import Wanted
from .images import Image, needs_64_bits, store_image, tile_pixels
from .launch import MULTIPROCESSORS, PRECISION, Block, block, in_blocks, kernel_op, launch
from .motion_gates import MOST_COLUMNS, Given, Sizes, launch_backward, launch_forward, new_maps, wanted_maps
from .offset_warp import channel_block, offset_warp, warp_tile, weight_strides
from .offset_warp_backward import offset_warp_backward, unfinished_backward
from .pixel_gates import make_motion
from .scalar import index


@triton.jit
def gated_warp_kernel(
    x, offset, trend, x_weight, x_bias, state_weight, candidate_weight, warp_weight,
    new_offset, new_trend, mask, update, reset, candidate, out,
    x_batch, offset_batch, trend_batch, height, width, pixels, alpha, max_offset,
    C: tl.constexpr, C_OUT: tl.constexpr, M: tl.constexpr, MASKS: tl.constexpr, K: tl.constexpr,
    X_PIXEL: tl.constexpr, OFFSET_PIXEL: tl.constexpr, TREND_PIXEL: tl.constexpr, MOTION_PIXEL: tl.constexpr,
    MASK_PIXEL: tl.constexpr, OUT_PIXEL: tl.constexpr, WEIGHT_C: tl.constexpr, WEIGHT_TAP: tl.constexpr,
    PIXELS: tl.constexpr, COLUMNS: tl.constexpr, MASK_COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    width = index(width, WIDE)
    size = height * width
    exists, b, place, row, col = tile_pixels(tl.program_id(0), PIXELS, pixels, size, width, WIDE)
    make_motion(
        x, offset, trend, x_weight, x_bias, state_weight, candidate_weight,
        new_offset, new_trend, mask, update, reset, candidate,
        x_batch, offset_batch, trend_batch, exists, b, place, size, alpha, max_offset,
        C, M, MASKS, X_PIXEL, OFFSET_PIXEL, TREND_PIXEL, MOTION_PIXEL, MASK_PIXEL, PIXELS,
        COLUMNS, MASK_COLUMNS, CHANNELS, PRECISION, WIDE,
    )  # fmt: skip
    # The motion of these pixels is read by other threads of this program. The barrier lets them see what was stored: on
    # NVIDIA it is bar.sync, on AMD a fence of the workgroup.
    tl.debug_barrier()
    o = tl.arange(0, OUT_CHANNELS)
    acc = warp_tile(
        x, new_offset, mask, warp_weight, b, place, row, col, exists, o, x_batch, M * size, MASKS * size, height, width,
        C, C_OUT, K, X_PIXEL, MOTION_PIXEL, MASK_PIXEL, WEIGHT_C, WEIGHT_TAP, PIXELS, CHANNELS, OUT_CHANNELS,
        PRECISION, WIDE,
    )  # fmt: skip
    at = b * (C_OUT * size) + place * OUT_PIXEL
    store_image(out, at, o, exists, size, C_OUT, OUT_PIXEL, X_PIXEL != 1, acc)


@kernel_op
def gated_warp(
    x: Tensor,
    offset: Tensor,
    trend: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    state_weight: Tensor,
    candidate_weight: Tensor,
    warp_weight: Tensor,
    packed: Tensor,
    alpha: float,
    max_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = (x_weight, state_weight, candidate_weight)
    if in_one_launch(x, Sizes.of(x_weight, candidate_weight), warp_weight):
        return _launch_joined(x, offset, trend, weights, x_bias, warp_weight, alpha, max_offset)
    new_offset, new_trend, mask, *logits = launch_forward(
        x, offset, trend, weights, x_bias, packed, alpha, max_offset
    )
    warped = offset_warp(x, new_offset, mask, warp_weight)
    return warped, new_offset, new_trend, mask, *logits


def in_one_launch(x: Tensor, sizes: Sizes, warp_weight: Tensor) -> bool:
    """Return whether the gates and the warp run in one launch: gates of 1x1, on maps of few pixels.

    A program holds more than either kernel has, so that few of them share a multiprocessor. While each has one alone,
    that does not matter, and a launch is saved.
    """
    out_channels, channels, k, _ = warp_weight.shape
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    if not isinstance(pixels, int) or 0 in (pixels, channels, out_channels):  # a traced size is not known yet
        return False
    most = MULTIPROCESSORS * block("gated_warp", channels, x.dtype).size
    return sizes.is_of_pixels and k <= 3 and max(channels, out_channels) <= MOST_COLUMNS and pixels <= most


def _launch_joined(
    x: Tensor, offset: Tensor, trend: Tensor, weights: tuple[Tensor, Tensor, Tensor], bias: Tensor, warp_weight: Tensor,
    alpha: float, max_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    sizes = Sizes.of(weights[0], weights[2])
    made, out = new_maps(x, sizes, offset.dtype), new_image(x, warp_weight.shape[0])
    taps, strides = weight_strides(warp_weight)
    images = [Image.of(t) for t in (x, offset, trend, made[2], made[3], out)]
    x_image, offset_image, trend_image, mask_image, map_image, out_image = images
    batch, channels, height, width = x.shape
    pixels = batch * height * width

    def in_block(block: Block) -> None:
        launch(
            gated_warp_kernel, triton.cdiv(pixels, block.size), x_image.tensor, offset_image.tensor, trend_image.tensor,
            weights[0].contiguous(), bias.contiguous(), *(w.contiguous() for w in weights[1:]), taps, *made, out,
            x_image.batch, offset_image.batch, trend_image.batch, height, width, pixels, alpha, max_offset,
            C=channels, C_OUT=out.shape[1], M=sizes.motion, MASKS=sizes.masks, K=taps.shape[2], X_PIXEL=x_image.pixel,
            OFFSET_PIXEL=offset_image.pixel, TREND_PIXEL=trend_image.pixel, MOTION_PIXEL=map_image.pixel,
            MASK_PIXEL=mask_image.pixel, OUT_PIXEL=out_image.pixel, **strides, PIXELS=block.size,
            COLUMNS=channel_block(sizes.motion, MOST_COLUMNS), MASK_COLUMNS=channel_block(sizes.masks, MOST_COLUMNS),
            CHANNELS=channel_block(channels, 32), OUT_CHANNELS=channel_block(out.shape[1], MOST_COLUMNS),
            PRECISION=PRECISION, WIDE=needs_64_bits(*images, taps), **block.options,
        )  # fmt: skip

    in_blocks("gated_warp", channels, x, pixels, in_block)
    return out, *made


@kernel_op
def gated_warp_backward(
    grad: Tensor,
    grad_offset: Tensor,
    grad_trend: Tensor,
    x: Tensor,
    offset: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    state_weight: Tensor,
    candidate_weight: Tensor,
    warp_weight: Tensor,
    mask_logits: Tensor,
    update_logits: Tensor,
    reset_logits: Tensor,
    candidate_logits: Tensor,
    new_offset: Tensor,
    packed: Tensor,
    alpha: float,
    max_offset: float,
    wanted: int,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    kept = (offset, update_logits, reset_logits, candidate_logits, new_offset)
    weights = (x_weight, state_weight, candidate_weight)
    if 0 in (x.numel(), grad.numel()):
        of_warp = None
        _, _, grad_mask, grad_weight = offset_warp_backward(
            grad, x, new_offset, mask_logits, warp_weight, wanted | Wanted.MASK, deterministic
        )
    else:
        of_warp = unfinished_backward(grad, x, new_offset, mask_logits, warp_weight, wanted, deterministic)
        grad_mask, grad_weight = of_warp.mask, of_warp.weight
    given = Given(grad_offset, grad_trend, grad_mask, *kept)
    made = launch_backward(x, given, weights, packed, alpha, max_offset, of_warp)
    maps = wanted_maps(x, made, wanted)
    factors = (
        (made.logits, made.reset_offset) if wanted & Wanted.WEIGHTS else (x.new_empty(0), x.new_empty(0))
    )
    return *maps, *factors, grad_weight
