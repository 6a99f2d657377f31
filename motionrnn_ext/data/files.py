"""Folders and files of data sets: listings, messages about unreadable files, files opened once per process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

PathLike = str | os.PathLike[str]
T = TypeVar("T")


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; raise a ValueError if it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read as a folder ({error.strerror})") from None


def file_at(root: PathLike, name: str) -> Path:
    """Return `root` if it is a file, else the file `name` in the folder `root`; raise a ValueError without either."""
    path = Path(root)
    if path.is_file():
        return path
    if not (path / name).is_file():
        raise ValueError(f"{path}: neither a file nor a folder with {name}")
    return path / name


def because(error: Exception) -> str:
    """Return " (REASON)" for the end of a message about a file that a library could not read.

    It is "" if the reason would mislead: libraries that take an unknown file for a pickle advise to load it unsafely.
    """
    text = (str(error).strip() or " ").splitlines()[0].strip()
    return f" ({text})" if text and not re.search("pickle|weights_only|Python objects", text) else ""


def unreadable(path: Path, error: Exception, kind: str) -> ValueError:
    """Return the error for a file that a library could not read.

    It says that another process has locked the file, that it cannot be opened, or that it is damaged or of another
    kind; `kind` is the end of that sentence, such as "an HDF5 file".
    """
    if "unable to lock file" in str(error):
        return ValueError(
            f"{path}: locked by another process, which may be writing it; wait for that, or set "
            "HDF5_USE_FILE_LOCKING=FALSE in the environment where nothing writes it"
        )
    try:
        path.open("rb").close()
    except OSError as reason:
        return ValueError(f"{path}: cannot be opened ({reason.strerror or reason})")
    return ValueError(f"{path}: damaged, or not {kind}{because(error)}")


class PerProcess(Generic[T]):
    """The result of `open()`, made at the first call in each process: it is neither pickled nor shared by a fork."""

    def __init__(self, open: Callable[[], T]) -> None:
        self._open = open
        # The process's number and the result.
        self._opened: tuple[int, T] | None = None

    def __call__(self) -> T:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self._open()
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": self._open, "_opened": None}
