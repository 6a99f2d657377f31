"""The program `motionrnn`: its entry point, and its messages and exit codes for errors."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial

from .. import backends
from ..evaluation.pictures import NotDrawn
from ..terminal import streams
from ..training import processes
from .commands import COMMANDS
from .parser import make_parser

_NOT_DRAWN = 4  # the exit code if pictures could not be drawn


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    0 stands for success, 2 for a mistake that the user can correct, 3 for a lost process of a training, 4 for pictures
    that could not be drawn while the rest is done, 130 for an interruption, and 141 for a closed output pipe.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    if given != sys.argv[1:]:  # another program calls this; its streams and variables stay as they are
        return _run_command(given)
    streams.set_up()
    code = streams.guarded(partial(_run_command, given))
    if processes.is_started() or processes.of_torchrun():
        processes.leave(code)
    return code


def _run_command(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    arguments.argv = argv
    arguments.is_program = argv == sys.argv[1:]  # otherwise another program calls `main`
    if arguments.is_program:  # print a warning as one line, without its place in the source
        warnings.formatwarning = lambda message, *_: f"motionrnn {arguments.command}: warning: {message}\n"
    if processes.is_started():
        processes.end_with_parent()
    try:
        processes.is_first()  # reports a bad variable before Lightning fails on it
        _import(arguments.imports)
        if arguments.command != "info":  # info shows what is wrong with the variables
            _check_variables()
        COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        if not processes.is_started():
            print("\nstopped", file=sys.stderr)
        return 130
    except processes.LostProcess as error:
        if not processes.is_started():
            _fail(arguments, str(error))
        return processes.LOST
    except ModuleNotFoundError as error:
        return _fail(arguments, _missing_package(error))
    except NotDrawn as error:
        for line in error.failed:
            _fail(arguments, line)
        return _NOT_DRAWN
    except Exception as error:
        advice = _advice(error)
        if advice is not None:
            return _fail(arguments, advice)
        # Lightning's exception is compared by name, because Lightning may not be installed.
        is_mistake = (
            isinstance(error, (ValueError, OSError)) or type(error).__name__ == "MisconfigurationException"
        )
        if not is_mistake:
            raise  # an error of the program itself, shown with its traceback
        return _fail(arguments, _one_line(error))
    return 0


def _fail(arguments: argparse.Namespace, message: str) -> int:
    if arguments.debug:
        traceback.print_exc()
    print(f"motionrnn {arguments.command}: error: {message}", file=sys.stderr)
    return 2


def _one_line(error: Exception) -> str:
    text = str(error).strip()
    if "in DataLoader worker process" in text:  # the worker's own error is the last line, after a traceback
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def _advice(error: Exception) -> str | None:
    """Return advice if the machine has too little memory, or else None. torch and its workers have many messages."""
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "out of memory: try a smaller --batch-size, and for training --checkpoint-steps"
    if "shared memory" in text or "unable to write to file </torch_" in text or "/dev/shm" in text:
        return "no shared memory (/dev/shm) is left for the processes that draw clips: try --workers 0, or enlarge it"
    return None


def _missing_package(error: ModuleNotFoundError) -> str:
    if error.name is None:  # the message already names the package
        return " ".join(str(error).split())
    return f"the package {error.name.split('.')[0]} is missing: pip install 'motionrnn-ext[train]'"


def _check_variables() -> None:
    try:
        backends.check_variables()
    except RuntimeError as error:  # an error of the kernels begins with its place in the source
        raise ValueError(re.sub(r"^.*\.cpp:\d+, ", "", str(error))) from None


def _import(modules: Sequence[str]) -> None:
    """Import the user's modules, also from the working directory, as `python -m` does."""
    if modules and "" not in sys.path:
        sys.path.insert(0, "")
    for name in modules:
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"--import must be the name of a module, such as my_cells; got {name!r}")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise ValueError(f"--import {name}: {error}, which it imports") from None
            raise ValueError(
                f"--import: no module {name!r} in the working directory or on sys.path"
            ) from None
