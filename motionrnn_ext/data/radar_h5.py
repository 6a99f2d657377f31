"""Shanghai's radar echo, and any frames in its layout, as an HDF5 file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .arguments import checked_index
from .files import PathLike, PerProcess, file_at, unreadable
from .frames import StoredFrames


class RadarH5(StoredFrames):
    """Clips of radar echo from an HDF5 file, in the layout of the Shanghai data.

    An item is float32 (T, 1, H, W) in [0, 1], nan where missing. Item i is the first T frames of sequence i, or with
    `clip_step` one of the sequence's clips.

    Layout: the groups `train` and `test` each hold `all_len`, the number n of their sequences, and the sequences "0"
    to "n-1", uint8 or floats (frames, h, w); Shanghai's are uint8 and have 25 frames. Validation is the test group, as
    in DiffCast. Every process opens the file itself.

    Args:
        split: "train", "val" or "test".
        root: the file, or a folder with `shanghai.h5`.
        n_frames: T, inputs and targets together.
        image_size: (H, W) of the item; stored frames of other sizes are smoothed and resized bilinearly.
        stride: every `stride`-th frame is taken; Shanghai's come every 6 minutes.
        pixel_max: the stored value that becomes 1, see `FrameSequences`.
        missing: the stored value of pixels without data, see `FrameSequences`.
        clip_step: the distance between the first frames of a sequence's clips, in stored frames; None for one clip, at
            the sequence's start.

    Raises:
        ValueError: there is no such file or group, the file is damaged, a sequence has another type or is too short.
            The message is one line.
        ModuleNotFoundError: h5py is not installed.
    """

    def _open(self, split: str, root: PathLike) -> None:
        self.path = file_at(root, "shanghai.h5")
        self.group = "train" if split == "train" else "test"
        # The number of its sequence and the position of its first frame, for every clip.
        self.clips: list[tuple[int, int]] = []
        with _open_h5(self.path) as file:
            self.length = _length(self.path, file, self.group)
            for index in range(self.length):
                n_stored = self._check(file[self.group], index)
                starts = [0] if self.clip_step is None else self.starts(n_stored)
                self.clips += [(index, start) for start in starts]
        self._file = PerProcess(partial(_open_h5, self.path))

    def __len__(self) -> int:
        return len(self.clips)

    def sequence(self, index: int) -> int:
        """Return the number of a clip's sequence."""
        return self.clips[index][0]

    def __getitem__(self, index: int) -> Tensor:
        sequence, start = self.clips[checked_index(index, len(self.clips))]
        try:
            frames = self._file()[self.group][str(sequence)][start : start + self.span : self.stride]
        # A damaged block of the file.
        except OSError as error:
            raise ValueError(f"{self.path}: {self.group}/{sequence} cannot be read ({error})") from None
        stored = torch.from_numpy(frames if frames.dtype == "uint8" else frames.astype("float32"))
        return self.clip(stored[:, None], f"{self.path}: {self.group}/{sequence}")

    def _check(self, group: Any, index: int) -> int:
        """Return the length of sequence `index` of a group; raise a ValueError unless it is there, of the right type
        and long enough.
        """
        where = f"{self.path}: {self.group}/{index}"
        if str(index) not in group:
            raise ValueError(f"{where} is missing; all_len says that there are {self.length} sequences")
        frames = group[str(index)]
        shape, dtype = getattr(frames, "shape", None), getattr(frames, "dtype", None)
        is_right = dtype is not None and (dtype == "uint8" or dtype.kind == "f")
        if shape is None or len(shape) != 3 or not is_right or 0 in shape:
            raise ValueError(f"{where} must be frames (T, h, w) of uint8 or floats; it is {dtype} {shape}")
        self.check_missing(where, is_bytes=dtype == "uint8")
        if shape[0] < self.span:
            raise ValueError(f"{where} has {shape[0]} frames; {self.needed()}")
        return int(shape[0])


def _open_h5(path: Path) -> Any:
    """Open an HDF5 file for reading; raise a ValueError if it cannot be read."""
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise unreadable(path, error, "an HDF5 file") from None


def _length(path: Path, file: Any, group: str) -> int:
    """Return the number of sequences in a group; raise a ValueError if the group does not state it."""
    rule = f"it must have a group {group!r} with all_len, the number of its sequences '0', '1', ..."
    if group not in file or not hasattr(file[group], "keys"):
        raise ValueError(f"{path}: {rule}; it has {', '.join(sorted(file)) or 'nothing'}")
    try:
        length = int(file[group]["all_len"][()])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{path}: {rule}; there is no such number") from None
    if length < 1:
        raise ValueError(f"{path}: {group}/all_len is {length}; there must be a sequence")
    return length
