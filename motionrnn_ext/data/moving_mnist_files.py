"""Moving MNIST in its published files: one grey channel, 20 frames of 64x64."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..pixels import ROUNDING, as_floats, how_to_declare, marked, undeclared, value_range
from .arguments import check_clips
from .files import PathLike, PerProcess, file_at, unreadable
from .images import resized_known

_NPZ = {
    "train": "moving-mnist-train.npz",
    "val": "moving-mnist-valid.npz",
    "test": "moving-mnist-test.npz",
}
_TORONTO = "mnist_test_seq.npy"


class MovingMNISTNpz(Dataset[Tensor]):
    """Clips of Moving MNIST from the files of PredRNN's, MIM's and E3D-LSTM's programs.

    An item is float32 (T, 1, H, W) in [0, 1], nan where missing.

    Layout: `moving-mnist-train.npz`, `moving-mnist-valid.npz` and `moving-mnist-test.npz`, each with

        input_raw_data   (M, 1, h, w), floats in [0, 1] or uint8: the frames of all clips
        clips            (2, n, 2), integers: clips[0, i] = (first frame, count) of clip i's inputs, clips[1, i] of
                         its targets
        dims             (1, 3): 1, h, w; not needed

    An item takes the first T frames of its inputs and targets together. All n clips are used; the programs above leave
    out the last full batch.

    The frames of an uncompressed file, as `numpy.savez` writes it, stay on the disk. Those of a compressed file are
    held in memory as float32, 3.3 GB for 10,000 clips.

    Args:
        split: "train", "val" or "test".
        root: the folder with the three files.
        n_frames: T, inputs and targets together.
        image_size: (H, W) of the item; stored frames of other sizes are resized bilinearly.
        missing: the stored value of pixels without data, or nan; these pixels are nan in the item. None if every pixel
            has data.

    Raises:
        ValueError: there is no such file, it is damaged, an array has another shape or type, or a clip is too short; at
            an item, values lie outside of [0, 1]. The message is one line.
    """

    def __init__(
        self,
        split: str,
        root: PathLike,
        *,
        n_frames: int = 20,
        image_size: Sequence[int] = (64, 64),
        missing: float | None = None,
    ) -> None:
        self.image_size, self.missing = check_clips(split, n_frames, image_size), missing
        self.n_frames, self.path = n_frames, Path(root) / _NPZ[split]
        if not self.path.is_file():
            fault = (
                f"{root}: this is a file" if Path(root).is_file() else f"{self.path}: there is no such file"
            )
            raise ValueError(f"{fault}; root must be the folder with {', '.join(_NPZ.values())}")
        clips = _member(self.path, "clips")
        in_place = _mapped_member(self.path, "input_raw_data")
        frames = _member(self.path, "input_raw_data") if in_place is None else in_place
        self._check_frames(frames)
        self.clips = self._checked_clips(clips, len(frames))  # (2, n, 2)
        self._frames: Callable[[], Any]
        if in_place is None:
            self._frames = _Held(frames)
        else:
            self._frames = PerProcess(partial(_mapped_member, self.path, "input_raw_data"))

    def __len__(self) -> int:
        return self.clips.shape[1]

    def __getitem__(self, index: int) -> Tensor:
        frames, spans = self._frames(), self.clips[:, index].tolist()
        rows = [row for first, count in spans for row in range(first, first + count)][: self.n_frames]
        return _unit(frames[rows], f"{self.path}: clip {index}", self.image_size, self.missing)

    def _check_frames(self, frames: Any) -> None:
        """Raise a ValueError unless the stored frames are (M, 1, h, w), floats or uint8."""
        is_right = frames.ndim == 4 and frames.shape[1] == 1 and frames.size
        if not is_right or not (frames.dtype.kind == "f" or frames.dtype == "uint8"):
            found = f"{frames.dtype} {frames.shape}"
            raise ValueError(
                f"{self.path}: input_raw_data must be frames (M, 1, h, w), float or uint8; it is {found}"
            )

    def _checked_clips(self, clips: Any, n_stored: int) -> Tensor:
        """Return the spans of the clips, int64 (2, n, 2); raise a ValueError unless they fit the stored frames."""
        if clips.ndim != 3 or clips.shape[::2] != (2, 2) or clips.dtype.kind not in "iu" or not clips.size:
            raise ValueError(
                f"{self.path}: clips must be integers (2, n, 2), (first frame, count) each; it is "
                f"{clips.dtype} {clips.shape}"
            )
        clips = torch.from_numpy(clips.astype("int64"))
        first, count = clips.unbind(-1)  # (2, n) each
        if first.min() < 0 or count.min() < 0 or (first + count).max() > n_stored:
            raise ValueError(
                f"{self.path}: clips names frames that are not among the {n_stored} of input_raw_data"
            )
        if count.sum(0).min() < self.n_frames:
            raise ValueError(
                f"{self.path}: a clip has {int(count.sum(0).min())} frames; {self.n_frames} are wanted "
                "(n_input and n_output together)"
            )
        return clips


class MovingMNISTNpy(Dataset[Tensor]):
    """Clips of Moving MNIST's test set from Toronto's `mnist_test_seq.npy`, uint8 (20, 10000, 64, 64).

    Published tables use this test set. Item i is float32 (T, 1, H, W) in [0, 1], read from the file when it is asked
    for.

    Args:
        root: the file, or the folder with it.
        n_frames: T, inputs and targets together, at most the file's first dimension.
        image_size: (H, W) of the item; stored frames of other sizes are resized bilinearly.

    Raises:
        ValueError: there is no such file, it is damaged, or its array has another type or shape. The message is one
            line.
    """

    def __init__(self, root: PathLike, *, n_frames: int = 20, image_size: Sequence[int] = (64, 64)) -> None:
        self.image_size = check_clips("test", n_frames, image_size)
        self.n_frames, self.path = n_frames, file_at(root, _TORONTO)
        self._frames = PerProcess(partial(_mapped, self.path))
        frames = self._frames()
        if frames.ndim != 4 or frames.dtype != "uint8" or not frames.size:
            found = f"{frames.dtype} {frames.shape}"
            raise ValueError(f"{self.path}: it must hold uint8 (frames, clips, h, w); it holds {found}")
        if len(frames) < n_frames:
            raise ValueError(f"{self.path}: its clips have {len(frames)} frames; {n_frames} are wanted")
        self.length = frames.shape[1]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        frames = self._frames()[: self.n_frames, index, None]
        return _unit(frames, f"{self.path}: clip {index}", self.image_size)


class _Held:
    """Frames in memory, called as `PerProcess` is. They are a tensor, because worker processes share tensors."""

    def __init__(self, frames: Any) -> None:
        is_float = frames.dtype.kind == "f"
        self.frames = torch.from_numpy(frames.astype("float32", copy=False) if is_float else frames)

    def __call__(self) -> Tensor:
        return self.frames


def _unit(frames: Any, where: str, size: Sequence[int], missing: float | None = None) -> Tensor:
    """Convert frames to float32 (T, 1, *size) in [0, 1], nan where missing.

    Args:
        frames: (T, 1, h, w), uint8 or floats in [0, 1], of NumPy or torch.
        where: the file and the clip, for messages.
        size: (H, W).
        missing: the stored value of pixels without data.
    """
    if not isinstance(frames, Tensor):
        # NumPy's conversion also copies, and brings the bytes of a number into this machine's order.
        frames = torch.from_numpy(
            frames.astype("float32" if frames.dtype.kind == "f" else frames.dtype.newbyteorder("="))
        )
    pixels = marked(as_floats(frames).float(), frames, missing)
    if count := undeclared(frames, missing):
        raise ValueError(
            f"{where} must have values in [0, 1]; it has nan in {count:,} of {pixels.numel():,}; "
            f"{how_to_declare(missing)}"
        )
    lowest, highest = value_range(pixels)
    if lowest < -ROUNDING or highest > 1 + ROUNDING:
        raise ValueError(f"{where} must have values in [0, 1]; they go from {lowest:.7g} to {highest:.7g}")
    return resized_known(pixels, size).clamp(0, 1)


def _mapped(path: Path) -> Any:
    """Return the array of a .npy file, mapped into memory. No code of the file runs."""
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")
        return array
    # A damaged header leads to a ValueError, an EOFError or an OSError.
    except Exception as error:
        raise unreadable(path, error, "a .npy file of numbers") from None


def _member(path: Path, name: str) -> Any:
    """Return an array of a .npz file, read into memory. No code of the file runs."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            array = file[name]
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} is no array")
        return array
    except Exception as error:
        raise _damaged(path, name, error) from None


def _mapped_member(path: Path, name: str) -> Any:
    """Return an array of a .npz file, mapped into memory, or None if it is compressed."""
    import numpy as np
    from numpy.lib import format

    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            about = archive.getinfo(f"{name}.npy")
            read = {(1, 0): format.read_array_header_1_0, (2, 0): format.read_array_header_2_0}
            shape, is_fortran, dtype = read[format.read_magic(member)](member)
            if about.compress_type != zipfile.ZIP_STORED or dtype.hasobject or 0 in shape:
                return None
            start = member.tell()
        # Before a member's content stand 30 bytes, its name and an extra field.
        with path.open("rb") as raw:
            raw.seek(about.header_offset + 26)
            start += about.header_offset + 30 + sum(struct.unpack("<2H", raw.read(4)))
        return np.memmap(path, dtype, "r", start, shape, "F" if is_fortran else "C")
    except Exception as error:
        raise _damaged(path, name, error) from None


def _damaged(path: Path, name: str, error: Exception) -> ValueError:
    """Return the error for a .npz file of which the array `name` could not be read."""
    if isinstance(error, KeyError):
        return ValueError(f"{path}: it must hold input_raw_data and clips; there is no {name}")
    return unreadable(path, error, "a .npz file of numbers")
