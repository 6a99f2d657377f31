"""The data sets by name: how each is opened, and the protocol in which it is commonly used.

A data set is a torch Dataset whose items are float32 (T, C, H, W) in [0, 1], or uint8; nan marks missing values, where
`missing` says that there are such. One of your own takes an entry:

    from motionrnn_ext.data import DATASETS, DataSet

    DATASETS["mine"] = DataSet("my clips", open=MyClips, layout="the folder with my files", n_input=4, n_output=4)

after which `Config(dataset="mine", root="...")`, and `motionrnn_ext.cli.main` in the same process, know it.
`MyClips(split, root=..., n_frames=..., image_size=...)` must hold no open file that cannot be pickled. Every item is
checked when it is read: another shape, values out of range and nan that nobody declared end the command. A data set
that names `missing` in its settings gets the code, and gives nan where a pixel has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..pixels import as_floats, check_range, how_to_declare, marked, undeclared
from .digits import SPLITS
from .files import PathLike
from .human36m import Human36M, Human36MOpenSTL
from .moving_mnist import VariedMovingMNIST
from .moving_mnist_files import MovingMNISTNpy, MovingMNISTNpz
from .radar_like import RadarLike
from .shanghai import RadarH5, RadarImages


class ClipDataset(Protocol):
    """What every data set is, and torch's Dataset does not declare."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...


@dataclass(frozen=True)
class DataSet:
    """How a data set is opened, and its protocol.

    `open` is called with the split and, by name, `n_frames` and `image_size`; `root`, if there is a `layout`; `length`,
    if the split is generated; and the settings of a run that `settings` names and that are not None.
    """

    title: str  # what a run is said to be on
    open: Callable[..., ClipDataset]
    layout: str = ""  # of files: what `root` is
    generated: Collection[str] = ()  # splits with as many clips as one likes
    settings: Collection[str] = ()  # fields of `Config`
    image_size: tuple[int, int] = (64, 64)
    n_input: int = 10
    n_output: int = 10
    colours: str = "grey"  # or "RGB", "BGR"
    has_missing: bool = True  # whether pixels may have no data, see `missing` of `open_clips`

    @property
    def channels(self) -> int:
        return 1 if self.colours == "grey" else 3


class _Checked(Dataset[Tensor]):
    """The items of a data set that is not of this package, as float32 in [0, 1]; anything else is a ValueError."""

    def __init__(
        self, clips: ClipDataset, name: str, split: str, shape: tuple[int, ...], missing: float | None
    ) -> None:
        self.clips, self.name, self.split, self.shape, self.missing = clips, name, split, shape, missing

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be in 0..{len(self) - 1}; got {index}")
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
    found = f"{item.dtype} {tuple(item.shape)}" if isinstance(item, Tensor) else f"a {type(item).__name__}"
    if not isinstance(item, Tensor) or item.shape != shape or item.dtype not in (torch.float32, torch.uint8):
        raise ValueError(
            f"{dataset} must give clips (T, C, H, W) of torch.float32, here {shape}; it gives {found} "
            "(torch.uint8 is taken too, 255 for 1)"
        )


class _Reversed(Dataset[Tensor]):
    """Clips with their channels in the other order: BGR of RGB, or the reverse."""

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
    """The clips of a split. Generated ones are `length` many, or 10000; of files all, or `length` spread evenly.

    Args:
        dataset: a name in `DATASETS`.
        split: "train", "val" or "test".
        root: where the files are.
        colours: the wanted order of channels, "RGB" or "BGR", or "grey", which the data set must have; None is its own.
        missing: the stored value of pixels that have no data, or nan; they become nan. None: there are none. A data set
            that names it in its `settings` is opened with it and gives nan there, of others the items' values are
            compared with it. It is the only one: beside another code nan is an error.
        settings: n_frames and image_size, by default the data set's own, and what else it takes.

    Raises:
        ValueError: an unknown name, files without a root or the reverse, grey for colours or the reverse, `missing` of
            a data set without missing values, and what the data set itself finds wrong.
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
    n = len(clips)
    if length is None or length >= n:
        return clips
    return Subset(clips, [i * n // length for i in range(length)])  # type: ignore[arg-type]


def _check_first(dataset: str, clips: ClipDataset, shape: tuple[int, ...]) -> None:
    """Reads a clip: what is missing for that should be known before a run begins."""
    if not len(clips):
        raise ValueError(f"{dataset} has no clip")
    check_item(dataset, clips[0], shape)


def find(dataset: str) -> DataSet:
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
    """The file for test. As its public users do, training generates plain digits: at one speed, a tenth of the way
    between the walls per frame."""
    test = MovingMNISTNpy(root, n_frames=n_frames, image_size=image_size)  # opened in any case: is it there?
    if split == "test":
        return test
    pace = max(0.0, 0.1 * (min(image_size) - digit_size))
    return VariedMovingMNIST(
        split, n_frames=n_frames, image_size=image_size, digit_size=digit_size, plain=True,
        speed=speed or (pace, pace), **generated,
    )  # fmt: skip


_DIGITS = ("seed", "digits", "n_digits", "digit_size", "speed")
_RADAR: dict[str, Any] = {"settings": ("stride", "pixel_max", "missing"), "n_input": 5, "n_output": 10}
_HUMAN: dict[str, Any] = {"n_input": 4, "n_output": 4, "has_missing": False}
# Classes that check their files themselves; those derived from them are a user's.
_OWN = (
    Human36M, Human36MOpenSTL, MovingMNISTNpy, MovingMNISTNpz, RadarH5, RadarImages, RadarLike, VariedMovingMNIST,
)  # fmt: skip

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
    "shanghai_h5": DataSet("Shanghai radar echo", RadarH5, "shanghai.h5, or the folder with it", **_RADAR),
    "shanghai_png": DataSet(
        "radar echo",
        RadarImages,
        "the folder with train/SEQUENCE/FRAME.png and test/SEQUENCE/FRAME.png",
        **_RADAR,
    ),
    "moving_mnist_npz": DataSet(
        "Moving MNIST",
        MovingMNISTNpz,
        "the folder with moving-mnist-train.npz, -valid.npz and -test.npz",
        settings=("missing",),
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
