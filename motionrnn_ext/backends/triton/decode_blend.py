"""The end of a MotionGRU step with an output gate of 1x1, as ops for its node (layers/nodes/output_gate.py): one launch
each way.

    decode_blend             Q = Dec(warped);   g = W_Q Q + W_H H + b;   X = s(g) A + (1 - s(g)) B
    decode_blend_backward    the gradient of g, and those of Q and H by both g and the blend

(A, B) is (H, Q) or (Q, H). The decoder is a transposed convolution with 4x4 taps and stride 2. A pixel of Q reads the
2x2 taps that have the parity of its row and column, so that the pixels of one parity are a convolution of the half map
by 2x2 taps. A program takes all channels of its pixels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from ..layouts import memory_format, new_image
from . import NAMESPACE
from .images import Image, load_image, needs_64_bits, store_image, tile_pixels
from .launch import PRECISION, Block, in_blocks, kernel_op, launch
from .motion_gates import packed_size, packed_taps
from .offset_warp import channel_block
from .pixel_gates import bias_tile, multiply, of_group
from .scalar import d_sigmoid, dot, index, narrow, sigmoid, widen
from .tap_gates import weight_tile

# The most channels of the maps, all of which a program holds.
MOST_CHANNELS = 64


@triton.jit
def decode_blend_kernel(
    warped, maps, decoder_weight, decoder_bias, gate_weight, gate_bias, out, decoded, logits,
    warped_batch, maps_batch, height, width, pixels,
    C: tl.constexpr, ENCODED: tl.constexpr, GATES_MAPS: tl.constexpr,
    WARPED_PIXEL: tl.constexpr, MAPS_PIXEL: tl.constexpr, OUT_PIXEL: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, ENCODED_CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """height, width, pixels: of the half map."""
    parity = tl.program_id(0) % 4
    p_row, p_col = parity // 2, parity % 2
    width = index(width, WIDE)
    size = height * width
    exists, b, _, row, col = tile_pixels(tl.program_id(0) // 4, PIXELS, pixels, size, width, WIDE)
    n = tl.arange(0, CHANNELS)
    there = (n < C)[None, :]
    out_place = (2 * row + p_row) * (2 * width) + 2 * col + p_col
    h = load_image(maps, b * maps_batch + out_place * MAPS_PIXEL, n, exists, 4 * size, C, MAPS_PIXEL, True)
    SUMS: tl.constexpr = widen(h).dtype
    acc = bias_tile(decoder_bias, n, 0, C, PIXELS, CHANNELS, SUMS)
    for tap in tl.static_range(4):
        # The first of two taps is the pixel itself for an even row, and the next one for an odd row.
        y, x = row + p_row - tap // 2, col + p_col - tap % 2
        inside = exists & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        of_weight = (1 - p_row + tap // 2 * 2) * 4 + 1 - p_col + tap % 2 * 2
        at = b * warped_batch + (y * width + x) * WARPED_PIXEL
        for first in range(0, ENCODED, ENCODED_CHANNELS):
            e = first + tl.arange(0, ENCODED_CHANNELS)
            value = load_image(warped, at, e, inside, size, ENCODED, WARPED_PIXEL, True)
            w = weight_tile(decoder_weight, e, n, of_weight, ENCODED, C, 4, False, True, WIDE)
            acc = dot(value, w, acc, PRECISION)
    # Channels beyond C are 0, where 0 times inf would be nan.
    q = narrow(tl.where(there, acc, 0), decoded.dtype.element_ty)
    g = bias_tile(gate_bias, n, 0, C, PIXELS, CHANNELS, SUMS)
    g = dot(q, weight_tile(gate_weight, n, n, 0, C, C, 1, False, True, WIDE), g, PRECISION)
    of_maps = weight_tile(gate_weight, of_group(n, C, C, 2 * C), n, 0, 2 * C, C, 1, False, True, WIDE)
    g = dot(h, of_maps, g, PRECISION)
    g = narrow(g, decoded.dtype.element_ty)
    at_out = b * (4 * C * size) + out_place * OUT_PIXEL
    store_image(decoded, at_out, n, exists, 4 * size, C, OUT_PIXEL, True, widen(q))
    store_image(logits, at_out, n, exists, 4 * size, C, OUT_PIXEL, True, widen(g))
    share, q, h = sigmoid(widen(g)), widen(q), widen(h)
    blended = share * h + (1 - share) * q if GATES_MAPS else share * q + (1 - share) * h
    store_image(out, at_out, n, exists, 4 * size, C, OUT_PIXEL, True, blended)


@triton.jit
def decode_blend_backward_kernel(
    grad, maps, decoded, logits, gate_weight, grad_maps, grad_decoded, grad_logits,
    maps_batch, size, pixels,
    C: tl.constexpr, GATES_MAPS: tl.constexpr, MAPS_PIXEL: tl.constexpr, OUT_PIXEL: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """size, pixels: of the maps. All images but `maps` lie as the results do."""
    size = index(size, WIDE)
    exists, b, place, _, _ = tile_pixels(tl.program_id(0), PIXELS, pixels, size, size, WIDE)
    n = tl.arange(0, CHANNELS)
    at = b * (C * size) + place * OUT_PIXEL
    given = widen(load_image(grad, at, n, exists, size, C, OUT_PIXEL, True))
    share = sigmoid(widen(load_image(logits, at, n, exists, size, C, OUT_PIXEL, True)))
    q = widen(load_image(decoded, at, n, exists, size, C, OUT_PIXEL, True))
    h = widen(load_image(maps, b * maps_batch + place * MAPS_PIXEL, n, exists, size, C, MAPS_PIXEL, True))
    of_share = h - q if GATES_MAPS else q - h
    into_logits = narrow(given * of_share * d_sigmoid(share), grad_logits.dtype.element_ty)
    store_image(grad_logits, at, n, exists, size, C, OUT_PIXEL, True, widen(into_logits))
    into_decoded = given * (1 - share if GATES_MAPS else share)
    into_decoded = multiply(into_decoded, into_logits, gate_weight, n, n, C, 2 * C, True, PRECISION, WIDE)
    store_image(grad_decoded, at, n, exists, size, C, OUT_PIXEL, True, into_decoded)
    into_maps = given * (share if GATES_MAPS else 1 - share)
    of_maps = of_group(n, C, C, 2 * C)
    into_maps = multiply(into_maps, into_logits, gate_weight, n, of_maps, C, 2 * C, True, PRECISION, WIDE)
    store_image(grad_maps, at, n, exists, size, C, OUT_PIXEL, True, into_maps)


def decode_blend_pack(decoder_weight: Tensor, gate_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights for forward, as `packed_taps` lays them out, and nothing for backward, whose only one is read
    as it is."""
    weights = decoder_weight, gate_weight.transpose(0, 1)
    return torch.cat([packed_taps(w) for w in weights]), gate_weight.new_empty(0)


# It launches no kernel, so that it is no opaque op in the interpreter either.
triton_op(f"{NAMESPACE}::decode_blend_pack", decode_blend_pack, mutates_args={})


def _split(packed: Tensor, decoder_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of decoder and gate of which `packed` was made."""
    encoded, channels, taps, _ = decoder_weight.shape
    of_decoder = packed_size(encoded, channels, taps)
    return packed[:of_decoder], packed[of_decoder:]


@kernel_op
def decode_blend(
    warped: Tensor,
    maps: Tensor,
    decoder_weight: Tensor,
    decoder_bias: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    packed: Tensor,
    gates_maps: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return X, Q and g. There are at most MOST_CHANNELS channels, and 2h x 2w pixels where `warped` has h x w."""
    batch, encoded, height, width = warped.shape
    channels, pixels = maps.shape[1], batch * height * width
    out, decoded, logits = (new_image(maps, channels) for _ in range(3))
    if out.numel() == 0:
        return out, decoded, logits
    images = [Image.of(t) for t in (warped, maps, out)]
    warped_image, maps_image, out_image = images
    weights = _split(packed, decoder_weight)

    def in_block(block: Block) -> None:
        launch(
            decode_blend_kernel, 4 * triton.cdiv(pixels, block.size), warped_image.tensor, maps_image.tensor,
            weights[0], decoder_bias.contiguous(), weights[1], gate_bias.contiguous(), out, decoded, logits,
            warped_image.batch, maps_image.batch, height, width, pixels,
            C=channels, ENCODED=encoded, GATES_MAPS=gates_maps, WARPED_PIXEL=warped_image.pixel,
            MAPS_PIXEL=maps_image.pixel, OUT_PIXEL=out_image.pixel, PIXELS=block.size,
            CHANNELS=channel_block(channels, MOST_CHANNELS), ENCODED_CHANNELS=channel_block(encoded, 32),
            PRECISION=PRECISION, WIDE=needs_64_bits(*images), **block.options,
        )  # fmt: skip

    in_blocks("decode_blend", channels, maps, 4 * pixels, in_block, decode_blend_kernel.__name__)
    return out, decoded, logits


@kernel_op
def decode_blend_backward(
    grad: Tensor,
    maps: Tensor,
    decoded: Tensor,
    logits: Tensor,
    decoder_weight: Tensor,
    gate_weight: Tensor,
    packed: Tensor,
    gates_maps: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of H, Q and g, from that of X."""
    batch, channels, height, width = maps.shape
    size = height * width
    grads = grad_maps, grad_decoded, grad_logits = [new_image(maps, channels) for _ in range(3)]
    if maps.numel() == 0:
        return grad_maps, grad_decoded, grad_logits
    given = [t.contiguous(memory_format=memory_format(grad_maps)) for t in (grad, decoded, logits)]
    images = [Image.of(t) for t in (maps, grad_maps)]
    maps_image, out_image = images

    def in_block(block: Block) -> None:
        launch(
            decode_blend_backward_kernel, triton.cdiv(batch * size, block.size), given[0], maps_image.tensor,
            *given[1:], gate_weight.contiguous(), *grads, maps_image.batch, size, batch * size,
            C=channels, GATES_MAPS=gates_maps, MAPS_PIXEL=maps_image.pixel,
            OUT_PIXEL=out_image.pixel, PIXELS=block.size, CHANNELS=channel_block(channels, MOST_CHANNELS),
            PRECISION=PRECISION, WIDE=needs_64_bits(*images), **block.options,
        )  # fmt: skip

    in_blocks("decode_blend", channels, maps, batch * size, in_block, decode_blend_backward_kernel.__name__)
    return grad_maps, grad_decoded, grad_logits
