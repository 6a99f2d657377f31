"""Runs a command with the GPU kernels on PTX, and builds them first.

    python tests/ptx [--triton] [--arch 80] pytest tests/ops/test_ops.py -k emulated    tests, here those of CUDA
    python tests/ptx [--triton] [--arch 80] counts                                      what a launch does, counted
    python tests/ptx times                                                              of a step's launches, calculated
    python tests/ptx [--arch 80] mutate 100                                             wrong instructions, planted

--triton takes the Triton kernels instead of the CUDA kernels: their tests have `triton` in their names. --arch is 80 or
90, by default 90. Each command has its own --help.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMANDS = {name: str(HERE / f"{name}.py") for name in ("counts", "mutate", "times")}


def main() -> None:
    sys.path[:0] = [str(HERE.parent / "support"), str(HERE / "interpreter" / "python")]
    import on_ptx
    import pytest
    from ptx_runs import build, environment

    parser = argparse.ArgumentParser(
        prog="python tests/ptx", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--triton", action="store_true", help="the Triton kernels")
    parser.add_argument("--arch", type=int, choices=(80, 90), default=90, help="the architecture")
    parser.add_argument("command", choices=("pytest", *COMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    try:
        folder = build(on_ptx.INTERPRETER if options.triton else on_ptx.LIBRARY)
    except pytest.skip.Exception as reason:
        sys.exit(f"python tests/ptx: error: {reason}")
    of = "triton" if options.triton else "cuda"
    program = ["-m", "pytest"] if options.command == "pytest" else [COMMANDS[options.command]]
    variables = {**os.environ, **environment(folder, options.arch, of)}
    os.execve(sys.executable, [sys.executable, *program, *options.arguments], variables)


if __name__ == "__main__":
    main()
