"""Define the shapes of every benchmark."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple


@dataclass(frozen=True)
class MapShape:
    """A batch of square feature maps, as a MotionGRU's encoder puts them out."""

    batch: int
    channels: int
    size: int

    def __str__(self) -> str:
        return f"B{self.batch} C{self.channels} {self.size}x{self.size}"

    @property
    def pixels(self) -> int:
        return self.batch * self.size**2


# Maps of 16x16 are those of Human3.6M at 128x128 with patches of 4; 64x64 shows the memory.
MAPS = (MapShape(8, 16, 16), MapShape(8, 16, 32), MapShape(16, 16, 64))


# What the cells of PredRNN convolve. The dry run's is the smallest that the package's convolution takes.
CONVOLVED_MAPS = (MapShape(1, 64, 16), MapShape(4, 64, 16), MapShape(1, 64, 32))
DRY_RUN_CONVOLVED_MAPS = (MapShape(1, 32, 8),)


class GpuMaps(NamedTuple):
    """Maps from small ones, where the launch decides, to one that fills the card."""

    small: MapShape
    medium: MapShape
    large: MapShape
    full: MapShape


GPU_MAPS = GpuMaps(*MAPS, MapShape(32, 32, 128))
# Maps of the recurrent cells, as PredRNN at 64x64 with patches of 4 has them, and narrower and wider ones.
RECURRENT_MAPS = tuple(MapShape(batch, channels, 16) for batch in (1, 4) for channels in (32, 64, 128))
# Tiny maps try the programs; their times say nothing.
DRY_RUN_MAPS = GpuMaps(*[MapShape(batch, 4, 6) for batch in (1, 2, 3, 4)])
# tests/bench/test_counts.py counts at this shape.
COUNTED_MAP = MapShape(2, 16, 16)


# The MotionGRU by the sizes of its kernels: that of the official program, and the paper's, the package's default.
VARIANTS: dict[str, dict[str, Any]] = {
    "official": {
        "encoder_kernel_size": 5,
        "gate_kernel_size": 3,
        "mask_kernel_size": 3,
        "blend_kernel_size": 5,
    },
    "paper": {},
}


@dataclass(frozen=True)
class ModelSetting:
    """A MotionRNN-PredRNN and its clips: `given` frames (B, C, size, size), followed by `predicted` ones."""

    name: str
    channels: int
    size: int
    given: int
    predicted: int
    batch: int = 1
    patch: int = 4
    hidden: tuple[int, ...] = (64, 64, 64, 64)
    filter_size: int = 5

    def __str__(self) -> str:
        return f"B{self.batch} T{self.total} {self.channels}x{self.size}x{self.size}"

    @property
    def total(self) -> int:
        return self.given + self.predicted

    def of_batch(self, batch: int) -> ModelSetting:
        return replace(self, batch=batch)


# The official program's script has these sizes, and this batch.
HUMAN36M = ModelSetting("human36m", 3, 128, given=4, predicted=4)
GPU_BATCH = 8
VMNIST = ModelSetting("vmnist", 1, 64, given=10, predicted=10)
QUICK = ModelSetting("quick", 1, 64, given=2, predicted=2, hidden=(32, 32, 32))
DRY_RUN = ModelSetting("dry run", 1, 16, given=2, predicted=2, patch=2, hidden=(8, 8), filter_size=3)
# Base predictors beside OpenSTL's networks; the kernels of its E3D-LSTM are 5x5.
BASE = ModelSetting("base predictor", 1, 64, given=4, predicted=4)
BASE_BATCHES = (1, 4)
BASE_DRY_RUN = replace(DRY_RUN, name="base predictor", filter_size=5)
SETTINGS = {setting.name: setting for setting in (HUMAN36M, VMNIST, QUICK)}
