"""What the data sets that lie in files share: checked arguments, listings, and files that are open in one process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from .digits import SPLITS

PathLike = str | os.PathLike[str]
T = TypeVar("T")


def check_clips(split: str, n_frames: int, image_size: Sequence[int]) -> tuple[int, int]:
    """The image size, (H, W), where all three are what every data set takes; ValueError otherwise."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if not is_count(n_frames):
        raise ValueError(f"n_frames must be a positive integer; got {n_frames!r}")
    if len(image_size) != 2 or not all(map(is_count, image_size)):
        raise ValueError(f"image_size must be two positive integers (H, W); got {image_size!r}")
    return image_size[0], image_size[1]


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted. ValueError where it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read as a folder ({error.strerror})") from None


def file_at(root: PathLike, name: str) -> Path:
    """`root` if that is a file, or the file of that name in the folder `root`. ValueError if neither is there."""
    path = Path(root)
    if path.is_file():
        return path
    if not (path / name).is_file():
        raise ValueError(f"{path}: neither a file nor a folder with {name}")
    return path / name


def because(error: Exception) -> str:
    """Of a library that could not read a file: " (its reason)", or "" where that would be no help: a library that takes
    what it does not know for a pickle recommends to load it unsafely."""
    text = (str(error).strip() or " ").splitlines()[0].strip()
    return f" ({text})" if text and not re.search("pickle|weights_only|Python objects", text) else ""


def unreadable(path: Path, error: Exception, kind: str) -> ValueError:
    """What to say of a file that a library could not read: that another process holds it, that it cannot be opened at
    all, or that it is damaged, or not of its `kind`."""
    if "unable to lock file" in str(error):
        return ValueError(
            f"{path}: locked by another process, which may be writing it; wait for that, or set "
            "HDF5_USE_FILE_LOCKING=FALSE in the environment where nothing writes it"
        )
    try:
        path.open("rb").close()
    except OSError as reason:
        return ValueError(f"{path}: cannot be opened ({reason.strerror or reason})")
    return ValueError(f"{path}: damaged, or {kind}{because(error)}")


class PerProcess(Generic[T]):
    """`open()`'s result, made at the first call in each process: never pickled, never shared by a fork."""

    def __init__(self, open: Callable[[], T]) -> None:
        self._open = open
        self._opened: tuple[int, T] | None = None  # with the process's number

    def __call__(self) -> T:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self._open()
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": self._open, "_opened": None}
