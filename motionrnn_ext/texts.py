"""Reading and writing text files: UTF-8, whatever the locale says."""

from __future__ import annotations

import codecs
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
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
