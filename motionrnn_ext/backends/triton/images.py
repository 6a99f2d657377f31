"""The layout of images: (B, C, H, W), contiguous or channels_last, with any batch stride; tiles of their elements.

An image has two strides: that of the batch, and that of a pixel, which is 1 if channels are planes, and the distance of
two pixels if channels come last. The channel's stride follows from it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import is_dense, memory_format
from .scalar import index, narrow


class Image(NamedTuple):
    """A tensor that kernels can read in place, with its batch stride and its pixel stride."""

    tensor: Tensor
    batch: int
    pixel: int

    @classmethod
    def of(cls, t: Tensor) -> Image:
        """Return the image of t if t can be read in place, else that of a copy in its memory format."""
        if not is_dense(t, (3, 2, 1)):
            pixel = t.stride(2 if t.shape[3] == 1 else 3)
            if t.stride(1) == 1 and is_dense(t, (3, 2), pixel) and pixel >= t.shape[1]:
                return cls(t, t.stride(0), pixel)
            t = t.contiguous(memory_format=memory_format(t))
        if memory_format(t) is torch.channels_last:
            return cls(t, t.stride(0), t.shape[1])
        return cls(t, t.stride(0), 1)

    @classmethod
    def new_channels_last(cls, like: Tensor) -> Image:
        """Return an empty image of the shape of `like`, with channels last."""
        made = torch.empty_like(like, memory_format=torch.channels_last)
        return cls(made, like[0].numel(), like.shape[1])

    @property
    def is_channels_last(self) -> bool:
        """Return whether the channels of a pixel are neighbours."""
        return self.pixel != 1 or self.tensor.shape[1] == 1

    @property
    def end(self) -> int:
        """Return the index after that of the last element; the first has index 0."""
        batch, channels, height, width = self.tensor.shape
        return (batch - 1) * self.batch + max(height * width * self.pixel, channels * height * width)


def needs_64_bits(*operands: Image | Tensor) -> bool:
    """Return whether an index into one of the operands needs more than 32 bits. Tensors are those without gaps."""
    ends = [operand.numel() if isinstance(operand, Tensor) else operand.end for operand in operands]
    return any(end >= 2**31 for end in ends)


@triton.jit
def channel_stride(PIXEL: tl.constexpr, size):
    """Return the stride of a channel: `size` if channels are planes of `size` pixels, 1 if they come last."""
    if PIXEL == 1:
        return size
    else:
        return 1


# A tile is pixels x channels if channels come last (LAST), else channels x pixels. The inner axis is the one whose
# elements are neighbours in memory, so that neighbouring threads access neighbouring elements.


@triton.jit
def as_rows(v, LAST: tl.constexpr):
    """Return a vector over pixels in the shape that broadcasts along a tile's pixels."""
    if LAST:
        return v[:, None]
    else:
        return v[None, :]


@triton.jit
def as_columns(v, LAST: tl.constexpr):
    """Return a vector over channels in the shape that broadcasts along a tile's channels."""
    if LAST:
        return v[None, :]
    else:
        return v[:, None]


@triton.jit
def zero_tile(PIXELS: tl.constexpr, CHANNELS: tl.constexpr, LAST: tl.constexpr, dtype: tl.constexpr):
    """Return a tile of zeros."""
    if LAST:
        return tl.zeros((PIXELS, CHANNELS), dtype)
    else:
        return tl.zeros((CHANNELS, PIXELS), dtype)


@triton.jit
def tile_pixels(tile, PIXELS: tl.constexpr, pixels, size, width, WIDE: tl.constexpr):
    """Return whether each pixel of a tile exists, its image in the batch, its index in that, its row and its column."""
    pixel = index(tile, WIDE) * PIXELS + tl.arange(0, PIXELS)
    b = pixel // size
    place = pixel - b * size
    row = place // width
    return pixel < pixels, b, place, row, place - row * width


@triton.jit
def image_indices(at, c, size, PIXEL: tl.constexpr, LAST: tl.constexpr):
    """Return the indices of the channels c of pixels, where `at` are the indices of the pixels' first channels."""
    return as_rows(at, LAST) + as_columns(c * channel_stride(PIXEL, size), LAST)


@triton.jit
def load_image(image, at, c, inside, size, COUNT: tl.constexpr, PIXEL: tl.constexpr, LAST: tl.constexpr):
    """Return a tile of an image in its stored dtype, 0 where a pixel is not inside."""
    there = as_rows(inside, LAST) & as_columns(c < COUNT, LAST)
    return tl.load(image + image_indices(at, c, size, PIXEL, LAST), mask=there, other=0)


@triton.jit
def store_image(
    image, at, c, inside, size, COUNT: tl.constexpr, PIXEL: tl.constexpr, LAST: tl.constexpr, value
):  # fmt: skip
    there = as_rows(inside, LAST) & as_columns(c < COUNT, LAST)
    value = narrow(value, image.dtype.element_ty)
    tl.store(image + image_indices(at, c, size, PIXEL, LAST), value, mask=there)
