"""Sequences of grey frames: Shanghai's radar echo as an HDF5 file, and any frames as folders of images.

`RadarH5`       `shanghai.h5`
`RadarImages`   folders of images: radar echo, or any other frames

Frames of other sizes are smoothed and resized bilinearly to `image_size`, so that no echo is lost between pixels.

`pixel_max` is the stored value that becomes 1. It is 255 for grey levels. For files whose bytes are physical values, it
is the physical value that becomes 1. A file does not say which of the two it holds: look at its values before you
trust CSI and FAR at thresholds in dBZ. Higher values become 1 too, with a warning.

`missing` is the stored value of pixels without data, such as those that a radar does not see. They are nan in the item.
In a resized frame, a pixel is the mean of the pixels with data, and nan if these have less than half of the weight.
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

from ..caller import stacklevel_of_user
from ..pixels import marked
from .arguments import SPLITS, check_clips, checked_index
from .files import PathLike, PerProcess, file_at, names_in, unreadable
from .images import image_files, read_images, resized_known
from .times import LONGEST_STEP, gaps

_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class _GreyFrames(Dataset[Tensor]):
    """The base of both layouts: checked arguments, and the conversion of stored frames to a clip."""

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
        # The number of stored frames from a clip's first to its last.
        self.span = (n_frames - 1) * stride + 1
        self._open(split, root)

    def _open(self, split: str, root: PathLike) -> None:
        """Find and check the split's sequences."""
        raise NotImplementedError

    def _clip(self, stored: Tensor, where: str) -> Tensor:
        """Convert stored frames, uint8 (T, h, w), to float32 (T, 1, H, W) in [0, 1], nan where missing."""
        frames = marked(stored.float() / self.pixel_max, stored, self.missing)
        self._warn_above_maximum(frames, where)
        return resized_known(frames, self.image_size, antialias=True).clamp(0, 1)[:, None]

    def _warn_above_maximum(self, frames: Tensor, where: str) -> None:
        """Warn, once for a data set in a process, that stored values exceed `pixel_max`."""
        if self.pixel_max < 255 and not self._has_warned and (above := frames > 1).any():
            self._has_warned = True
            highest = frames.nan_to_num(0).max().item() * self.pixel_max
            warnings.warn(
                f"{where}: {above.float().mean().item():.2%} of the pixels are above pixel_max {self.pixel_max:g}, up "
                f"to {highest:.0f}, and count as 1 (so may those of other clips); if {highest:.0f} means no data, "
                "declare it with missing (--missing)",
                stacklevel=stacklevel_of_user(),
            )

    def _needed(self) -> str:
        """Return the end of a message about a sequence that is too short."""
        stride = "" if self.stride == 1 else f" at stride {self.stride}"
        return f"{self.n_frames} frames{stride} need {self.span}"


class RadarH5(_GreyFrames):
    """Clips of radar echo from an HDF5 file, in the layout of the Shanghai data.

    Item i is float32 (T, 1, H, W) in [0, 1], nan where missing: the first T frames of sequence i.

    Layout: the groups `train` and `test` each hold `all_len`, the number n of their sequences, and the sequences "0"
    to "n-1", uint8 (frames, h, w); Shanghai's have 25 frames. Validation is the test group, as in DiffCast. Every
    process opens the file itself.

    Args:
        split: "train", "val" or "test".
        root: the file, or a folder with `shanghai.h5`.
        n_frames: T, inputs and targets together.
        image_size: (H, W) of the item; stored frames of other sizes are smoothed and resized bilinearly.
        stride: every `stride`-th frame is taken; Shanghai's come every 6 minutes.
        pixel_max: the stored value that becomes 1, above 0 and at most 255: 255 for grey levels, a physical value for
            bytes that are physical values. Higher values become 1 too, with a warning.
        missing: the stored value of pixels without data, 0 to 255, which are nan in the item; None if there are none.

    Raises:
        ValueError: there is no such file or group, the file is damaged, a sequence has another type or is too short.
            The message is one line.
        ModuleNotFoundError: h5py is not installed.
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
        name = str(checked_index(index, self.length))
        try:
            frames = self._file()[self.group][name][: self.span : self.stride]
        # A damaged block of the file.
        except OSError as error:
            raise ValueError(f"{self.path}: {self.group}/{name} cannot be read ({error})") from None
        return self._clip(torch.from_numpy(frames), f"{self.path}: {self.group}/{name}")

    def _check(self, group: Any, index: int) -> None:
        """Raise a ValueError unless a group holds the sequence `index`, of the right type and long enough."""
        where = f"{self.path}: {self.group}/{index}"
        if str(index) not in group:
            raise ValueError(f"{where} is missing; all_len says that there are {self.length} sequences")
        frames = group[str(index)]
        shape, dtype = getattr(frames, "shape", None), getattr(frames, "dtype", None)
        if shape is None or len(shape) != 3 or dtype != "uint8" or 0 in shape:
            raise ValueError(f"{where} must be frames (T, h, w) of uint8; it is {dtype} {shape}")
        if shape[0] < self.span:
            raise ValueError(f"{where} has {shape[0]} frames; {self._needed()}")


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


class RadarImages(_GreyFrames):
    """Clips of grey frames from folders of image files: radar echo, or any other frames.

    An item is float32 (T, 1, H, W) in [0, 1], nan where missing.

    Layout: `<root>/<split>/<sequence>/<frame>.png` with the splits `train`, `val` (or `valid`, `validation`) and
    `test`. Frames are in the order of their names, in which numbers count by their value. Without a folder for
    validation the test split serves for it. Without any of these folders, `<root>/<sequence>/<frame>.png` is split by
    position: of the sequences sorted by name, the first eight tenths are for training, the next tenth is for
    validation and the last for test, each at least one.

    A sequence is cut into clips that follow each other without overlap; frames left over are not used. jpg files,
    colours and palettes are read too, as luma.

    No clip spans a gap in time: a sequence is cut wherever the step between the times in two names is longer than 1.5
    times the sequence's median step. A warning states the number of gaps and of the clips that they cost. A name's time
    is the date and time of day in it, or else its last number, as a time of day or as a count (see `times.gaps`).

    Args:
        split: "train", "val" or "test".
        root: the folder with the splits or the sequences.
        n_frames: T, inputs and targets together.
        image_size: (H, W) of the item; stored frames of other sizes are smoothed and resized bilinearly.
        stride: every `stride`-th frame is taken.
        pixel_max: the stored value that becomes 1, see `RadarH5`.
        missing: the stored value of pixels without data, see `RadarH5`.

    Raises:
        ValueError: a folder has no frames or too few, or gaps leave no clip; at an item, an image is damaged, or the
            frames of the clip have several sizes. The message is one line.
        ModuleNotFoundError: pillow is not installed.
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
            warnings.warn(lost, stacklevel=stacklevel_of_user())

    def _clips_of(self, frames: Sequence[Path]) -> list[list[Path]]:
        """Return the clips that fit into frames one after the other."""
        starts = range(0, len(frames) - self.span + 1, self.span)
        return [list(frames[start : start + self.span : self.stride]) for start in starts]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        paths = self.clips[index]
        return self._clip(read_images(paths, 1)[:, 0], str(paths[0].parent))


def _sequences(root: Path, split: str) -> list[Path]:
    """Return the folders of a split's sequences."""
    names = [name for name in names_in(root) if (root / name).is_dir() and name[0] != "."]
    folders = {part: next((n for n in _FOLDERS[part] if n in names), None) for part in SPLITS}
    if any(folders.values()):
        chosen = folders[split] or (folders["test"] if split == "val" else None)
        if chosen is None:
            raise ValueError(f"{root}: there is no folder {split!r} beside {', '.join(names)}")
        inside = [name for name in names_in(root / chosen) if (root / chosen / name).is_dir()]
        found = [root / chosen / name for name in inside if name[0] != "."]
        if not found:
            raise ValueError(f"{root / chosen}: it has no folder of a sequence")
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
