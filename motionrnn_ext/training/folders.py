"""Folders that commands write to: tried before the work begins, and held while it lasts."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .runs import RunError, is_free, numbered

_held: set[int] = set()  # file descriptors of the folders that this process holds


class FolderInUse(RunError):
    """Another process holds the folder."""


@contextmanager
def held(folder: Path) -> Iterator[Path]:
    """Hold `folder` for this process alone; it is made if it is not there, and removed if it is empty in the end.

    The lock goes with the process, however that ends, and leaves no file. Where the file system has no locks nothing
    is held.

    Raises:
        RunError: it cannot be made or written to: what would fail after hours fails now.
        FolderInUse: another process holds it.
    """
    with _writable(folder):
        lock = _locked(folder)
        try:
            yield folder
        finally:
            _held.discard(lock)
            os.close(lock)


@contextmanager
def held_new(chosen: Path | None, default: Path) -> Iterator[Path]:
    """`held` of the folder that the user chose, which must be new or empty, or of the next free default-N."""
    with ExitStack() as stack:
        if chosen is not None:
            if not is_free(chosen):
                raise RunError(f"{chosen} exists; name another folder with --out")
            yield stack.enter_context(held(chosen))
            return
        for candidate in filter(is_free, numbered(default)):
            with suppress(FolderInUse):
                folder = stack.enter_context(held(candidate))
                break
        yield folder


def check_writable(folder: Path, option: str = "--out") -> None:
    """RunError where files cannot be written to `folder`, which need not be there; nothing is left behind."""
    with _writable(folder, option):
        pass


@contextmanager
def _writable(folder: Path, option: str = "--out") -> Iterator[None]:
    """Make `folder` and write a file into it; in the end, what was made for it and is empty is removed."""
    made: list[Path] = []
    try:
        try:
            made += [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"0")
        except OSError as error:
            reason = error.strerror or error
            raise RunError(
                f"{folder} cannot be written to: {reason}; name another place with {option}"
            ) from None
        yield
    finally:
        for place in made:
            with suppress(OSError):  # it is not empty
                place.rmdir()


def _locked(folder: Path) -> int:
    """The locked folder's file descriptor."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise FolderInUse(f"{folder} is in use by another process; name another folder with --out") from None
    except OSError:
        pass  # a file system without locks
    _held.add(lock)
    return lock


def _let_go() -> None:
    """In a forked process, such as a DataLoader's: the folder is its parent's, and free when that has ended."""
    for lock in _held:
        with suppress(OSError):
            os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
