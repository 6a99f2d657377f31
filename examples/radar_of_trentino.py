"""Make a data set in the layout shanghai_h5 of the radar images in a checkout of MPBA/TAASRAD19.

    python examples/radar_of_trentino.py TAASRAD19 data/radar_trentino

The sheets of its map hold 32 x 32 frames of 64x64 each, one after the other in time.
"""

import sys
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

N_FRAMES = 25


def frames_of(checkout: Path) -> np.ndarray:
    """Return all frames in the order of time, uint8 (T, 64, 64)."""
    sheets = (checkout / "umap_explorer/public/tiles").glob("*.png")
    found = []
    for path in sorted(sheets, key=lambda path: int(path.stem.split("_")[-1])):
        grey = np.asarray(Image.open(path))[..., 0]
        rows, columns = (side // 64 for side in grey.shape)
        found.append(grey.reshape(rows, 64, columns, 64).swapaxes(1, 2).reshape(-1, 64, 64))
    return np.concatenate(found)


def wet_runs(frames: np.ndarray) -> list[np.ndarray]:
    """Return runs of frames of which 3 % of the pixels reach 15 dBZ, without a jump in time."""
    jumps = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean((1, 2)) > 10
    wet = (frames > 255 * 15 / 52.5).mean((1, 2))
    runs, first = [], 0
    while first + N_FRAMES <= len(frames):
        last = first + N_FRAMES
        if wet[first:last].mean() > 0.03 and not jumps[first : last - 1].any():
            runs.append(frames[first:last])
            first = last
        else:
            first += 1
    return runs


def main(checkout: Path, folder: Path) -> None:
    runs = wet_runs(frames_of(checkout))
    n_train = len(runs) * 7 // 8  # the last eighth is for test
    folder.mkdir(parents=True)
    with h5py.File(folder / "shanghai.h5", "w") as file:
        for group, part in (("train", runs[:n_train]), ("test", runs[n_train:])):
            file[f"{group}/all_len"] = len(part)
            for i, run in enumerate(part):
                file[f"{group}/{i}"] = run
    print(f"{n_train} sequences to train on, {len(runs) - n_train} for test: {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
