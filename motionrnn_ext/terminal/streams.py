"""The standard streams and environment variables of the program. This module needs only Python."""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

ENDED_BY_A_PIPE = 141  # 128 + SIGPIPE, the exit code of a program that writes to a pipe without a reader
# Variables with a meaning when they are empty, such as CUDA_VISIBLE_DEVICES, are left out.
_UNSET_IF_EMPTY = re.compile(
    "(MOTIONRNN_EXT|SLURM|JSM|OMPI|PMI|PL|OMP|MKL|MPL|PET|TORCHELASTIC)_.*|(GLOBAL_|LOCAL_|NODE_|GROUP_)?RANK|"
    "(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)|HOME|TMPDIR|COLUMNS|LINES|MPL(BACKEND|CONFIGDIR)|XDG_.*|TERM"
)


class OutputLost(Exception):
    """The standard output or error cannot be written. It is no OSError, because no file of a command is the cause."""

    def __init__(self, stream: str, cause: OSError) -> None:
        super().__init__(f"{stream} cannot be written: {cause.strerror or cause}")
        self.by_pipe = cause.errno == errno.EPIPE


def set_up() -> None:
    """Prepare the streams and variables of the program's process, before anything that reads them is imported.

    Only the program calls this, never a library.
    """
    for name in [
        name for name, value in os.environ.items() if not value.strip() and _UNSET_IF_EMPTY.fullmatch(name)
    ]:
        del os.environ[name]
    # Pictures need no window, and the backend that a notebook sets may not be installed for its `!motionrnn`.
    os.environ["MPLBACKEND"] = "agg"
    # A closed stream is None. The next opened file would take its number.
    if sys.stdout is None or sys.stderr is None:
        nothing = open(os.devnull, "w")  # noqa: SIM115 (it stays open)
        sys.stdout, sys.stderr = sys.stdout or nothing, sys.stderr or nothing
    codecs.register_error("motionrnn_ext.replace_unencodable", _replace_unencodable)
    sys.stdout, sys.stderr = _lenient(sys.stdout), _lenient(sys.stderr)


def guarded(call: Callable[[], int]) -> int:
    """Return the exit code of `call()` after its output is flushed.

    If the output cannot be written, the code is 141 without a message for a pipe without a reader, and else 2 with one.
    """
    try:
        try:
            code = call()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    except OutputLost as lost:
        if not lost.by_pipe:
            with suppress(OutputLost):
                print(f"motionrnn: error: {lost}", file=sys.stderr, flush=True)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # their buffers may still hold text
            with suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())
        code = ENDED_BY_A_PIPE if lost.by_pipe else 2
    return code


class _Raw(io.FileIO):
    """A standard stream whose failed writes raise OutputLost."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            raise OutputLost("stdout" if self.fileno() == 1 else "stderr", error) from None


def _lenient(stream: Any) -> Any:
    """Return a standard stream that writes any text, line by line, and raises OutputLost if it cannot be written."""
    if not isinstance(stream, io.TextIOWrapper) or stream not in (sys.__stdout__, sys.__stderr__):
        return stream
    stream.flush()
    raw = _Raw(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, "motionrnn_ext.replace_unencodable", line_buffering=True
    )


def _replace_unencodable(error: UnicodeError) -> Any:
    """Return the original bytes of a file name that is no text, and ? for characters that the encoding lacks."""
    with suppress(UnicodeError):
        return codecs.lookup_error("surrogateescape")(error)
    return codecs.lookup_error("replace")(error)
