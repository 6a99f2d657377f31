"""The folders that commands write to: checked before the work begins, and locked while it lasts."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .runs import RunError, is_free, numbered

# The file descriptors of the folders that this process holds.
_held: set[int] = set()


class FolderInUse(RunError):
    """Another process holds the folder."""


@contextmanager
def held(folder: Path, option: str = "--out") -> Iterator[Path]:
    """Lock `folder` for this process alone. It is made if it does not exist, and removed if it is empty at the end.
    Messages advise another folder by `option`.

    The lock ends with the process, however that ends, and leaves no file. On a file system without locks nothing is
    locked.

    Raises:
        RunError: the folder cannot be made or written to; this fails now and not after hours of work.
        FolderInUse: another process holds the folder.
    """
    with _writable(folder, option):
        lock = _locked(folder, option)
        try:
            yield folder
        finally:
            _held.discard(lock)
            os.close(lock)


@contextmanager
def held_new(chosen: Path | None, default: Path, option: str = "--out") -> Iterator[Path]:
    """Lock the folder that the user chose, which must be new or empty, or else the first free one of default,
    default-2, default-3 and so on."""
    with ExitStack() as stack:
        if chosen is not None:
            if not is_free(chosen):
                raise RunError(f"{chosen} exists; name another folder with {option}")
            yield stack.enter_context(held(chosen, option))
            return
        for candidate in filter(is_free, numbered(default)):
            with suppress(FolderInUse):
                folder = stack.enter_context(held(candidate))
                break
        yield folder


def check_writable(folder: Path, option: str = "--out") -> None:
    """Raise RunError if files cannot be written to `folder`, which need not exist. Nothing is left behind."""
    with _writable(folder, option):
        pass


@contextmanager
def _writable(folder: Path, option: str = "--out") -> Iterator[None]:
    """Make `folder`, with its parents, and write a file to it. At the end remove the new folders that are empty."""
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
            with suppress(OSError):  # a folder that is not empty stays
                place.rmdir()


def _locked(folder: Path, option: str) -> int:
    """Lock `folder` and return its file descriptor."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise FolderInUse(
            f"{folder} is in use by another process; name another folder with {option}"
        ) from None
    except OSError:
        pass  # the file system has no locks
    _held.add(lock)
    return lock


def _release_in_child() -> None:
    """Release the locks in a forked process, such as a DataLoader's, so that they end with its parent."""
    for lock in _held:
        with suppress(OSError):
            os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)
