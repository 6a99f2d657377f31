"""The shapes of every benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class MapShape:
    """A batch of square feature maps: what a MotionGRU sees, its encoder's output."""

    batch: int
    channels: int
    size: int

    def __str__(self) -> str:
        return f"B{self.batch} C{self.channels} {self.size}x{self.size}"

    @property
    def pixels(self) -> int:
        return self.batch * self.size**2


# 16x16 is Human3.6M at 128x128 with patches of 4; 64x64 shows the memory.
MAPS = (MapShape(8, 16, 16), MapShape(8, 16, 32), MapShape(16, 16, 64))


class GpuMaps(NamedTuple):
    """From launches that the card does not notice to one that fills it."""

    small: MapShape
    medium: MapShape
    large: MapShape
    full: MapShape


GPU_MAPS = GpuMaps(*MAPS, MapShape(32, 32, 128))
DRY_RUN_MAPS = GpuMaps(*[MapShape(batch, 4, 6) for batch in (1, 2, 3, 4)])  # to try the programs, not to time
