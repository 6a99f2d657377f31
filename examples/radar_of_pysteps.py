"""Make data sets in the layout shanghai_png of Finland's and Switzerland's radar in pysteps-data.

    python examples/radar_of_pysteps.py pysteps-data data

Tiles of 128x128 go to data/radar_fmi and data/radar_mch; 255 is 70 dBZ.
"""

import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def finland(path: Path) -> np.ndarray:
    """Return reflectivities in dBZ, 0 where no radar looks."""
    with gzip.open(path) as file:
        stored = np.asarray(Image.open(file)).astype(float)
    return np.where(stored == 255, 0, (stored - 64) / 2)


def switzerland(path: Path) -> np.ndarray:
    """Return reflectivities in dBZ of the rain rates in mm/h that the colours stand for."""
    index = np.asarray(Image.open(path)).astype(float)
    rate = (10 ** ((index - 71.5) / 20) / 316) ** (1 / 1.5)
    return np.where((index < 2) | (index > 250), 0, 10 * np.log10(200 * rate**1.6))


def write_tiles(events: Path, read: Callable[[Path], np.ndarray], root: Path) -> None:
    """Write the tiles in which 2 % of the values reach 15 dBZ; the last event is for test."""
    folders = sorted(events.iterdir())
    for folder in folders:
        images = [read(path) for path in sorted(folder.iterdir()) if path.suffix in (".gz", ".gif")]
        grey = (np.stack(images).clip(0, 70) / 70 * 255).round().astype(np.uint8)  # (T, H, W)
        split = "test" if folder == folders[-1] else "train"
        for y in range(0, grey.shape[1] - 127, 128):
            for x in range(0, grey.shape[2] - 127, 128):
                tile = grey[:, y : y + 128, x : x + 128]
                if (tile > 255 * 15 / 70).mean() > 0.02:
                    sequence = root / split / f"{folder.name}_y{y:04d}_x{x:04d}"
                    sequence.mkdir(parents=True)
                    for t, frame in enumerate(tile):
                        Image.fromarray(frame).save(sequence / f"{t:04d}.png")
        print(f"{folder} is for {split}")


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    write_tiles(source / "radar/fmi/pgm", finland, target / "radar_fmi")
    write_tiles(source / "radar/mch", switzerland, target / "radar_mch")
