"""What the program makes of the streams and variables that it inherits. Needs Python alone."""

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
# Variables that say something when they are empty, such as CUDA_VISIBLE_DEVICES, are not among these.
_UNSET_IF_EMPTY = re.compile(
    "(MOTIONRNN_EXT|SLURM|JSM|OMPI|PMI|PL|OMP|MKL|MPL|PET|TORCHELASTIC)_.*|(GLOBAL_|LOCAL_|NODE_|GROUP_)?RANK|"
    "(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)|HOME|TMPDIR|COLUMNS|LINES|MPL(BACKEND|CONFIGDIR)|XDG_.*|TERM"
)


class OutputLost(Exception):
    """The standard output or error cannot be written. No OSError: it has nothing to do with the files of a command."""

    def __init__(self, stream: str, cause: OSError) -> None:
        super().__init__(f"{stream} cannot be written: {cause.strerror or cause}")
        self.by_pipe = cause.errno == errno.EPIPE


def settle() -> None:
    """Set the program's own process up, before it imports what reads these variables. Libraries never call this."""
    for name in [
        name for name, value in os.environ.items() if not value.strip() and _UNSET_IF_EMPTY.fullmatch(name)
    ]:
        del os.environ[name]
    # Pictures need no window, and a notebook's backend is not always installed where its `!motionrnn` runs.
    os.environ["MPLBACKEND"] = "agg"
    if sys.stdout is None or sys.stderr is None:  # closed: what is opened next would take its place
        nothing = open(os.devnull, "w")  # noqa: SIM115 (for as long as the program runs)
        sys.stdout, sys.stderr = sys.stdout or nothing, sys.stderr or nothing
    codecs.register_error("motionrnn_ext.as_it_can", _as_it_can)
    sys.stdout, sys.stderr = _lenient(sys.stdout), _lenient(sys.stderr)


def guarded(call: Callable[[], int]) -> int:
    """The exit code of `call()`, all that it printed written out; of output that cannot be written 141 without a word
    for a pipe whose reader has gone, and otherwise 2 with one."""
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
        for stream in (sys.stdout, sys.stderr):  # for what is still in their buffers
            with suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())
        code = ENDED_BY_A_PIPE if lost.by_pipe else 2
    return code


class _Raw(io.FileIO):
    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            raise OutputLost("stdout" if self.fileno() == 1 else "stderr", error) from None


def _lenient(stream: Any) -> Any:
    """A standard stream that prints whatever it is given, line by line, and names its failures."""
    if not isinstance(stream, io.TextIOWrapper) or stream not in (sys.__stdout__, sys.__stderr__):
        return stream
    stream.flush()
    raw = _Raw(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, "motionrnn_ext.as_it_can", line_buffering=True
    )


def _as_it_can(error: UnicodeError) -> Any:
    """The bytes of a file's name that are no text, and ? for characters that the encoding lacks."""
    with suppress(UnicodeError):
        return codecs.lookup_error("surrogateescape")(error)
    return codecs.lookup_error("replace")(error)
