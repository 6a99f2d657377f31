"""Reading and writing of files: text in UTF-8 in any locale, JSON, tensors without running code, whole files only."""

from __future__ import annotations

import argparse
import codecs
import json
import math
import os
import pickle
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import reduce
from operator import getitem
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import torch

# A list of numbers and words of `json.dumps` with an indent. No text has a line break, which JSON escapes.
_SHORT_LIST = re.compile(r'\[\n\s+(?:(?:[\w.+-]+|"(?:[^"\\]|\\.)*"),?\n\s+)+\]')
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


def write_json(path: Path, content: Mapping[str, Any], short_lists: bool = False) -> Path:
    """Write `content` as JSON, with null for each nan and infinity, which JSON does not have; return `path`.

    A last entry "not_finite" then says which value was where, such as
    [{"at": ["models", "ConvLSTM", "psnr"], "is": "inf"}]. `read_json` restores them. With `short_lists` a list of
    numbers and words is one line.
    """
    found: list[dict[str, Any]] = []
    finite = _finite(content, found, [])
    text = json.dumps({**finite, "not_finite": found} if found else finite, indent=2)
    if short_lists:
        text = _SHORT_LIST.sub(lambda found: re.sub(r"\n\s*", " ", found[0]), text)
    write_text(path, text + "\n")
    return path


def _finite(content: Any, found: list[dict[str, Any]], place: list[Any]) -> Any:
    """Return `content` with None for numbers that are not finite, and add those and their places to `found`."""
    if isinstance(content, float) and not math.isfinite(content):
        found.append({"at": place, "is": str(content)})
        return None
    if isinstance(content, Mapping):
        return {str(key): _finite(value, found, [*place, str(key)]) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value, found, [*place, i]) for i, value in enumerate(content)]
    return content


def read_json(path: Path) -> Any:
    """Return the content that `write_json` was given."""
    content = json.loads(read_text(path))
    if isinstance(content, dict):
        for entry in content.pop("not_finite", []):
            *outer, key = entry["at"]
            reduce(getitem, outer, content)[key] = float(entry["is"])
    return content


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


# Classes of plain values that programs save beside the weights, by the names in the file: settings, paths, scores.
_OF_VALUES: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    **{f"pathlib{part}.{kind}Path": PurePath for part in ("", "._local") for kind in ("Posix", "Windows")},
}
_one_at_a_time = threading.Lock()


def load_tensors(file: str | os.PathLike[str] | BinaryIO, map_location: str | torch.device = "cpu") -> Any:
    """Return what torch.save wrote to a file, read by torch's restricted unpickler, which runs no code of the file.

    Beside tensors and Python's own types a file may hold NumPy's numbers and arrays, paths and argparse's settings. A
    damaged file can raise any exception, and torch's messages recommend unsafe loading, so callers word the error
    themselves; torch's warnings about foreign pickles are hidden for the same reason.
    """
    start = file.tell() if hasattr(file, "tell") else 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(file, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            if not re.search(r"GLOBAL (argparse|pathlib|numpy)\.", str(error)):
                raise
        if hasattr(file, "seek"):
            file.seek(start)
        # The list of allowed classes is torch's own and of the whole process.
        with _one_at_a_time, torch.serialization.safe_globals(_classes_of_values()):
            return torch.load(file, map_location=map_location, weights_only=True)


def _classes_of_values() -> list[Any]:
    """Return the classes of plain values, each with the name that a file may have for it."""
    found = [(cls, name) for name, cls in _OF_VALUES.items()]
    with suppress(ModuleNotFoundError):
        import numpy as np

        found += [(np.dtype, "numpy.dtype"), (np.ndarray, "numpy.ndarray")]
        found += [
            (type(np.dtype(code)), f"numpy.dtypes.{type(np.dtype(code)).__name__}")
            for code in "?bBhHiIlLqQefd"
        ]
        scalar, rebuild = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
        for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            found += [(scalar, f"{module}.scalar"), (rebuild, f"{module}._reconstruct")]
    return found
