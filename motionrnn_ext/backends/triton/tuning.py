"""The fastest blocks of a GPU: those that earlier processes measured and kept on disk, and those of measured.py.

A choice is a file of its own, written whole under another name and then renamed, so that processes may write at the
same time. Its folder names what the choice depends on besides: the versions of this package and of Triton, and the GPU.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from ...caller import stacklevel_of_user
from . import measured
from .measured import Row

_warned: set[str] = set()


class Key(NamedTuple):
    """The things that a choice of a block depends on, as `launch.in_blocks` takes them."""

    op: str
    kernel: str
    channels: int
    dtype: torch.dtype
    device: torch.device


@cache
def stored(key: Key) -> Row | None:
    """Return the row of a key that is on disk, or else that of the package for this GPU, or None."""
    wanted = _row(key, 0, 0)
    if wanted is None:
        return None
    found = _read(wanted)
    if found is not None:
        return found
    # A row of another version of Triton is a better guess than a block that was never measured.
    name = (wanted.gpu, *wanted[2:6])
    rows = [row for row in measured.ROWS if (row.gpu, *row[2:6]) == name]
    return max(rows, key=lambda row: row.triton == wanted.triton, default=None)


def keep(key: Key, size: int, warps: int) -> Row | None:
    """Keep a choice on disk, warn if that is not possible, and return it; None if the tensors are on no GPU."""
    row = _row(key, size, warps)
    if row is None:
        return None
    stored.cache_clear()
    try:
        path = _file(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(json.dumps(row._asdict()) + "\n")
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
    except (OSError, RuntimeError) as error:
        _warn(
            "keep",
            f"the measured blocks of Triton's kernels cannot be kept: {error}; they serve this process alone. "
            "MOTIONRNN_EXT_CACHE may name another folder",
        )
    return row


def gpu_name(device: torch.device) -> str | None:
    """Return the name of a GPU, or None for a device that is none, or is not there."""
    is_there = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_name(device) if is_there else None


def folder() -> Path:
    """Return the folder of the choices: MOTIONRNN_EXT_CACHE, or motionrnn_ext in the user's cache folder.

    Raises:
        RuntimeError: the user has no home folder.
    """
    if named := os.environ.get("MOTIONRNN_EXT_CACHE", "").strip():
        return Path(named) / "blocks"
    # A relative path is no cache folder by the XDG specification.
    user = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(user) if os.path.isabs(user) else Path.home() / ".cache") / "motionrnn_ext" / "blocks"


def _row(key: Key, size: int, warps: int) -> Row | None:
    gpu = gpu_name(key.device)
    if gpu is None:
        return None
    dtype = str(key.dtype).removeprefix("torch.")
    return Row(gpu, triton.__version__, key.op, key.kernel, key.channels, dtype, size, warps)


def _file(row: Row) -> Path:
    from ... import __version__

    name = ".".join(filter(None, (row.op, row.kernel, f"c{row.channels}", row.dtype, "json")))
    versions, gpu = f"{__version__}-triton{row.triton}", re.sub(r"[^\w.-]+", "_", row.gpu)
    return folder() / versions / gpu / name


def _read(wanted: Row) -> Row | None:
    """Return the row on disk for what `wanted` is for, or None; warn if there is a file that cannot be read."""
    path = None
    try:
        path = _file(wanted)
        found = Row(**json.loads(path.read_text()))
        if found[:6] == wanted[:6] and all(type(number) is int for number in found[6:]):
            return found
        wrong = f"it holds {found}"
    except (FileNotFoundError, NotADirectoryError, RuntimeError):
        return None
    except (OSError, TypeError, ValueError) as error:
        wrong = str(error)
    _warn(
        "read",
        f"the measured block of Triton's kernels in {path} cannot be read: {wrong}; another is used. "
        "`motionrnn tune` writes the file anew",
    )
    return None


def _warn(kind: str, message: str) -> None:
    if kind not in _warned:
        _warned.add(kind)
        warnings.warn(f"motionrnn_ext: {message}", stacklevel=stacklevel_of_user())
