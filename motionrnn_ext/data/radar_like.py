"""Radar-like fields: cells of echo that drift, turn about a common centre, spin, grow and decay.

As with the moving digits, each item is a pure function of (seed, split, index), and the same item with more frames
begins with the same frames. Real radar echo has no such simple law; these clips are there so that everything made for
radar runs, and can be learnt from, without data.

Notation: N cells, T frames, H, W frame size, S = min(H, W). Positions X are in pixels, x to the right and y down, and
pixel (i, j) has its centre at (j + 1/2, i + 1/2). R(a) turns by the angle a, clockwise on the screen.

The flow carries every point of the air, the cells' centres with it: from P in frame 0 to

    flow(P, t) = p(t) + R(w t) (P - p(0)),    p(t) = p(0) + v t          v steering, w rotation about p

A cell k in frame t has the centre c_k(t) = flow(c_k, t), the direction a_k + (w + s_k) t of its long axis with a spin
s_k of its own, half widths g_k(t) (l_k, m_k) and the strength b_k g_k(t); it grows and decays, again and again, by

    g_k(t) = floor + (1 - floor) sin^2(pi (t / period_k + phase_k))

The echo at a point is the sum over cells of strength * exp(-d^2 / 2), d the elliptic distance in half widths, times
a texture that drifts with the flow: 1 + roughness * the mean of `N_WAVES` plane waves. The pixel shows what exceeds
`threshold`, in steps of 1/255 as radar images do:  min(1, echo - threshold), or 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .files import check_clips
from .generated import Range, between, check_generated, item_stream

N_WAVES = 8


@dataclass(frozen=True)
class RadarRanges:
    """What is drawn, uniformly: (lowest, highest). Lengths are in units of S, times in frames, angles in degrees."""

    n_cells: int = 30
    spread: float = 2.0  # side of the square about the frame's middle in which cells start
    speed: Range = (0.006, 0.03)  # of the steering flow, in any direction
    rotation: Range = (1.0, 5.0)  # about the common centre, per frame; either way
    spin: Range = (-4.0, 4.0)  # of a cell on its own, per frame
    length: Range = (0.08, 0.2)  # half width along a cell's long axis
    roundness: Range = (0.35, 0.9)  # short axis / long axis
    strength: Range = (0.4, 1.1)
    floor: float = 0.3  # what is left of a cell at its weakest
    period: Range = (14.0, 40.0)  # from one peak of growth to the next
    roughness: float = 1.3
    wavelength: Range = (0.12, 0.6)
    threshold: float = 0.12


class RadarMotion(NamedTuple):
    """The true motion behind an item."""

    centre: Tensor  # (N, T, 2) float64, x and y in pixels
    angle: Tensor  # (N, T) float64, direction of the long axis, degrees
    axes: Tensor  # (N, T, 2) float64, half widths along and across it, pixels
    strength: Tensor  # (N, T) float64
    pivot: Tensor  # (T, 2) float64, the common centre p(t)
    turn: Tensor  # (T,) float64, w t in degrees
    waves: Tensor  # (N_WAVES, 3) float64: wave vector (x, y) in radians per pixel about p(0), and phase


class RadarLike(Dataset[Tensor]):
    """Clips of radar-like fields: item i is float32 (T, 1, H, W) in [0, 1], a function of (seed, split, i) alone.

    Args:
        split: "train", "val" or "test": different fields.
        seed: an integer >= 0, the same for all splits of an experiment.
        length: number of items; the first ones do not depend on it.
        n_frames: T, inputs and targets together.
        image_size: (H, W).
        ranges: what the fields are drawn from.

    Raises:
        ValueError: a bad argument, named.
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
        """The true motion of item `index`."""
        if not -self.length <= index < self.length:
            raise IndexError(f"index must be in 0..{self.length - 1}; got {index}")
        ranges, side = self.ranges, min(self.image_size)
        flow, cells, waves = self._draw(index % self.length)
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
        """Uniform numbers of the flow (6,), the cells (9, N, 1) and the texture (3, N_WAVES)."""
        stream = item_stream(self.seed, self.split, index)
        drawn = [stream.random(shape) for shape in ((6,), (3, N_WAVES), (self.ranges.n_cells, 9))]
        flow, waves, cells = map(torch.from_numpy, drawn)
        return flow, cells.T[..., None], waves


def render(motion: RadarMotion, image_size: Sequence[int], ranges: RadarRanges) -> Tensor:
    """Frames (T, 1, H, W) float32 of a motion, as the module's text says."""
    height, width = image_size
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5

    def plane(vector: Tensor, origin: Tensor) -> Tensor:
        """The scalar product of (..., 2) with each pixel's distance from origin (..., 2): float32 (..., H, W)."""
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
    """R(angle) times vectors (..., 2); angle (...) in degrees."""
    cos, sin = angle.deg2rad().cos(), angle.deg2rad().sin()
    x, y = vector.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)
