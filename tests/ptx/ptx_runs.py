"""Runs of the project's tests on PTX, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import native_build
import on_ptx
from repository import ROOT, TESTS, path_of_test

BUILD = {"name": "ptx", "MOTIONRNN_EXT_PTX": "ON"}
WITHOUT_CUDA = {**BUILD, "MOTIONRNN_EXT_PTX": "INTERPRETER"}
PRELOADED = "ptx_preload"
PYTHON_PATHS = (ROOT, TESTS / "support", TESTS / "ptx", TESTS / "ptx" / "interpreter" / "python")


def build(target: str) -> Path:
    """Build a target of tests/ptx and the interpreter, and return the folder.

    A test is skipped where the target needs nvcc and there is none.
    """
    has_cuda = native_build.configure(**BUILD)[0] is not None
    definitions = BUILD if has_cuda or target != on_ptx.INTERPRETER else WITHOUT_CUDA
    native_build.build(target, **definitions)
    return native_build.build(PRELOADED, **definitions).parent


def environment(folder: Path, architecture: int, of: str = "cuda", **more: str) -> dict[str, str]:
    """Return what a process needs to run the kernels of `of` ("cuda" or "triton") on PTX."""
    paths = [*map(str, PYTHON_PATHS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "LD_PRELOAD": str(folder / f"lib{PRELOADED}.so"),
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "MOTIONRNN_EXT_PTX": str(folder),
        "MOTIONRNN_EXT_PTX_OF": of,
        "MOTIONRNN_EXT_PTX_ARCHITECTURE": str(architecture),
        **more,
    }


def run_tests(
    files: list[str], select: str, variables: dict[str, str], share: str = "1/1"
) -> subprocess.CompletedProcess[str]:
    """Run the tests of these files that pytest's -k selects, or a share of them, such as "1/2"."""
    return native_build.run(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", select,
        "--share", share, *map(path_of_test, files), cwd=ROOT, **variables,
    )  # fmt: skip
