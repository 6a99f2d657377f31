"""Human3.6M in the two layouts that video prediction uses. They are different benchmarks.

`Human36M`          the layout and the rules of the official programs of MIM and MotionRNN
`Human36MOpenSTL`   OpenSTL's lists of clips

Both keep only names in memory, and read the images each time an item is asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..files import NoText, read_text
from .arguments import check_clips, check_step
from .files import PathLike, names_in
from .images import read_image, resized

_FRAME = re.compile(r"(?P<person>S\d+)_(?P<action>[^_.]+)(?:_[^.]*)?\.(?P<camera>\d+)_(?P<id>\d{6,})\.jpg")
# The step between the numbers of stored frames.
_ID_STEP = 5


class Frame(NamedTuple):
    """The parts of a file's name, such as `S11_Walking_1.54138969_000471.jpg`."""

    name: str
    # The take and the camera: ("S11_Walking_1", "54138969").
    video: tuple[str, str]
    # The frame's number: 471.
    id: int


class Human36M(Dataset[Tensor]):
    """Clips of walking people from Human3.6M, as the official programs of MIM and MotionRNN read them.

    An item is float32 (T, 3, H, W), RGB in [0, 1].

    Layout: one flat folder of `<subject>_<action>[_<take>].<camera>_<frame, six digits>.jpg`; the numbers of frames
    advance by 5.

    Files: those whose second field between underscores is exactly "Walking", of S1, S5, S6, S7, S8 for training and
    of S9, S11 for test. Validation takes the test subjects, as the official program does: the choice of its best
    checkpoint depends on them, its last checkpoint does not. Files with other endings are ignored.

    Clips: with the names sorted, a clip of T frames takes every second one from its start s,

        s, s + 2, ..., s + 2 (T - 1)        the frame numbers of the two ends differ by 5 * 2 * (T - 1)

    and s advances while s + 2 T - 1 is less than the number of files. If the two ends belong to different videos, the
    next s is s + 1. Otherwise it is s + `clip_step`, by default s + 10 (training) or s + 5. If the numbers of the ends
    do not differ by the above, frames are missing and s starts no clip.

    Pixels: rows H//4 to H - ceil(H/4) of the stored image, and columns likewise, resized in bytes to `image_size` as
    cv2.resize does by default (bilinear, without smoothing).

    Args:
        split: "train", "val" or "test".
        root: the folder.
        n_frames: T, inputs and targets together.
        image_size: (H, W) of the item, in pixels.
        clip_step: the step of s; None for the official program's.

    Raises:
        ValueError: there is no such folder, a jpg has another name, or there is no clip; at an item, an image is
            damaged. The message is one line.
        ModuleNotFoundError: pillow is not installed.

    Source: core/data_provider/human.py of thuml/MotionRNN, which is MIM's.
    """

    def __init__(
        self,
        split: str,
        root: PathLike,
        *,
        n_frames: int = 8,
        image_size: Sequence[int] = (128, 128),
        clip_step: int | None = None,
    ) -> None:
        self.image_size = check_clips(split, n_frames, image_size)
        check_step(clip_step)
        self.root, self.n_frames = Path(root), n_frames
        people = ("S1", "S5", "S6", "S7", "S8") if split == "train" else ("S9", "S11")
        self.frames = _walking(self.root, people)
        self.starts = clip_starts(self.frames, n_frames, clip_step or (10 if split == "train" else 5))
        if not self.starts:
            raise ValueError(
                f"{self.root}: no clip of {n_frames} frames, every second of frames numbered in steps of "
                f"{_ID_STEP}, in the {len(self.frames)} frames of Walking by {', '.join(people)}"
            )

    def __len__(self) -> int:
        return len(self.starts)

    def sequence(self, index: int) -> tuple[str, str]:
        """Return what names a clip's video."""
        return self.frames[self.starts[index]].video

    def __getitem__(self, index: int) -> Tensor:
        start = self.starts[index]
        frames = self.frames[start : start + 2 * self.n_frames : 2]
        return torch.stack([self._image(self.root / frame.name) for frame in frames]).float() / 255

    def _image(self, path: Path) -> Tensor:
        """Return the cropped and resized image of a file, uint8 (3, H, W)."""
        image = read_image(path, 3)  # (3, H, W)
        rows, columns = map(_middle, image.shape[1:])
        return resized(image[:, rows, columns], self.image_size)


def _middle(n: int) -> slice:
    """Return the middle of n pixels, without a quarter at each end; a remainder is cut from the end."""
    return slice(n // 4, max(1, n - math.ceil(n / 4)))


def clip_starts(frames: Sequence[Frame], n_frames: int, step: int) -> list[int]:
    """Return the positions in the sorted frames at which clips start, by the rule of `Human36M`."""
    starts, start = [], 0
    while start + 2 * n_frames - 1 < len(frames):
        first, last = frames[start], frames[start + 2 * (n_frames - 1)]
        if first.video != last.video:
            start += 1
            continue
        if last.id - first.id == _ID_STEP * 2 * (n_frames - 1):
            starts.append(start)
        start += step
    return starts


def _walking(root: Path, people: Sequence[str]) -> list[Frame]:
    """Return the frames of Walking by some subjects, sorted by name."""
    frames = []
    for name in names_in(root):
        if not name.endswith(".jpg") or name.startswith("."):
            continue
        parts = _FRAME.fullmatch(name)
        if parts is None:
            raise ValueError(
                f"{root / name}: a frame is named <subject>_<action>.<camera>_<number>.jpg, as "
                "S11_Walking_1.54138969_000471.jpg"
            )
        if parts["person"] in people and parts["action"] == "Walking":
            before = name.split(".", 1)[0]
            frames.append(Frame(name, (before, parts["camera"]), int(parts["id"])))
    if not frames:
        raise ValueError(
            f"{root}: no frame of Walking by {', '.join(people)} is in this folder; one is named "
            f"{people[-1]}_Walking_1.54138969_000471.jpg"
        )
    return frames


class Human36MOpenSTL(Dataset[Tensor]):
    """Clips of all 17 actions of Human3.6M, as OpenSTL lists them.

    An item is float32 (T, 3, H, W), *BGR* in [0, 1], the order that OpenSTL's models read.

    Layout: `root` holds `train.txt`, `test.txt` and the images. A line `images/S1_Directions.54138969_,226,296` is a
    clip: the name up to the six digits of a frame's number, the first number, and the last one. Frame t is
    `images/S1_Directions.54138969_<226 + 5 t>.jpg`. Validation is the test list, as in OpenSTL. All subjects are in
    both lists.

    The whole image is resized in bytes to `image_size` as cv2.resize does with INTER_CUBIC. OpenSTL's random crops and
    rotations in training are left out.

    Args:
        split: "train", "val" or "test".
        root: the folder with the two lists.
        n_frames: T, inputs and targets together.
        image_size: (H, W) of the item, in pixels.
        clip_step: the distance between the first frames of the clips of a line, in stored frames; None for one clip,
            the line's first n_frames frames.

    Raises:
        ValueError: there is no such list, or a clip in it has fewer than n_frames frames or names a file that does not
            exist; at an item, an image is damaged. The message is one line.
        ModuleNotFoundError: pillow is not installed.
    """

    def __init__(
        self,
        split: str,
        root: PathLike,
        *,
        n_frames: int = 8,
        image_size: Sequence[int] = (256, 256),
        clip_step: int | None = None,
    ) -> None:
        self.image_size = check_clips(split, n_frames, image_size)
        check_step(clip_step)
        self.root, self.n_frames = Path(root), n_frames
        path = self.root / ("train.txt" if split == "train" else "test.txt")
        # The name up to the first frame's number, and that number.
        self.clips: list[tuple[str, int]] = []
        for number, line in enumerate(_lines(path), 1):
            if line:
                before, first, n_listed = _clip_of_list(path, number, line, n_frames)
                starts = range(0, n_listed - n_frames + 1, clip_step or n_listed)
                self.clips += [(before, first + _ID_STEP * start) for start in starts]
        if not self.clips:
            raise ValueError(f"{path}: this list has no clip")
        self._check_files(path)

    def __len__(self) -> int:
        return len(self.clips)

    def sequence(self, index: int) -> str:
        """Return the name of a clip's images, up to their numbers."""
        return self.clips[index][0]

    def __getitem__(self, index: int) -> Tensor:
        images = [
            resized(read_image(self.root / name, 3), self.image_size, "bicubic")
            for name in self._names(index)
        ]
        # From RGB to BGR.
        return torch.stack(images).flip(1).float() / 255

    def _names(self, index: int) -> list[str]:
        """Return the names of a clip's files, relative to the root."""
        before, first = self.clips[index]
        return [f"{before}{first + _ID_STEP * t:06d}.jpg" for t in range(self.n_frames)]

    def _check_files(self, path: Path) -> None:
        """Raise a ValueError unless every image that the list at `path` names exists."""
        # A listing of each folder: 600,000 single look-ups would take minutes.
        there: dict[str, set[str]] = {}
        for index in range(len(self)):
            for name in self._names(index):
                folder, _, file = name.rpartition("/")
                if folder not in there:
                    there[folder] = set(names_in(self.root / folder))
                if file not in there[folder]:
                    raise ValueError(f"{self.root / name}: {path} names this image, which does not exist")


def _clip_of_list(path: Path, number: int, line: str, n_frames: int) -> tuple[str, int, int]:
    """Return a line's clip: the name up to a frame's number, the first number, and the number of frames."""
    parts = line.split(",")
    if len(parts) != 3 or not (parts[0] and parts[1].isdecimal() and parts[2].isdecimal()):
        raise ValueError(
            f"{path}, line {number}: a clip is images/S1_Directions.54138969_,226,296; got {line[:80]!r}"
        )
    first, last = int(parts[1]), int(parts[2])
    n_listed = (last - first) // _ID_STEP + 1
    if n_listed < n_frames:
        raise ValueError(
            f"{path}, line {number}: n_frames {n_frames} (n_input and n_output together) is too long for this clip, "
            f"which has {max(0, n_listed)} frames, {first} to {last} in steps of {_ID_STEP}"
        )
    return parts[0], first, n_listed


def _lines(path: Path) -> list[str]:
    """Return the lines of a list of clips; raise a ValueError if it cannot be read."""
    try:
        return [line.strip() for line in read_text(path).splitlines()]
    except (OSError, NoText) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: the list of clips cannot be read ({reason})") from None
