"""Files: text in UTF-8 whatever the locale says, tensors read without running code, writing that leaves no part."""

from __future__ import annotations

import codecs
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NoText(ValueError):
    """A file holds no text, or text that is not in UTF-8; the message says which."""


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without its byte order mark, with its line ends as they are.

    Bytes that are not UTF-8 are escaped as Python escapes them in file names (`surrogateescape`), so that a list of
    files can name any file.

    Raises:
        OSError: the file cannot be read. NoText: it is UTF-16, or has null characters.
    """
    content = path.read_bytes()
    if content.startswith(_OTHER_MARKS):
        raise NoText("it is in UTF-16; save it as UTF-8")
    if b"\0" in content:
        raise NoText("it is no text")
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def write_text(path: Path, text: str) -> None:
    with write_atomically(path) as part:
        part.write_bytes(text.encode("utf-8", "surrogateescape"))


@contextmanager
def write_atomically(path: str | os.PathLike[str], parents: bool = True) -> Iterator[Path]:
    """Yield a name beside `path` to write to; move that file to `path` when the block ends, remove it on an error.

    With `parents`, missing folders are made. An OSError names `path`.
    """
    path = Path(path)
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        # An error of a write does not name its file.
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            part.unlink()


def load_tensors(file: str | os.PathLike[str] | BinaryIO, map_location: str | torch.device = "cpu") -> Any:
    """Return what torch.save wrote to a file, read by torch's restricted unpickler, which runs no code of the file.

    A damaged file can raise any exception, and torch's messages recommend unsafe loading, so callers word the error
    themselves; torch's warnings about foreign pickles are hidden for the same reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(file, map_location=map_location, weights_only=True)
