"""Reading text files, UTF-8 whatever the locale says, and writing files that are whole or not there."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NoText(ValueError):
    """What a file holds is no text, or not in UTF-8; the text says which."""


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark, its line ends as they are. Bytes that are no
    UTF-8 become what Python makes of such bytes in the names of files, so that a list can name these.

    Raises:
        OSError: it cannot be read. NoText: it is UTF-16, or has null characters.
    """
    content = path.read_bytes()
    if content.startswith(_OTHER_MARKS):
        raise NoText("it is in UTF-16; save it as UTF-8")
    if b"\0" in content:
        raise NoText("it is no text")
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def write_text(path: Path, text: str) -> None:
    with prepared(path) as part:
        part.write_bytes(text.encode("utf-8", "surrogateescape"))


@contextmanager
def prepared(path: str | os.PathLike[str], parents: bool = True) -> Iterator[Path]:
    """Another name beside `path` to write to; it is moved there when it is whole, and removed otherwise. With `parents`
    the folder is made where it is missing. An OSError names `path`."""
    path = Path(path)
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.errno and error.filename is None:  # a write says nothing of its file
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            part.unlink()
