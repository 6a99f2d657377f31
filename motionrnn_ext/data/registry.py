"""The data sets by name: how each is opened, and the protocol in which it is commonly used.

A data set is a torch Dataset whose items are float32 (T, C, H, W) in [0, 1], or uint8. If `missing` is given, nan marks
missing values. To add a data set of your own, add an entry:

    from motionrnn_ext.data import DATASETS, DataSet

    DATASETS["mine"] = DataSet("my clips", open=MyClips, layout="the folder with my files", n_input=4, n_output=4)

`Config(dataset="mine", root="...")` and `motionrnn_ext.cli.main` in the same process then know it, as does
`motionrnn COMMAND --import MODULE`. `MyClips(split, root=..., n_frames=..., image_size=...)` must not hold an open file
that cannot be pickled. Every item is checked when it is read: another shape, values out of range and undeclared nan end
the command. A data set that lists "missing" in its settings is called with the stored value of pixels without data and
must return nan there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..pixels import as_floats, check_range, how_to_declare, marked, undeclared
from .arguments import SPLITS, checked_index
from .choice import chosen
from .files import PathLike
from .frames import FrameSequences
from .human36m import Human36M, Human36MOpenSTL
from .moving_mnist import VariedMovingMNIST
from .moving_mnist_files import MovingMNISTNpy, MovingMNISTNpz
from .radar_h5 import RadarH5
from .radar_like import RadarLike


class ClipDataset(Protocol):
    """The interface of every data set: a length and items. torch's Dataset declares no length."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...


@dataclass(frozen=True)
class DataSet:
    """An entry of `DATASETS`: how a data set is opened, and the protocol in which it is commonly used.

    Args:
        title: the data set's name for people, as results state it.
        open: the class or function that returns a split's clips. It is called with the split and, by name, `n_frames`
            and `image_size`; with `root` if there is a `layout`; with `length` if the split is generated; and with
            those settings of a run that `settings` lists and that are not None.
        layout: a description of the files at `root`; "" if the data set reads no files.
        generated: the splits whose number of clips is free.
        settings: the fields of `Config` that `open` takes.
        image_size: the default (H, W) of the frames, in pixels.
        n_input: the default number of given frames.
        n_output: the default number of frames to predict.
        colours: the order of the channels: "grey", "RGB" or "BGR".
        has_missing: whether pixels may be without data, see `missing` of `open_clips`.
        dbz: the radar reflectivity of pixels 0 and 1, in dBZ; None for frames of any other kind.
    """

    title: str
    open: Callable[..., ClipDataset]
    layout: str = ""
    generated: Collection[str] = ()
    settings: Collection[str] = ()
    image_size: tuple[int, int] = (64, 64)
    n_input: int = 10
    n_output: int = 10
    colours: str = "grey"
    has_missing: bool = True
    dbz: tuple[float, float] | None = None

    @property
    def channels(self) -> int:
        """The number of channels of a frame, 1 or 3."""
        return 1 if self.colours == "grey" else 3


class _Checked(Dataset[Tensor]):
    """The clips of a data set from outside of this package, checked and as float32 in [0, 1]."""

    def __init__(
        self, clips: ClipDataset, name: str, split: str, shape: tuple[int, ...], missing: float | None
    ) -> None:
        self.clips, self.name, self.split, self.shape, self.missing = clips, name, split, shape, missing

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        checked_index(index, len(self))
        clip = self.clips[index]
        check_item(self.name, clip, self.shape)
        name = f"the frames of clip {index} of {self.name} ({self.split})"
        if count := undeclared(clip, self.missing):
            raise ValueError(
                f"{name} have nan in {count:,} of {clip.numel():,} values; {how_to_declare(self.missing)}"
            )
        frames = marked(as_floats(clip, name), clip, self.missing)
        check_range(frames, name)
        return frames


def check_item(dataset: str, item: Any, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless an item is a float32 or uint8 tensor of the shape (T, C, H, W)."""
    found = f"{item.dtype} {tuple(item.shape)}" if isinstance(item, Tensor) else f"a {type(item).__name__}"
    if not isinstance(item, Tensor) or item.shape != shape or item.dtype not in (torch.float32, torch.uint8):
        raise ValueError(
            f"{dataset} must give clips (T, C, H, W) of torch.float32, here {shape}; it gives {found} "
            "(torch.uint8 is taken too, 255 for 1)"
        )


def sequences_of(clips: ClipDataset) -> list[int]:
    """Return a number for every clip that says which stored sequence it is from; clips of one may overlap.

    A data set tells by a method `sequence(index)`. Generated clips, and those of a data set without this method, are
    sequences of their own.
    """
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(_sequence(clips, index), len(numbers)) for index in range(len(clips))]


def _sequence(clips: Any, index: int) -> Any:
    if isinstance(clips, Subset):
        return _sequence(clips.dataset, clips.indices[index])
    if isinstance(clips, (_Checked, _Reversed)):
        return _sequence(clips.clips, index)
    return clips.sequence(index) if hasattr(clips, "sequence") else index


class _Reversed(Dataset[Tensor]):
    """Clips with the order of their channels reversed, from RGB to BGR or back."""

    def __init__(self, clips: ClipDataset) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        return self.clips[index].flip(-3)


def open_clips(
    dataset: str,
    split: str,
    length: int | None = None,
    *,
    root: PathLike | None = None,
    colours: str | None = None,
    missing: float | None = None,
    **settings: Any,
) -> ClipDataset:
    """Open the clips of one split of a data set, chosen by its name.

    Args:
        dataset: a name in `DATASETS`.
        split: "train", "val" or "test".
        length: the number of clips. A generated split has 10000 by default. A split of files has all of its clips by
            default, and otherwise at most `length` of them, spread evenly.
        root: the folder or file that the data set reads, see `DataSet.layout`; None for a generated data set.
        colours: the wanted order of channels, "RGB" or "BGR"; "grey" if the data set must be grey. None keeps the data
            set's own.
        missing: the stored value of pixels without data, or nan; these pixels become nan. None: every pixel has data.
            A data set that lists "missing" in its `settings` is opened with it; the items of any other are compared
            with it. It is the only such value: if it is a number, a stored nan is an error.
        settings: `n_frames` and `image_size`, by default the data set's own, and its further arguments. Of a data set
            that lists them in its `settings`, `min_wet`, `wet_above` and `min_motion` keep some of the clips, see
            `chosen`, which reads all of them once.

    Returns:
        A data set with a length, whose items are float32 (T, C, H, W) in [0, 1], nan where missing.

    Raises:
        ValueError: an unknown name, files without a `root` or a `root` for a generated data set, grey clips where
            colours are wanted or the reverse, `missing` for a data set without missing values, or an error that the
            data set itself finds.
        ModuleNotFoundError: a package that the files need is not installed.
    """
    entry = find(dataset)
    if entry.layout:
        if root is None:
            raise ValueError(f"{dataset} needs root (--root): {entry.layout}")
        settings["root"] = root
    elif root is not None:
        raise ValueError(
            f"{dataset} is generated and reads no files; root (--root) is for the other data sets"
        )
    colours = colours or entry.colours
    if (colours == "grey") != (entry.colours == "grey"):
        raise ValueError(f"{dataset} has clips in {entry.colours}; clips in {colours} are wanted")
    if missing is not None:
        if not entry.has_missing:
            raise ValueError(
                f"{dataset} has no missing values; leave out missing (--missing); got {missing:g}"
            )
        if "missing" in entry.settings:
            settings["missing"], missing = missing, math.nan
    generated = split in entry.generated
    if generated and length is not None:
        settings["length"] = length
    settings.setdefault("n_frames", entry.n_input + entry.n_output)
    settings.setdefault("image_size", entry.image_size)
    choice = {name: settings.pop(name) for name in _CHOICE if name in settings and name in entry.settings}
    clips = entry.open(split, **settings)
    shape = (settings["n_frames"], entry.channels, *settings["image_size"])
    if type(clips) not in _OWN:
        clips = _Checked(clips, dataset, split, shape, missing)
    if not generated or type(clips) is _Checked:
        _check_first(dataset, clips, shape)
    if colours != entry.colours:
        clips = _Reversed(clips)
    if generated:
        return clips
    clips = chosen(clips, f"{dataset} ({split})", **choice)
    n = len(clips)
    if length is None or length >= n:
        return clips
    return Subset(clips, [i * n // length for i in range(length)])  # type: ignore[arg-type]


def _check_first(dataset: str, clips: ClipDataset, shape: tuple[int, ...]) -> None:
    """Read one clip, so that a missing file or package is known before a run begins."""
    if not len(clips):
        raise ValueError(f"{dataset} has no clip")
    check_item(dataset, clips[0], shape)


def find(dataset: str) -> DataSet:
    """Return the entry of a data set; raise a ValueError for an unknown name."""
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}; got {dataset!r}")
    return DATASETS[dataset]


def _toronto(
    split: str,
    *,
    root: PathLike,
    n_frames: int,
    image_size: tuple[int, int],
    digit_size: int = 28,
    speed: tuple[float, float] | None = None,
    **generated: Any,
) -> ClipDataset:
    """Open Toronto's file for test, and generated plain digits for training and validation.

    The digits move at one speed, a tenth of the way between the walls per frame, as in the programs that use this file.
    """
    # The file is opened for every split, so that its absence is known before training.
    test = MovingMNISTNpy(root, n_frames=n_frames, image_size=image_size)
    if split == "test":
        return test
    pace = max(0.0, 0.1 * (min(image_size) - digit_size))
    options = {"n_frames": n_frames, "image_size": image_size, "digit_size": digit_size, **generated}
    return VariedMovingMNIST(split, plain=True, speed=speed or (pace, pace), **options)


_DIGITS = ("seed", "digits", "n_digits", "digit_size", "speed")
# The settings by which `open_clips` itself chooses among the clips of files.
_CHOICE = ("min_wet", "wet_above", "min_motion")
_STORED = ("stride", "clip_step", "pixel_max", "missing", *_CHOICE)
_RADAR: dict[str, Any] = {"n_input": 5, "n_output": 10, "dbz": (0.0, 90.0)}
_HUMAN: dict[str, Any] = {
    "n_input": 4,
    "n_output": 4,
    "has_missing": False,
    "settings": ("clip_step", *_CHOICE),
}
# The classes that check their own items. A class that a user derives from one of them is not among them.
_OWN = (
    FrameSequences, Human36M, Human36MOpenSTL, MovingMNISTNpy, MovingMNISTNpz, RadarH5, RadarLike, VariedMovingMNIST,
)  # fmt: skip

_LAYOUT = (
    "the folder with sequences, each a folder SEQUENCE/FRAME.png, a SEQUENCE.npy or a film: the first eight tenths of "
    "them are for training, the next tenth for validation, the last for test; or the folder with train/, val/ and "
    "test/ of such sequences"
)

DATASETS: dict[str, DataSet] = {
    "moving_digits": DataSet(
        "moving digits",
        VariedMovingMNIST,
        generated=SPLITS,
        settings=(*_DIGITS, "plain", "angle", "rotation", "scale", "scale_rate"),
        has_missing=False,
    ),
    "radar_like": DataSet(
        "generated radar-like fields",
        RadarLike,
        generated=SPLITS,
        settings=("seed",),
        n_input=5,
        has_missing=False,
    ),
    "frames": DataSet(
        "sequences of grey frames",
        FrameSequences,
        _LAYOUT,
        settings=("interval", *_STORED),
    ),
    "frames_rgb": DataSet(
        "sequences of frames in colour",
        partial(FrameSequences, channels=3),
        _LAYOUT,
        settings=("interval", *_STORED),
        colours="RGB",
    ),
    "human36m": DataSet(
        "Human3.6M, Walking",
        Human36M,
        "the folder with S11_Walking_1.54138969_000471.jpg and all the others",
        image_size=(128, 128),
        colours="RGB",
        **_HUMAN,
    ),
    "human36m_openstl": DataSet(
        "Human3.6M as OpenSTL lists it",
        Human36MOpenSTL,
        "the folder with train.txt, test.txt and images/",
        image_size=(256, 256),
        colours="BGR",
        **_HUMAN,
    ),
    "shanghai_h5": DataSet(
        "Shanghai radar echo", RadarH5, "shanghai.h5, or the folder with it", settings=_STORED, **_RADAR
    ),
    "shanghai_png": DataSet(
        "radar echo",
        FrameSequences,
        "the folder with train/SEQUENCE/FRAME.png and test/SEQUENCE/FRAME.png",
        settings=("interval", *_STORED),
        **_RADAR,
    ),
    "moving_mnist_npz": DataSet(
        "Moving MNIST",
        MovingMNISTNpz,
        "the folder with moving-mnist-train.npz, -valid.npz and -test.npz",
        settings=("missing", *_CHOICE),
    ),
    "moving_mnist_npy": DataSet(
        "generated plain digits, to be tested on Moving MNIST's test file",
        _toronto,
        "mnist_test_seq.npy, or the folder with it",
        generated=("train", "val"),
        settings=_DIGITS,
        has_missing=False,
    ),
}
