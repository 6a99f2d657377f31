"""Shanghai's radar echo, and radar echo of other places in the same layouts: one grey channel.

`RadarH5`       `shanghai.h5`
`RadarImages`   folders of PNG frames

Frames of other sizes are brought to `image_size` bilinearly and smoothed before, so that no echo falls between the
pixels. `pixel_max` is the stored value that counts as 1: 255 for greys; for files whose bytes are the physical values
themselves, the value that is to count as 1. Which of the two a file holds, it does not say: look at its values before
CSI and FAR at thresholds in dBZ are believed. Higher values count as 1 too, with a warning.

`missing` is the stored value of pixels that have no data, where the radar does not see. They are nan in the item; in a
frame that is resized, a pixel is the mean of what has data, and nan where that is less than half of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..pixels import marked
from .digits import SPLITS
from .files import PathLike, PerProcess, check_clips, file_at, names_in, unreadable
from .images import image_files, read_images, resized_known
from .times import LONGEST_STEP, gaps

_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class _Radar(Dataset[Tensor]):
    """What both layouts do with the frames of a clip."""

    def __init__(
        self,
        split: str,
        root: PathLike,
        *,
        n_frames: int = 15,
        image_size: Sequence[int] = (64, 64),
        stride: int = 1,
        pixel_max: float = 255,
        missing: float | None = None,
    ) -> None:
        self.image_size = check_clips(split, n_frames, image_size)
        if stride < 1:
            raise ValueError(f"stride must be at least 1; got {stride}")
        if not 0 < pixel_max <= 255:
            raise ValueError(f"pixel_max must be above 0, at most 255; got {pixel_max}")
        if missing is not None and missing not in range(256):
            raise ValueError(f"missing must be a stored value, a whole number from 0 to 255; got {missing:g}")
        self.n_frames, self.stride, self.pixel_max, self.missing = n_frames, stride, pixel_max, missing
        self._has_warned = False
        self.span = (n_frames - 1) * stride + 1  # stored frames from a clip's first to its last
        self._open(split, root)

    def _open(self, split: str, root: PathLike) -> None:
        """Find the split's sequences."""
        raise NotImplementedError

    def _clip(self, stored: Tensor, where: str) -> Tensor:
        """uint8 (T, h, w) -> float32 (T, 1, H, W), nan where missing."""
        frames = marked(stored.float() / self.pixel_max, stored, self.missing)
        self._warn_above_maximum(frames, where)
        return resized_known(frames, self.image_size, antialias=True).clamp(0, 1)[:, None]

    def _warn_above_maximum(self, frames: Tensor, where: str) -> None:
        """Say once in a process that stored values exceed `pixel_max`."""
        if self.pixel_max < 255 and not self._has_warned and (above := frames > 1).any():
            self._has_warned = True
            highest = frames.nan_to_num(0).max().item() * self.pixel_max
            warnings.warn(
                f"{where}: {above.float().mean().item():.2%} of the pixels are above pixel_max {self.pixel_max:g}, up "
                f"to {highest:.0f}, and count as 1 (so may those of other clips); if {highest:.0f} means no data, "
                "declare it with missing (--missing)",
                stacklevel=3,
            )

    def _needed(self) -> str:
        stride = "" if self.stride == 1 else f" at stride {self.stride}"
        return f"{self.n_frames} frames{stride} need {self.span}"


class RadarH5(_Radar):
    """Sequences of an HDF5 file: item i is float32 (T, 1, H, W) in [0, 1], the first T frames of sequence i.

    Layout: groups `train` and `test`, each with `all_len`, the number n of its sequences, and the sequences "0" to
    "n-1", uint8 (25, h, w). Validation is the test group, as in DiffCast. The file is opened in every process anew.

    Args:
        split: "train", "val" or "test".
        root: the file, or a folder with `shanghai.h5`.
        n_frames: T, inputs and targets together.
        image_size: (H, W).
        stride: take every `stride`-th frame; Shanghai's come every 6 minutes.
        pixel_max, missing: see the module's text.

    Raises:
        ValueError: no such file or group, a damaged file, a sequence of another type or too short. One line.
        ModuleNotFoundError: without h5py.
    """

    def _open(self, split: str, root: PathLike) -> None:
        self.path = file_at(root, "shanghai.h5")
        self.group = "train" if split == "train" else "test"
        with _open_h5(self.path) as file:
            self.length = _length(self.path, file, self.group)
            for index in range(self.length):
                self._check(file[self.group], index)
        self._file = PerProcess(partial(_open_h5, self.path))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        if not -self.length <= index < self.length:
            raise IndexError(f"index must be in 0..{self.length - 1}; got {index}")
        name = str(index % self.length)
        try:
            frames = self._file()[self.group][name][: self.span : self.stride]
        except OSError as error:  # a damaged block
            raise ValueError(f"{self.path}: {self.group}/{name} cannot be read ({error})") from None
        return self._clip(torch.from_numpy(frames), f"{self.path}: {self.group}/{name}")

    def _check(self, group: Any, index: int) -> None:
        where = f"{self.path}: {self.group}/{index}"
        if str(index) not in group:
            raise ValueError(f"{where} is not there; all_len says that there are {self.length} sequences")
        frames = group[str(index)]
        shape, dtype = getattr(frames, "shape", None), getattr(frames, "dtype", None)
        if shape is None or len(shape) != 3 or dtype != "uint8" or 0 in shape:
            raise ValueError(f"{where} must be frames (T, h, w) of uint8; it is {dtype} {shape}")
        if shape[0] < self.span:
            raise ValueError(f"{where} has {shape[0]} frames; {self._needed()}")


def _open_h5(path: Path) -> Any:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise unreadable(path, error, "no HDF5 file") from None


def _length(path: Path, file: Any, group: str) -> int:
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


class RadarImages(_Radar):
    """Sequences in folders of PNG files: item i is float32 (T, 1, H, W) in [0, 1].

    Layout: `<root>/<split>/<sequence>/<frame>.png` with splits `train`, `val` (or `valid`, `validation`) and `test`;
    frames are in the order of their names, numbers in them by value. Without a folder for validation that is the test
    split. With none of these folders `<root>/<sequence>/<frame>.png` is split by position: of the sequences sorted by
    name, the first eight tenths are for training, the next tenth for validation, the last for test, each at least one.

    A sequence gives as many clips as fit into it one after the other, and what is left over is not used.
    jpg files, colours and palettes are taken too, as luma.

    No clip spans a gap in time: a sequence is cut wherever the step between the times in two names is longer than 1.5
    times the sequence's median step, and each part gives as many clips as fit into it. A warning says how many gaps
    there are and how many clips they cost. `times.gaps` says how names are read.

    Args and Raises: as `RadarH5`; a folder without frames or with too few is a ValueError at once, as are gaps that
    leave no clip; frames of several sizes in a clip are one when it is read.
    """

    def _open(self, split: str, root: PathLike) -> None:
        self.clips: list[list[Path]] = []
        n_gaps = n_joined = 0
        for folder in _sequences(Path(root), split):
            frames = image_files(folder)
            if len(frames) < self.span:
                raise ValueError(
                    f"{folder}: a sequence is a folder of frames; it has {len(frames)} png files, "
                    f"{self._needed()}"
                )
            cuts = [0, *gaps([path.stem for path in frames]), len(frames)]
            parts = [frames[first:last] for first, last in pairwise(cuts)]
            self.clips += [clip for part in parts for clip in self._clips_of(part)]
            n_gaps, n_joined = n_gaps + len(parts) - 1, n_joined + len(self._clips_of(frames))
        if n_gaps:
            lost = (
                f"{root}: {n_gaps} of the steps in time between frames are longer than {LONGEST_STEP} times the usual "
                f"one; no clip spans such a gap: there are {len(self.clips)} clips for {split}, without this rule "
                f"there would be {n_joined}"
            )
            if not self.clips:
                raise ValueError(f"{lost}; {self._needed()}")
            warnings.warn(lost, stacklevel=4)

    def _clips_of(self, frames: Sequence[Path]) -> list[list[Path]]:
        """As many clips as fit into frames one after the other."""
        starts = range(0, len(frames) - self.span + 1, self.span)
        return [list(frames[start : start + self.span : self.stride]) for start in starts]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        paths = self.clips[index]
        return self._clip(read_images(paths, 1)[:, 0], str(paths[0].parent))


def _sequences(root: Path, split: str) -> list[Path]:
    """The folders of a split's sequences."""
    names = [name for name in names_in(root) if (root / name).is_dir() and name[0] != "."]
    folders = {part: next((n for n in _FOLDERS[part] if n in names), None) for part in SPLITS}
    if any(folders.values()):
        chosen = folders[split] or (folders["test"] if split == "val" else None)
        if chosen is None:
            raise ValueError(f"{root}: there is no folder {split!r} beside {', '.join(names)}")
        inside = [name for name in names_in(root / chosen) if (root / chosen / name).is_dir()]
        found = [root / chosen / name for name in inside if name[0] != "."]
        if not found:
            raise ValueError(f"{root / chosen}: no folder of a sequence is in it")
        return found
    if len(names) < 3:
        raise ValueError(
            f"{root}: it must hold <split>/<sequence>/<frame>.png with splits train and test, or at least 3 "
            f"folders of sequences; it has {len(names)} folders"
        )
    held = max(1, len(names) // 10)
    bounds = {"train": (0, -2 * held), "val": (-2 * held, -held), "test": (-held, None)}
    first, last = bounds[split]
    return [root / name for name in names[first:last]]
