"""Sequences of frames in folders: images, arrays and films, of any subject.

`FrameSequences`   folders of sequences
`StoredFrames`     what it shares with `RadarH5`: checked arguments, and the conversion of stored frames to a clip

Frames of other sizes are smoothed and resized bilinearly to `image_size`, so that no echo is lost between pixels.

`pixel_max` is the stored value that becomes 1, and 0 stays 0. It is 255 for grey levels, and a physical value for files
that hold physical values. A file of bytes does not say which of the two it holds: look at its values before you trust
scores at thresholds in dBZ. Values outside of 0 to `pixel_max` become 0 and 1, with a warning.

`missing` is the stored value of pixels without data, such as those that a radar does not see. They are nan in the item.
In a resized frame, a pixel is the mean of the pixels with data, and nan if these have less than half of the weight.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..caller import stacklevel_of_user
from ..pixels import ROUNDING, how_to_declare, marked, share_outside, undeclared, value_range
from .arguments import SPLITS, check_clips, check_step, checked_index
from .files import PathLike, names_in
from .images import resized_known
from .sequences import StoredSequence, is_sequence, open_sequence
from .times import LONGEST_STEP

_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class StoredFrames(Dataset[Tensor]):
    """The base of data sets of stored sequences: checked arguments, and the conversion of stored frames to a clip."""

    def __init__(
        self,
        split: str,
        root: PathLike,
        *,
        n_frames: int = 15,
        image_size: Sequence[int] = (64, 64),
        stride: int = 1,
        clip_step: int | None = None,
        pixel_max: float | None = None,
        missing: float | None = None,
    ) -> None:
        self.image_size = check_clips(split, n_frames, image_size)
        check_step(clip_step)
        if stride < 1:
            raise ValueError(f"stride must be at least 1; got {stride}")
        if pixel_max is not None and not 0 < pixel_max <= 255:
            raise ValueError(f"pixel_max must be above 0, at most 255; got {pixel_max}")
        self.n_frames, self.stride, self.clip_step = n_frames, stride, clip_step
        self.pixel_max, self.missing = pixel_max, missing
        self._has_warned = False
        # The number of stored frames from a clip's first to its last.
        self.span = (n_frames - 1) * stride + 1
        self._open(split, root)

    def _open(self, split: str, root: PathLike) -> None:
        """Find and check the split's sequences."""
        raise NotImplementedError

    def starts(self, n_stored: int) -> range:
        """Return the positions, among `n_stored` frames without a gap, at which clips start."""
        return range(0, n_stored - self.span + 1, self.clip_step or self.span)

    def needed(self) -> str:
        """Return the end of a message about a sequence that is too short."""
        stride = "" if self.stride == 1 else f" at stride {self.stride}"
        return f"{self.n_frames} frames{stride} need {self.span}"

    def check_missing(self, where: str, is_bytes: bool) -> None:
        """Raise a ValueError if no stored value can be `missing`."""
        if is_bytes and self.missing is not None and self.missing not in range(256):
            raise ValueError(
                f"missing must be a stored value, a whole number from 0 to 255 for the bytes of {where}; got "
                f"{self.missing:g}"
            )

    def clip(self, stored: Tensor, where: str) -> Tensor:
        """Convert stored frames, uint8 or float32 (T, C, h, w), to float32 (T, C, H, W) in [0, 1], nan where missing.

        A pixel in colour is missing if all of its channels have the value `missing`.
        """
        if count := undeclared(stored, self.missing):
            raise ValueError(
                f"{where} has nan in {count:,} of {stored.numel():,} values; {how_to_declare(self.missing)}"
            )
        frames = stored.float() / (self.pixel_max or (255 if stored.dtype == torch.uint8 else 1))
        frames = marked(frames, stored, self.missing)
        self._check_range(frames, stored, where)
        # Values are clipped before they are mixed: one of -9999 would else hide the echo beside it.
        return resized_known(frames.clamp(0, 1), self.image_size, antialias=True).clamp(0, 1)

    def _check_range(self, frames: Tensor, stored: Tensor, where: str) -> None:
        """Warn, once for a data set in a process, of values outside of 0 to `pixel_max`; without a `pixel_max` they
        are an error.
        """
        lowest, highest = value_range(frames)
        if self._has_warned or not (lowest < -ROUNDING or highest > 1 + ROUNDING):
            return
        if self.pixel_max is None:
            raise ValueError(
                f"{where} must have values in [0, 1], or pixel_max (--pixel-max), the value that becomes 1; they go "
                f"from {lowest:.7g} to {highest:.7g}"
            )
        self._has_warned = True
        ends = f"{lowest * self.pixel_max:.4g} to {highest * self.pixel_max:.4g}"
        warnings.warn(
            f"{where}: {share_outside(frames):.2%} of the values are outside of 0 to pixel_max {self.pixel_max:g}: "
            f"they go from {ends} and count as 0 and 1 (so may those of other clips); if one of these ends means no "
            "data, declare it with missing (--missing)",
            stacklevel=stacklevel_of_user(),
        )


class FrameSequences(StoredFrames):
    """Clips of frames from folders of sequences: radar echo, or any other frames, grey or in colour.

    An item is float32 (T, C, H, W) in [0, 1], nan where missing.

    Layout: `<root>/<split>/<sequence>` with the splits `train`, `val` (or `valid`, `validation`) and `test`. Without a
    folder for validation the test split serves for it. Without any of these folders, `<root>/<sequence>` is split by
    position: of the sequences sorted by name, the first eight tenths are for training, the next tenth is for
    validation and the last for test, each at least one. A sequence is one of these:

        a folder    with png or jpg images, grey, in colour or with a palette, in the order of their names, in which
                    numbers count by their value
        a .npy file (T, h, w), (T, 1 or 3, h, w) or (T, h, w, 1 or 3), bool, uint8 or floats; it stays on the disk
        a film      a GIF, or a video, which needs the package av; it is decoded once, when the data set is opened, and
                    its frames are resized and held in memory as bytes

    Grey frames have luma where files are in colour, and frames in colour have three equal channels where files are
    grey.

    A sequence is cut into clips that follow each other without overlap, or that start at every `clip_step`-th frame;
    frames left over are not used.

    No clip spans a gap in time: a folder of images is cut wherever the step between the times in two names is longer
    than 1.5 times the usual one, which is `interval`, or else the sequence's median step. A warning states the number
    of gaps and of the clips that they cost. A name's time is the date and time of day in it, or else its last number,
    as a time of day or as a count (see `times.gaps`). The frames of a file follow each other without a gap.

    Args:
        split: "train", "val" or "test".
        root: the folder with the splits or the sequences.
        channels: C, 1 for grey frames and 3 for RGB.
        n_frames: T, inputs and targets together.
        image_size: (H, W) of the item; stored frames of other sizes are smoothed and resized bilinearly.
        stride: every `stride`-th frame is taken.
        clip_step: the distance between the first frames of clips, in stored frames; None for clips that do not overlap.
        interval: the time between the frames of a folder of images, in minutes, or in counts where names hold counts.
            A step that is longer than 1.5 times this, or shorter than it by as much, is a gap. None takes the median.
        pixel_max: the stored value that becomes 1, above 0 and at most 255; None for 255 for bytes, and 1 for floats.
        missing: the stored value of pixels without data, which are nan in the item: 0 to 255 for bytes, any number or
            nan for floats; None if every pixel has data.

    Raises:
        ValueError: a sequence is no sequence of frames or too short, or gaps leave no clip; at an item, an image is
            damaged, or values are nan or out of range. The message is one line.
        ModuleNotFoundError: pillow is not installed, or a video is to be read and no package that decodes it is.
    """

    def __init__(
        self,
        split: str,
        root: PathLike,
        *,
        channels: int = 1,
        interval: float | None = None,
        n_frames: int = 15,
        image_size: Sequence[int] = (64, 64),
        stride: int = 1,
        clip_step: int | None = None,
        pixel_max: float | None = None,
        missing: float | None = None,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3; got {channels!r}")
        if interval is not None and not 0 < interval < math.inf:
            raise ValueError(f"interval must be above 0 and finite; got {interval:g}")
        self.channels, self.interval = channels, interval
        super().__init__(
            split,
            root,
            n_frames=n_frames,
            image_size=image_size,
            stride=stride,
            clip_step=clip_step,
            pixel_max=pixel_max,
            missing=missing,
        )

    def _open(self, split: str, root: PathLike) -> None:
        # The sequence of every clip and the position of its first frame.
        self.clips: list[tuple[StoredSequence, int]] = []
        n_gaps = n_joined = 0
        # A film is resized after its values are clipped and its missing pixels marked, if it may have such.
        size = self.image_size if self.missing is None and self.pixel_max is None else None
        for path in _sequences(Path(root), split):
            sequence = open_sequence(path, self.channels, size, self.interval)
            if len(sequence) < self.span:
                what = (
                    "a folder of frames; it has {} png files"
                    if path.is_dir()
                    else "a file of frames; it has {}"
                )
                raise ValueError(f"{path}: a sequence is {what.format(len(sequence))}, {self.needed()}")
            self.check_missing(str(path), is_bytes=sequence.dtype == torch.uint8)
            cuts = [0, *sequence.cuts, len(sequence)]
            for first, last in pairwise(cuts):
                self.clips += [(sequence, first + start) for start in self.starts(last - first)]
            n_gaps, n_joined = n_gaps + len(cuts) - 2, n_joined + len(self.starts(len(sequence)))
        if n_gaps:
            usual = "the usual one" if self.interval is None else f"the interval {self.interval:g}"
            lost = (
                f"{root}: {n_gaps} of the steps in time between frames are longer than {LONGEST_STEP} times {usual}"
                f"{'' if self.interval is None else ' or as much shorter'}; no clip spans such a gap: there are "
                f"{len(self.clips)} clips for {split}, without this rule there would be {n_joined}"
            )
            if not self.clips:
                raise ValueError(f"{lost}; {self.needed()}")
            warnings.warn(lost, stacklevel=stacklevel_of_user())

    def __len__(self) -> int:
        return len(self.clips)

    def sequence(self, index: int) -> str:
        """Return the path of a clip's sequence."""
        return str(self.clips[index][0].path)

    def __getitem__(self, index: int) -> Tensor:
        sequence, start = self.clips[checked_index(index, len(self.clips))]
        places = range(start, start + self.span, self.stride)
        return self.clip(sequence.read(places), str(sequence.path))


def _sequences(root: Path, split: str) -> list[Path]:
    """Return the paths of a split's sequences."""
    names = [name for name in names_in(root) if is_sequence(root / name)]
    folders = {part: next((n for n in _FOLDERS[part] if n in names), None) for part in SPLITS}
    if any(folders.values()):
        chosen = folders[split] or (folders["test"] if split == "val" else None)
        if chosen is None:
            raise ValueError(f"{root}: there is no folder {split!r} beside {', '.join(names)}")
        inside = [root / chosen / name for name in names_in(root / chosen)]
        found = [path for path in inside if is_sequence(path)]
        if not found:
            raise ValueError(f"{root / chosen}: it has no folder of a sequence, no .npy file and no film")
        return found
    if len(names) < 3:
        raise ValueError(
            f"{root}: it must hold <split>/<sequence>/<frame>.png with splits train and test, or at least 3 "
            f"sequences (folders of frames, .npy files or films); it has {len(names)}"
        )
    held = max(1, len(names) // 10)
    bounds = {"train": (0, -2 * held), "val": (-2 * held, -held), "test": (-held, None)}
    first, last = bounds[split]
    return [root / name for name in names[first:last]]
