"""Varied Moving MNIST: digits that move, bounce, rotate and change size. In plain Moving MNIST they move and bounce.

Each item is a pure function of (seed, split, index): its motion comes from a random stream of its own. Neither the
order of access nor the number of workers changes a pixel, and the same item with more frames begins with the same
frames. The paper that names V-MNIST gives no parameters; the ranges below are this package's own.

Notation: N digits, T frames, H, W frame size. Positions are in pixels, x to the right and y down, and pixel
(i, j) covers [j, j+1] x [i, i+1]. Angles are in degrees, clockwise on the screen.

The motion of one digit, t = 0 .. T-1, where fold(x) is the triangle wave that reflects a line into [0, 1]:

    scale   s(t) = s_min + (s_max - s_min) fold((s_0 - s_min + r t) / (s_max - s_min))
    angle   a(t) = a_0 + w t
    centre  c(t) = e(t) + m(t) fold(u_0 + sum over k < t of v / m(k)),   m(t) = size - 2 e(t),   per axis

e(t) is the half extent of the visible ink at scale s(t), everything that bilinear sampling can touch: half of its
bounding box for a digit that stays upright, else the radius of the circle around it. So the ink reaches the frame's
edge at a bounce and never leaves the frame, and between bounces a digit of constant size moves straight, at exactly v
pixels per frame.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from .arguments import check_clips, check_generated, checked_index, checked_size, is_count
from .digits import DIGIT_SIZE, load_digits
from .streams import Range, as_range, between, item_stream


@dataclass(frozen=True)
class MotionRanges:
    """The ranges that each digit's motion is drawn from, uniformly.

    A range is (lowest, highest); equal ends fix the value.

    Args:
        image_size: (H, W) of the frames, in pixels.
        n_digits: the number of digits in a clip.
        digit_size: the side of a digit's image at scale 1, in pixels; ink fills about 20/28 of it.
        speed: pixels per frame, in any direction.
        angle: degrees in the first frame, clockwise on the screen.
        rotation: degrees per frame.
        scale: the size relative to `digit_size`, reflected at both ends.
        scale_rate: the change of scale per frame.

    Raises:
        ValueError: a field is not a range, a size or a number is not positive, a speed is negative, or a scale is not
            positive. The message names the field.
    """

    image_size: tuple[int, int] = (64, 64)
    n_digits: int = 2
    digit_size: int = DIGIT_SIZE
    speed: Range = (1.5, 4.5)
    angle: Range = (-30.0, 30.0)
    rotation: Range = (-12.0, 12.0)
    scale: Range = (0.7, 1.3)
    scale_rate: Range = (-0.05, 0.05)

    def plain(self) -> MotionRanges:
        """Return the same ranges with digits upright and at scale 1, which is Moving MNIST."""
        return replace(self, angle=(0, 0), rotation=(0, 0), scale=(1, 1), scale_rate=(0, 0))

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", checked_size(self.image_size))
        for name in ("n_digits", "digit_size"):
            if not is_count(getattr(self, name)):
                raise ValueError(f"{name} must be a positive integer; got {getattr(self, name)!r}")
        for name in ("speed", "angle", "rotation", "scale", "scale_rate"):
            object.__setattr__(self, name, as_range(name, getattr(self, name)))
        if self.speed[0] < 0:
            raise ValueError(f"speed must be >= 0, as its direction is drawn separately; got {self.speed}")
        if self.scale[0] <= 0:
            raise ValueError(f"scale must be > 0; got {self.scale}")


class Motion(NamedTuple):
    """The true motion of the N digits of an item over T frames.

    Attributes:
        digit: (N,) int64, the positions of the digits among the split's images.
        centre: (N, T, 2) float64, x and y in pixels.
        angle: (N, T) float64, in degrees, clockwise on the screen.
        scale: (N, T) float64, the size relative to the ranges' `digit_size`.
    """

    digit: Tensor
    centre: Tensor
    angle: Tensor
    scale: Tensor

    @property
    def velocity(self) -> Tensor:
        """The change of `centre` from frame to frame: (N, T-1, 2) float64, in pixels per frame."""
        return self.centre.diff(dim=1)


class VariedMovingMNIST(Dataset[Tensor]):
    """Generated clips of digits that move, bounce, rotate and change size.

    Item i is float32 (T, 1, H, W) in [0, 1] and depends on (seed, split, i) alone. Digits are drawn at sub-pixel
    positions by bilinear sampling; where they overlap, the pixel is their maximum.

    Args:
        split: "train", "val" or "test". The splits have disjoint digit images (see `load_digits`) and different
            motions.
        seed: an integer >= 0, the same for all splits of an experiment.
        length: the number of items. The first items do not depend on it.
        n_frames: T, inputs and targets together.
        digits: "sklearn", or a folder with MNIST's IDX files.
        plain: whether to start from `MotionRanges.plain()`, without rotation and change of size.
        ranges: single fields of `MotionRanges`, which replace the defaults or those of `plain`.

    Raises:
        ValueError: a bad argument, which the message names; or the digits at their largest do not fit into the frame.
        FileNotFoundError: the folder of digits or a file in it is missing.
        ModuleNotFoundError: the digits are "sklearn" and scikit-learn is not installed.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        seed: int = 0,
        length: int = 10000,
        n_frames: int = 20,
        digits: str | os.PathLike[str] = "sklearn",
        plain: bool = False,
        **ranges: Any,
    ) -> None:
        check_generated(seed, length)
        known = [field.name for field in fields(MotionRanges)]
        for name in ranges:
            if name not in known:
                raise ValueError(f"unknown range {name!r}; known: {', '.join(known)}")
        start = MotionRanges().plain() if plain else MotionRanges()
        self.ranges = MotionRanges(**{**asdict(start), **ranges})
        check_clips(split, n_frames, self.ranges.image_size)
        self.split, self.seed, self.length, self.n_frames = split, seed, length, n_frames
        self.images = _resized(load_digits(digits, split), self.ranges.digit_size)
        self._middle, self._box, self._radius = _ink_extents(self.images)
        self._check_fit()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        motion = self.motion(index)
        images = self.images[motion.digit].float() / 255
        return render(images, self._middle[motion.digit], motion, self.ranges.image_size)

    def motion(self, index: int) -> Motion:
        """Return the true motion of item `index`; raise an IndexError if there is no such item."""
        position = checked_index(index, self.length)
        ranges, t = self.ranges, torch.arange(self.n_frames, dtype=torch.float64)
        drawn = self._draw(position)
        which, angle_0, rotation, scale_0, scale_rate, speed, direction, *start = drawn  # (N, 1) each
        digit = (which[:, 0] * len(self.images)).long()  # (N,)

        rotation = between(ranges.rotation, rotation)  # (N, 1)
        angle = between(ranges.angle, angle_0) + rotation * t  # (N, T)
        low, high = ranges.scale
        span = high - low or 1.0
        change = between(ranges.scale_rate, scale_rate) * t
        grown = between(ranges.scale, scale_0) + change
        scale = low + (high - low) * fold((grown - low) / span)  # (N, T)

        upright = (rotation == 0) & (angle[:, :1] == 0)
        reach = torch.where(upright, self._box[digit], self._radius[digit, None])  # (N, 2)
        extent = scale[..., None] * reach[:, None] - 0.5  # (N, T, 2)
        room = torch.tensor(ranges.image_size[::-1]) - 2 * extent
        turn = 2 * math.pi * direction
        heading = torch.cat([turn.cos(), turn.sin()], -1)  # (N, 2)
        step = (between(ranges.speed, speed) * heading)[:, None] / room
        path = torch.cat(start, -1)[:, None] + step.cumsum(1) - step
        return Motion(digit, extent + room * fold(path), angle, scale)

    def _draw(self, index: int) -> Tensor:
        """Draw nine uniform numbers per digit, (9, N, 1) float64.

        The count does not depend on the ranges, so that a seed's plain and varied clips show the same digits and
        headings.
        """
        stream = item_stream(self.seed, self.split, index)
        return torch.from_numpy(stream.random((self.ranges.n_digits, 9))).T[..., None]

    def _check_fit(self) -> None:
        """Raise a ValueError unless the digits at their largest fit into the frame."""
        ranges = self.ranges
        upright = ranges.rotation == (0, 0) and ranges.angle == (0, 0)
        reach = float((self._box if upright else self._radius).max())
        need, have = 2 * ranges.scale[1] * reach - 1, min(ranges.image_size)
        if need >= have:
            raise ValueError(
                f"image_size {ranges.image_size} is too small: digits of digit_size {ranges.digit_size} at "
                f"scale {ranges.scale[1]:g} need more than {math.floor(need)} pixels; lower digit_size or scale"
            )


def render(images: Tensor, middle: Tensor, motion: Motion, image_size: tuple[int, int]) -> Tensor:
    """Draw N digit images that move, rotate and change size.

    Pixel p of the frame shows the digit image at middle + R(-angle) (p - centre) / scale.

    Args:
        images: float32 (N, S, S) in [0, 1].
        middle: (N, 2) float64, the point of each digit image that is at `motion.centre`, x and y in its pixels.
        motion: the motion of the digits over T frames.
        image_size: (H, W) of the frames, in pixels.

    Returns:
        float32 (T, 1, H, W) in [0, 1].
    """
    (n, side, _), n_frames = images.shape, motion.centre.shape[1]
    height, width = image_size
    angle = motion.angle.deg2rad()
    cos, sin = angle.cos() / motion.scale, angle.sin() / motion.scale  # (N, T)
    along_x, along_y = torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)  # (N, T, 2)
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    # The sum of (N, T, 1, W, 2) and (N, T, H, 1, 2) is the digit's pixel: twice the clips a second of affine_grid.
    columns = along_x[:, :, None, None] * (x[:, None] - motion.centre[:, :, None, None, :1])
    rows = along_y[:, :, None, None] * (y[:, None, None] - motion.centre[:, :, None, None, 1:])
    rows = rows + middle[:, None, None, None]
    # grid_sample takes the image's width as [-1, 1].
    grid = (columns * (2 / side)).float() + (rows * (2 / side) - 1).float()  # (N, T, H, W, 2)
    source = images[:, None, None].expand(n, n_frames, 1, side, side).flatten(0, 1)
    drawn = F.grid_sample(source, grid.flatten(0, 1), mode="bilinear", align_corners=False)
    return drawn.view(n, n_frames, 1, height, width).amax(0)


def fold(x: Tensor) -> Tensor:
    """Return the triangle wave of period 2 with fold(0) = 0 and fold(1) = 1: a line reflected at 0 and at 1."""
    return 1 - (1 - x.remainder(2)).abs()


def _resized(images: Tensor, size: int) -> Tensor:
    """Resize images, uint8 (N, rows, columns), to uint8 (N, size, size)."""
    if images.shape[1:] == (size, size):
        return images
    # Parts bound the memory of the float copy.
    parts = images[:, None].split(4096)
    parts = [F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True) for part in parts]
    return torch.cat([part.round().to(torch.uint8) for part in parts])[:, 0]


def _ink_extents(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the extents of the ink in images, uint8 (N, S, S), as float64, x before y.

    They are the middle of the ink's bounding box (N, 2), the reach of the box from there along each axis (N, 2), and
    the reach of the ink in any direction (N,).

    At scale s, bilinear sampling spreads a pixel whose centre is d away from the middle over s (d + 1) along an axis,
    and over s (d + sqrt 2) if it is rotated. Frames are sampled at pixel centres, half a pixel inside their edges, so
    ink needs s reach - 1/2 between its middle and an edge.
    """
    ink = images > 0
    position = torch.arange(images.shape[-1], dtype=torch.float64) + 0.5
    where = torch.stack([ink.any(1), ink.any(2)], 1)  # (N, 2, S): columns, rows
    # An image without ink counts as full.
    where |= ~where.any(-1, keepdim=True)
    first = position.expand_as(where).masked_fill(~where, math.inf).amin(-1)
    last = position.expand_as(where).masked_fill(~where, -math.inf).amax(-1)
    middle = (first + last) / 2  # (N, 2)
    square = (position - middle[..., None]) ** 2  # (N, 2, S)
    distance = square[:, 0, None, :] + square[:, 1, :, None]  # (N, S, S)
    radius = distance.masked_fill_(~ink, 0).flatten(1).amax(1).sqrt()
    return middle, (last - first) / 2 + 1, radius + math.sqrt(2)
