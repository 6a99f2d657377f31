"""The project's GPU kernels in this process, as PTX on the interpreter.

MOTIONRNN_EXT_PTX names the folder that tests/ptx/CMakeLists.txt has built. `load_cuda` loads every kernel's PTX as nvcc
emits it; the project's own launchers choose kernel, grid and arguments. `load_triton` makes Triton launch there what it
compiles. Both are for the architecture (80 or 90) of MOTIONRNN_EXT_PTX_ARCHITECTURE, by default 90.
MOTIONRNN_EXT_PTX_OPTIONS changes how kernels are run, such as "seed=3,noise=2" (see `Options`). In the folder that
MOTIONRNN_EXT_PTX_COVERAGE names, every process leaves which kernels it launched and what it executed of them.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path

import torch
from ptx_interpreter import Coverage, Interpreter

NAMESPACE = "motionrnn_ext_emulated"
LIBRARY, INTERPRETER = "motionrnn_ext_ptx", "ptx_interpreter"


def ptx_files(folder: Path, target: str, architecture: int) -> list[Path]:
    """Return the PTX of the sources of a library that tests/ptx/CMakeLists.txt builds."""
    kept = folder / f"{target}.ptx"
    names = (kept / "sources.txt").read_text().split()
    return [kept / f"{name}.compute_{architecture}.ptx" for name in names]


def start(folder: Path, architecture: int) -> Interpreter:
    """Return the interpreter that was built in this folder, with the options of the environment."""
    ptx = Interpreter(folder / f"lib{INTERPRETER}.so")
    ptx.set(
        mma_extra_bits=1 if architecture < 90 else 2
    )  # that tensor cores keep of a sum, where mma_mode is 1
    words = os.environ.get("MOTIONRNN_EXT_PTX_OPTIONS", "").split(",")
    ptx.set(**{name: int(value) for name, _, value in (word.partition("=") for word in words if word)})
    torch.set_num_threads(1)
    ptx.watch_tensors()
    return ptx


def load_cuda() -> Interpreter:
    """Load the CUDA kernels, and the library whose ops launch them; the ops are still to be registered."""
    folder, architecture = Path(os.environ["MOTIONRNN_EXT_PTX"]), chosen_architecture()
    ptx = start(folder, architecture)
    for path in ptx_files(folder, LIBRARY, architecture):
        ptx.load_file(path)
    torch.ops.load_library(folder / f"lib{LIBRARY}.so")
    atexit.register(finish, ptx, f"cuda-{architecture}", os.getpid())
    return ptx


def load_triton() -> Interpreter:
    """Let the Triton kernels run on CPU tensors, compiled."""
    from ptx_interpreter import triton_driver

    from motionrnn_ext.backends import triton

    architecture = chosen_architecture()
    ptx = start(Path(os.environ["MOTIONRNN_EXT_PTX"]), architecture)
    triton_driver.use(ptx, architecture)
    from motionrnn_ext.backends.triton import ops  # noqa: F401

    triton.INTERPRETED = True  # from here on: that tensors are on the CPU
    atexit.register(finish, ptx, f"triton-{architecture}", os.getpid())
    return ptx


def chosen_architecture() -> int:
    return int(os.environ.get("MOTIONRNN_EXT_PTX_ARCHITECTURE") or "90")


def finish(ptx: Interpreter, part: str, process: int) -> None:
    """Note what this process executed, and fail it if a mistake was reported outside of `UnderTest.chosen`."""
    if os.getpid() != process:
        return
    folder = os.environ.get("MOTIONRNN_EXT_PTX_COVERAGE")
    if folder and (coverage := ptx.coverage()).any_launched:
        path = Path(folder) / f"{part}-{process}.json"
        path.write_text(json.dumps(coverage.as_json()))
    if reports := ptx.reports():
        print(*reports, sep="\n", file=sys.stderr, flush=True)
        os._exit(70)


def recorded_coverage(folder: Path, part: str) -> Coverage:
    """Return what the processes of a part of the tests, such as "cuda-90", have executed together."""
    found = Coverage()
    for path in folder.glob(f"{part}-*.json"):
        found.merge(Coverage.from_json(json.loads(path.read_text())))
    return found
