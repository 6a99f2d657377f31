"""Radar-like fields: storm cells that drift, turn about a common centre, spin, grow and decay.

Each item is a pure function of (seed, split, index), and the same item with more frames begins with the same frames.
Real radar echo follows no such simple law. These clips allow everything made for radar to run, and a model to be
trained on it, without radar data.

Notation: N storm cells, T frames, H, W frame size, S = min(H, W). Positions are in pixels, x to the right and y down,
and pixel (i, j) has its centre at (j + 1/2, i + 1/2). R(a) rotates by the angle a, clockwise on the screen.

The flow carries every point of the air, and the storm cells' centres with it, from P in frame 0 to

    flow(P, t) = p(t) + R(w t) (P - p(0)),    p(t) = p(0) + v t          v steering, w rotation about p

Storm cell k in frame t has the centre c_k(t) = flow(c_k, t), the direction a_k + (w + s_k) t of its long axis with a
spin s_k of its own, half widths g_k(t) (l_k, m_k) and the strength b_k g_k(t). It grows and decays periodically by

    g_k(t) = floor + (1 - floor) sin^2(pi (t / period_k + phase_k))

The echo at a point is the sum over storm cells of strength * exp(-d^2 / 2), with d the elliptic distance in half
widths, times a texture that drifts with the flow: 1 + roughness * the mean of `N_WAVES` plane waves. The pixel's value
is the echo above `threshold`, max(0, min(1, echo - threshold)), in steps of 1/255 as in radar images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .arguments import check_clips, check_generated, checked_index, is_count
from .streams import Range, as_number, as_range, between, item_stream

N_WAVES = 8


@dataclass(frozen=True)
class RadarRanges:
    """The ranges that radar-like fields are drawn from, uniformly.

    A range is (lowest, highest). Lengths are in units of S = min(H, W), times in frames, angles in degrees.

    Args:
        n_cells: N, the number of storm cells.
        spread: the side of the square about the frame's middle in which storm cells start.
        speed: the speed of the steering flow per frame, in any direction.
        rotation: the rotation about the common centre per frame, in either direction.
        spin: a storm cell's own rotation per frame.
        length: the half width along a storm cell's long axis.
        roundness: the short axis divided by the long one.
        strength: the echo in the middle of a storm cell at its strongest.
        floor: the part of a storm cell's size and strength that is left at its weakest.
        period: the time from one peak of growth to the next.
        roughness: the amplitude of the texture.
        wavelength: the wavelength of the texture's plane waves.
        threshold: the echo that is subtracted from every pixel.

    Raises:
        ValueError: a field is no range, no finite number, no positive number of cells, or out of its bounds. The
            message names the field.
    """

    n_cells: int = 30
    spread: float = 2.0
    speed: Range = (0.006, 0.03)
    rotation: Range = (1.0, 5.0)
    spin: Range = (-4.0, 4.0)
    length: Range = (0.08, 0.2)
    roundness: Range = (0.35, 0.9)
    strength: Range = (0.4, 1.1)
    floor: float = 0.3
    period: Range = (14.0, 40.0)
    roughness: float = 1.3
    wavelength: Range = (0.12, 0.6)
    threshold: float = 0.12

    def __post_init__(self) -> None:
        if not is_count(self.n_cells):
            raise ValueError(f"n_cells must be a positive integer; got {self.n_cells!r}")
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(entry.default, tuple):
                object.__setattr__(self, entry.name, as_range(entry.name, value))
            elif isinstance(entry.default, float):
                object.__setattr__(self, entry.name, as_number(entry.name, value))
        for name in ("length", "roundness", "period", "wavelength"):
            if min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must be from 0 to 1; got {self.floor:g}")


class RadarMotion(NamedTuple):
    """The true motion of an item's N storm cells and its texture over T frames; all tensors are float64.

    Attributes:
        centre: (N, T, 2), x and y in pixels.
        angle: (N, T), the direction of the long axis in degrees, clockwise on the screen.
        axes: (N, T, 2), the half widths along and across the long axis, in pixels.
        strength: (N, T).
        pivot: (T, 2), the common centre p(t), x and y in pixels.
        turn: (T,), the rotation w t in degrees.
        waves: (N_WAVES, 3), the wave vector (x, y) in radians per pixel about p(0), and the phase in radians.
    """

    centre: Tensor
    angle: Tensor
    axes: Tensor
    strength: Tensor
    pivot: Tensor
    turn: Tensor
    waves: Tensor


class RadarLike(Dataset[Tensor]):
    """Generated clips of radar-like fields: storm cells that drift, turn, grow and decay.

    Item i is float32 (T, 1, H, W) in [0, 1] and depends on (seed, split, i) alone.

    Args:
        split: "train", "val" or "test". The splits have different fields.
        seed: an integer >= 0, the same for all splits of an experiment.
        length: the number of items. The first items do not depend on it.
        n_frames: T, inputs and targets together.
        image_size: (H, W) of the frames, in pixels.
        ranges: the ranges that the fields are drawn from; None for the defaults.

    Raises:
        ValueError: a bad argument, which the message names.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        seed: int = 0,
        length: int = 10000,
        n_frames: int = 15,
        image_size: Sequence[int] = (64, 64),
        ranges: RadarRanges | None = None,
    ) -> None:
        self.image_size = check_clips(split, n_frames, image_size)
        check_generated(seed, length)
        self.split, self.seed, self.length, self.n_frames = split, seed, length, n_frames
        self.ranges = ranges or RadarRanges()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return render(self.motion(index), self.image_size, self.ranges)

    def motion(self, index: int) -> RadarMotion:
        """Return the true motion of item `index`; raise an IndexError if there is no such item."""
        ranges, side = self.ranges, min(self.image_size)
        flow, cells, waves = self._draw(checked_index(index, self.length))
        t = torch.arange(self.n_frames, dtype=torch.float64)

        speed, heading, rotation, way, *pivot = flow
        turn = between(ranges.rotation, rotation) * (1 if way < 0.5 else -1) * t  # (T,)
        heading = 2 * math.pi * heading
        velocity = side * between(ranges.speed, speed) * torch.stack([heading.cos(), heading.sin()])  # (2,)
        middle = torch.tensor(self.image_size[::-1]) / 2
        first = middle + side * (torch.stack(pivot) - 0.5) / 2
        path = first + velocity * t[:, None]  # (T, 2)

        x, y, direction, spin, length, roundness, strength, period, phase = cells  # (N, 1) each
        start = middle + side * ranges.spread * (torch.cat([x, y], -1) - 0.5)  # (N, 2)
        centre = path + turned((start - first)[:, None], turn)  # (N, T, 2)
        angle = 360 * direction + turn + between(ranges.spin, spin) * t  # (N, T)
        wave = (math.pi * (t / between(ranges.period, period) + phase)).sin() ** 2
        growth = ranges.floor + (1 - ranges.floor) * wave  # (N, T)
        long = side * between(ranges.length, length) * growth
        axes = torch.stack([long, long * between(ranges.roundness, roundness)], -1)  # (N, T, 2)
        strength = between(ranges.strength, strength) * growth

        direction, length, phase = waves  # (N_WAVES,) each
        number = 2 * math.pi / (side * between(ranges.wavelength, length))
        direction = 2 * math.pi * direction
        waves = torch.stack([number * direction.cos(), number * direction.sin(), 2 * math.pi * phase], -1)
        return RadarMotion(centre, angle, axes, strength, path, turn, waves)

    def _draw(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw uniform numbers for the flow (6,), the storm cells (9, N, 1) and the texture (3, N_WAVES)."""
        stream = item_stream(self.seed, self.split, index)
        drawn = [stream.random(shape) for shape in ((6,), (3, N_WAVES), (self.ranges.n_cells, 9))]
        flow, waves, cells = map(torch.from_numpy, drawn)
        return flow, cells.T[..., None], waves


def render(motion: RadarMotion, image_size: Sequence[int], ranges: RadarRanges) -> Tensor:
    """Draw the frames of a motion, float32 (T, 1, H, W) in [0, 1], by the equations at the top of the module."""
    height, width = image_size
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5

    def plane(vector: Tensor, origin: Tensor) -> Tensor:
        """Return the scalar product of vectors (..., 2) and each pixel's offset from origins (..., 2): (..., H, W)."""
        columns = vector[..., :1] * (x - origin[..., :1])
        rows = vector[..., 1:] * (y - origin[..., 1:])
        return columns.float()[..., None, :] + rows.float()[..., :, None]

    along = turned(torch.tensor([1.0, 0.0]), motion.angle) / motion.axes[..., :1]  # (N, T, 2)
    across = turned(torch.tensor([0.0, 1.0]), motion.angle) / motion.axes[..., 1:]
    square = plane(along, motion.centre).square_() + plane(across, motion.centre).square_()  # (N, T, H, W)
    echo = (motion.strength.float()[..., None, None] * square.mul_(-0.5).exp_()).sum(0)  # (T, H, W)

    wave = turned(motion.waves[:, None, :2], motion.turn)  # (N_WAVES, T, 2), turned as the air is
    waves = plane(wave, motion.pivot) + motion.waves[:, 2, None, None, None].float()
    echo = echo * (1 + ranges.roughness * waves.cos_().mean(0)) - ranges.threshold
    return ((echo.clamp(0, 1) * 255).round() / 255)[:, None]


def turned(vector: Tensor, angle: Tensor) -> Tensor:
    """Rotate vectors (..., 2) clockwise on the screen by angles (...) in degrees."""
    cos, sin = angle.deg2rad().cos(), angle.deg2rad().sin()
    x, y = vector.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)
