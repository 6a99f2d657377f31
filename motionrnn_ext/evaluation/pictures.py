"""Pictures come after the numbers: one that cannot be drawn is noted, and stops neither the others nor the program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class NotDrawn(Exception):
    """Some pictures could not be drawn; whatever else was to be written is."""

    def __init__(self, failed: Sequence[str]) -> None:
        super().__init__("; ".join(failed))
        self.failed = list(failed)  # a line for each, naming it and the reason


class Pictures(list[Path]):
    """The paths of pictures that were drawn; `failed` has a line for each that could not be."""

    def __init__(self, written: Sequence[Path] = ()) -> None:
        super().__init__(written)
        self.failed: list[str] = []

    def draw(self, function: Callable[..., Path], path: Path, /, *arguments: Any, **options: Any) -> None:
        """Call a function of `visualize`, which writes `path`."""
        drawn = self.attempt(path, function, path, *arguments, **options)
        if drawn is not None:
            self.append(drawn)

    def attempt(
        self, what: object, function: Callable[..., T], /, *arguments: Any, **options: Any
    ) -> T | None:
        """What the function returns, or None and a line in `failed` that says what could not be drawn."""
        try:
            return function(*arguments, **options)
        except Exception as error:  # matplotlib's, Pillow's, of fonts, sizes, memory, the disk
            self.failed.append(f"{what} could not be drawn: {_reason(error)}")
            return None

    def add(self, others: Pictures) -> None:
        self += others
        self.failed += others.failed

    def check(self) -> None:
        """NotDrawn if any failed."""
        if self.failed:
            raise NotDrawn(self.failed)


def _reason(error: Exception) -> str:
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
