"""Where the elements of images lie: (B, C, H, W), contiguous or channels_last, with any batch stride.

An image has two strides: of the batch, and of a pixel, which is 1 where channels are planes and the distance of two
pixels where those come last. The channel's follows from it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import is_dense, memory_format
from .scalar import narrow


class Image(NamedTuple):
    tensor: Tensor
    batch: int
    pixel: int

    @classmethod
    def of(cls, t: Tensor) -> Image:
        """t where it can be read in place, else a copy in its memory format."""
        if not is_dense(t, (3, 2, 1)):
            pixel = t.stride(2 if t.shape[3] == 1 else 3)
            if t.stride(1) == 1 and is_dense(t, (3, 2), pixel) and pixel >= t.shape[1]:
                return cls(t, t.stride(0), pixel)
            t = t.contiguous(memory_format=memory_format(t))
        if memory_format(t) is torch.channels_last:
            return cls(t, t.stride(0), t.shape[1])
        return cls(t, t.stride(0), 1)

    @classmethod
    def of_rows(cls, like: Tensor) -> Image:
        """An empty one of its shape, with the channels last."""
        made = torch.empty_like(like, memory_format=torch.channels_last)
        return cls(made, like[0].numel(), like.shape[1])

    @property
    def has_rows(self) -> bool:
        """Whether the channels of a pixel are neighbours."""
        return self.pixel != 1 or self.tensor.shape[1] == 1

    @property
    def end(self) -> int:
        """One past the last element, counted from the first."""
        batch, channels, height, width = self.tensor.shape
        return (batch - 1) * self.batch + max(height * width * self.pixel, channels * height * width)


def needs_64_bits(*images: Image) -> bool:
    """Whether an index into one of them is too large for 32."""
    return any(image.end >= 2**31 for image in images)


@triton.jit
def channel_stride(PIXEL: tl.constexpr, size):
    """Of an image whose channels are planes of `size` pixels, or come last."""
    if PIXEL == 1:
        return size
    else:
        return 1


# A tile is pixels x channels (LAST), or channels x pixels: the inner axis is the one whose elements are neighbours, and
# neighbouring threads take those.


@triton.jit
def as_rows(v, LAST: tl.constexpr):
    if LAST:
        return v[:, None]
    else:
        return v[None, :]


@triton.jit
def as_columns(v, LAST: tl.constexpr):
    if LAST:
        return v[None, :]
    else:
        return v[:, None]


@triton.jit
def zero_tile(PIXELS: tl.constexpr, CHANNELS: tl.constexpr, LAST: tl.constexpr, dtype: tl.constexpr):
    if LAST:
        return tl.zeros((PIXELS, CHANNELS), dtype)
    else:
        return tl.zeros((CHANNELS, PIXELS), dtype)


@triton.jit
def tile_pixels(tile, PIXELS: tl.constexpr, pixels, size, width, WIDE: tl.constexpr):
    """The tile's pixels: whether each exists, its image in the batch, its place in that, row and column."""
    if WIDE:
        tile = tile.to(tl.int64)
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    b = pixel // size
    place = pixel - b * size
    row = place // width
    return pixel < pixels, b, place, row, place - row * width


@triton.jit
def image_indices(at, c, size, PIXEL: tl.constexpr, LAST: tl.constexpr):
    """Of the channels c of the pixels whose first channels are `at`."""
    return as_rows(at, LAST) + as_columns(c * channel_stride(PIXEL, size), LAST)


@triton.jit
def load_image(image, at, c, inside, size, COUNT: tl.constexpr, PIXEL: tl.constexpr, LAST: tl.constexpr):
    """Pixels x channels, as stored; 0 where a pixel is not inside."""
    there = as_rows(inside, LAST) & as_columns(c < COUNT, LAST)
    return tl.load(image + image_indices(at, c, size, PIXEL, LAST), mask=there, other=0)


@triton.jit
def store_image(
    image, at, c, inside, size, COUNT: tl.constexpr, PIXEL: tl.constexpr, LAST: tl.constexpr, value
):  # fmt: skip
    there = as_rows(inside, LAST) & as_columns(c < COUNT, LAST)
    value = narrow(value, image.dtype.element_ty)
    tl.store(image + image_indices(at, c, size, PIXEL, LAST), value, mask=there)
