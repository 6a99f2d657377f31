"""Small real files in the layouts that the data sets read; each writer returns the arrays that it wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]


def noise(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int, seed: int) -> Bytes:
    """An image (H, W, 3) that survives JPEG."""
    image = Image.fromarray(noise(4, 5, 3, seed=seed))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def write_jpg(path: Path, seed: int, size: tuple[int, int] = (46, 50)) -> Bytes:
    """Returns what a reader finds, RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(smooth(*size, seed)).save(path, quality=95)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def write_human36m(root: Path, videos: dict[str, int], size: tuple[int, int] = (46, 50)) -> dict[str, Bytes]:
    """`videos`: "S1_Walking_1.54138969" -> number of frames, numbered 1, 6, 11, ..."""
    return {
        f"{video}_{1 + 5 * i:06d}.jpg": write_jpg(root / f"{video}_{1 + 5 * i:06d}.jpg", 100 * v + i, size)
        for v, (video, n) in enumerate(videos.items())
        for i in range(n)
    }


def write_openstl(root: Path, n_frames: int = 8) -> None:
    """Two clips to train on and one for test."""
    clips = {"train": ["S1_Directions.54138969", "S5_Walking.60457274"], "test": ["S9_Eating_1.55011271"]}
    for v, (split, videos) in enumerate(clips.items()):
        lines = [f"images/{video}_,226,{226 + 70}" for video in videos]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for w, video in enumerate(videos):
            for t in range(n_frames):
                write_jpg(root / f"images/{video}_{226 + 5 * t:06d}.jpg", 1000 * v + 100 * w + t, (40, 36))


def write_h5(path: Path, n: int = 3, frames: int = 25, size: tuple[int, int] = (20, 24)) -> dict[str, Bytes]:
    import h5py

    written = {}
    with h5py.File(path, "w") as file:
        for s, split in enumerate(("train", "test")):
            file[f"{split}/all_len"] = n
            for i in range(n):
                written[f"{split}/{i}"] = noise(frames, *size, seed=10 * s + i)
                file[f"{split}/{i}"] = written[f"{split}/{i}"]
    return written


def write_pngs(root: Path, sequences: list[str], frames: int = 8, size: tuple[int, int] = (16, 16)) -> None:
    for s, sequence in enumerate(sequences):
        (root / sequence).mkdir(parents=True)
        for t in range(frames):
            Image.fromarray(noise(*size, seed=100 * s + t)).save(root / sequence / f"{t}.png")


def write_npz(
    root: Path, n: int = 4, size: int = 16, frames: int = 20, compressed: bool = False
) -> dict[str, NDArray[np.float32]]:
    """Every clip's frames, the first half its inputs; the clips lie in the file in reverse."""
    written = {}
    for s, name in enumerate(("train", "valid", "test")):
        raw = noise(n * frames, 1, size, size, seed=s).astype(np.float32) / 255
        half = frames // 2
        starts = [(n - 1 - i) * frames for i in range(n)]
        clips = np.array([[(a, half) for a in starts], [(a + half, half) for a in starts]], np.int32)
        save = np.savez_compressed if compressed else np.savez
        path = root / f"moving-mnist-{name}.npz"
        save(path, clips=clips, dims=np.array([[1, size, size]], np.int32), input_raw_data=raw)
        written[name] = raw.reshape(n, frames, 1, size, size)[::-1]
    return written


def write_npy(path: Path, n: int = 5, size: int = 16, frames: int = 20) -> Bytes:
    frames_of_clips = noise(frames, n, size, size)
    np.save(path, frames_of_clips)
    return frames_of_clips
