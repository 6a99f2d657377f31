"""The sequences of a folder of frames: a folder of images, an array's file or a film each.

Every kind has `path`, a length in frames, `cuts`, the positions before which the time leaps, and `read`, which returns
some frames as they are stored: uint8 or floats (T, channels, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .arrays import frames_of, read_array
from .files import PerProcess
from .images import image_files, in_channels, read_images, resized
from .times import gaps
from .videos import VIDEOS, film_frames

ARRAYS = (".npy",)
FILMS = (".gif", *VIDEOS)


class ImageFolder:
    """The images of a folder in the order of their names, which may hold times."""

    def __init__(self, path: Path, channels: int, interval: float | None) -> None:
        self.path, self.channels = path, channels
        self.frames = image_files(path)
        self.cuts = gaps([frame.stem for frame in self.frames], interval)
        self.dtype = torch.uint8

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, places: range) -> Tensor:
        return read_images([self.frames[i] for i in places], self.channels)


class ArrayFile:
    """The frames of a .npy file, which stay on the disk until they are read. They follow each other without a gap."""

    cuts: Sequence[int] = ()

    def __init__(self, path: Path, channels: int) -> None:
        self.path, self.channels = path, channels
        self._frames = PerProcess(partial(_mapped, path))
        frames = self._frames()
        self.length = len(frames)
        self.dtype = torch.uint8 if frames.dtype == "uint8" else torch.float32

    def __len__(self) -> int:
        return self.length

    def read(self, places: range) -> Tensor:
        stored = self._frames()[places.start : places.stop : places.step]
        # NumPy's conversion also copies, and brings the bytes of a number into this machine's order.
        copied = stored.astype("uint8" if self.dtype == torch.uint8 else "float32", order="C")
        return in_channels(torch.from_numpy(copied), self.channels)


class Film:
    """The frames of a video or a GIF. They are decoded once, resized to `size` if it is given, and held as bytes."""

    cuts: Sequence[int] = ()
    dtype = torch.uint8

    def __init__(self, path: Path, channels: int, size: Sequence[int] | None) -> None:
        self.path = path
        decoded = (torch.from_numpy(frame).permute(2, 0, 1)[None] for frame in film_frames(path))
        frames = (in_channels(frame, channels) for frame in decoded)
        kept = [frame if size is None else resized(frame, size, antialias=True) for frame in frames]
        self.frames = torch.cat(kept) if kept else torch.empty(0, channels, 1, 1)

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, places: range) -> Tensor:
        return self.frames[places.start : places.stop : places.step]


StoredSequence = ImageFolder | ArrayFile | Film


def is_sequence(path: Path) -> bool:
    """Return whether a path is that of a sequence: a folder, or a file whose ending is one of those above."""
    return path.name[0] != "." and (path.is_dir() or path.suffix.lower() in (*ARRAYS, *FILMS))


def open_sequence(
    path: Path, channels: int, size: Sequence[int] | None, interval: float | None = None
) -> StoredSequence:
    """Return the sequence at a path.

    Args:
        path: a path for which `is_sequence` is true.
        channels: 1 for luma, 3 for RGB.
        size: (H, W), to which films are resized; None if they may hold values that must not be mixed, such as a
            no-data value.
        interval: the time between the frames of a folder of images, see `gaps`.

    Raises:
        ValueError: a file is damaged or of another kind.
        ModuleNotFoundError: no package that reads videos is installed.
    """
    if path.is_dir():
        return ImageFolder(path, channels, interval)
    return ArrayFile(path, channels) if path.suffix.lower() in ARRAYS else Film(path, channels, size)


def _mapped(path: Path) -> Any:
    """Return the frames (T, 1 or 3, H, W) of a .npy file, mapped into memory."""
    return frames_of(read_array(path), path)
