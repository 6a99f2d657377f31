"""The shapes of every benchmark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MapShape:
    """A batch of square feature maps: what a MotionGRU sees, its encoder's output."""

    batch: int
    channels: int
    size: int

    def __str__(self) -> str:
        return f"B{self.batch} C{self.channels} {self.size}x{self.size}"


# 16x16 is Human3.6M at 128x128 with patches of 4; 64x64 shows the memory.
MAPS = (MapShape(8, 16, 16), MapShape(8, 16, 32), MapShape(16, 16, 64))
