"""A list of pictures. One that cannot be drawn is noted, and stops neither the other pictures nor the program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class NotDrawn(Exception):
    """Some pictures could not be drawn; everything else was written."""

    def __init__(self, failed: Sequence[str]) -> None:
        super().__init__("; ".join(failed))
        # One line for each picture, with its path and the reason.
        self.failed = list(failed)


class Pictures(list[Path]):
    """The paths of the pictures that were drawn; `failed` has a line for each picture that could not be drawn."""

    def __init__(self, written: Sequence[Path] = ()) -> None:
        super().__init__(written)
        self.failed: list[str] = []

    def draw(self, function: Callable[..., Path], path: Path, /, *arguments: Any, **options: Any) -> None:
        """Call a function of `visualize` that writes `path`, and add the path if it succeeds."""
        drawn = self.attempt(path, function, path, *arguments, **options)
        if drawn is not None:
            self.append(drawn)

    def attempt(
        self, what: object, function: Callable[..., T], /, *arguments: Any, **options: Any
    ) -> T | None:
        """Return the function's result, or None if it raises; `failed` then gets a line that names `what`."""
        try:
            return function(*arguments, **options)
        except Exception as error:
            # Matplotlib and Pillow raise many kinds of errors, for fonts, sizes, memory and the disk.
            self.failed.append(f"{what} could not be drawn: {_reason(error)}")
            return None

    def add(self, others: Pictures) -> None:
        """Add the paths and the failures of `others`."""
        self += others
        self.failed += others.failed

    def check(self) -> None:
        """Raise NotDrawn if a picture could not be drawn."""
        if self.failed:
            raise NotDrawn(self.failed)


def _reason(error: Exception) -> str:
    """Return the reason of a failure in one line."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the package {error.name.split('.')[0]} is missing: pip install 'motionrnn-ext[train]'"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return (
        text[:200]
        if isinstance(error, (ValueError, OSError)) and text
        else f"{type(error).__name__}: {text[:200]}"
    )
