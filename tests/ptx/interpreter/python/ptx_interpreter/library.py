"""The interpreter's library, loaded into this process."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from .results import Coverage, InstructionCounts, Kernel, KernelCounts, Launch, Report

_TEXTS = ("errors", "launches", "stats", "unsupported", "coverage", "text")
_U32 = ctypes.POINTER(ctypes.c_uint32)
_ARGUMENTS: dict[str, list[Any]] = {
    "register": [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p],
    "unregister": [ctypes.c_uint64],
    "set": [ctypes.c_char_p, ctypes.c_double],
    "load": [ctypes.c_char_p, ctypes.c_char_p],
    "launch": [
        ctypes.c_int,
        ctypes.c_char_p,
        _U32,
        _U32,
        ctypes.c_uint32,
        ctypes.POINTER(ctypes.c_void_p),
    ],
    "param_count": [ctypes.c_int, ctypes.c_char_p],
    "text": [ctypes.c_char_p],
    "replace": [ctypes.c_char_p, ctypes.c_char_p],
}


class Options(TypedDict, total=False):
    """How kernels are run.

    check_races, check_global: whether races are looked for in shared and in global memory. stats: whether instructions
    are counted. noise: approximations such as ex2.approx are wrong by up to so many units in the last place. mma_mode:
    0 sums matrix products exactly, 1 cuts the sums as tensor cores do. seed: blocks and warps run in a random order;
    0 keeps that of their numbers. max_blocks: so many blocks of a launch are run, spread evenly; 0 runs all.
    max_warp_insts: a warp that executes more is taken for an endless loop.
    """

    check_races: int
    check_global: int
    stats: int
    noise: int
    mma_mode: int
    mma_extra_bits: int
    seed: int
    max_blocks: int
    max_warp_insts: int


class Interpreter:
    """The functions of libptx_interpreter.so, which a process has once."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        for name in _TEXTS:
            self._function(name).restype = ctypes.c_char_p
        for name, types in _ARGUMENTS.items():
            self._function(name).argtypes = types

    def _function(self, name: str) -> Any:
        return getattr(self._library, f"ptxsim_{name}")

    def _json(self, name: str) -> Any:
        return json.loads(self._function(name)().decode())

    # ---- Memory

    def watch_tensors(self) -> None:
        """Learn the extent of every tensor that this process allocates from now on."""
        process = ctypes.CDLL(None)
        if not hasattr(process, "ptxsim_hook"):
            raise RuntimeError("the process was not started with LD_PRELOAD naming libptx_preload.so")
        process.ptxsim_hook.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        functions = (self._function("register"), self._function("unregister"))
        process.ptxsim_hook(*(ctypes.cast(function, ctypes.c_void_p) for function in functions))

    def register(self, address: int, size: int, label: str = "memory") -> None:
        """Let kernels access `size` bytes at this address."""
        self._function("register")(address, size, label.encode())

    def unregister(self, address: int) -> None:
        self._function("unregister")(address)

    # ---- Kernels

    def set(self, **options: Any) -> None:
        """Set some of `Options`."""
        for name, value in options.items():
            if self._function("set")(name.encode(), float(value)):
                raise ValueError(f"the interpreter's option is {name!r}; it should be one of Options")

    def load_file(self, path: Path) -> int:
        """Load a file of PTX and return its number."""
        return self.load(str(path), path.read_text())

    def load(self, name: str, ptx: str) -> int:
        """Load a module of PTX under a name for reports, and return its number."""
        return self._function("load")(name.encode(), ptx.encode())

    def unsupported(self) -> list[str]:
        """Return the instructions of the loaded modules that the interpreter does not know, with their kernels."""
        return self._function("unsupported")().decode().splitlines()

    def launch(
        self,
        module: int,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        arguments: Sequence[bytes | None],
    ) -> None:
        """Launch a kernel; `arguments` are the bytes of each, None for one that is never read."""
        count = self._function("param_count")(module, kernel.encode())
        if count < len(arguments):
            raise ValueError(f"{len(arguments)} arguments are given; {kernel} should get {count}")
        buffers = [None if a is None else ctypes.create_string_buffer(a, max(len(a), 8)) for a in arguments]
        addresses = [None if b is None else ctypes.addressof(b) for b in buffers]
        pointers = (ctypes.c_void_p * max(count, 1))(*addresses, *[None] * (count - len(addresses)))
        dimensions = [(ctypes.c_uint32 * 3)(*three) for three in (grid, block)]
        if self._function("launch")(module, kernel.encode(), *dimensions, shared_bytes, pointers):
            raise RuntimeError(f"{kernel} could not be launched: {'; '.join(map(str, self.reports()))}")

    def text(self, kernel: str) -> str:
        """Return the PTX of a kernel."""
        return self._function("text")(kernel.encode()).decode()

    def replace(self, kernel: str, ptx: str) -> None:
        """Run this PTX in the place of a kernel's own."""
        if self._function("replace")(kernel.encode(), ptx.encode()):
            raise ValueError(f"the kernel is {kernel}; it should be one that is loaded")

    # ---- Results

    def reports(self) -> list[Report]:
        """Return the mistakes since the last call."""
        found = [
            Report(e["kind"], e["kernel"], e["inst"], e["detail"], e["file"], e["line"], e["count"])
            for e in self._json("errors")
        ]
        self._function("clear_errors")()
        return found

    def launches(self) -> list[Launch]:
        """Return the launches since the last call."""
        return [
            Launch(row["kernel"], tuple(row["grid"]), tuple(row["block"]), row["shared"])
            for row in self._json("launches")
        ]

    def counts(self) -> list[KernelCounts]:
        """Return what every instruction did since the last call, by kernel."""
        found = [
            KernelCounts(
                row["kernel"],
                row["launches"],
                row["blocks"],
                row["warps"],
                [InstructionCounts(*i) for i in row["code"]],
            )
            for row in self._json("stats")
        ]
        self._function("clear_stats")()
        return found

    def coverage(self) -> Coverage:
        """Return what has been executed since the last call of `counts`."""
        return Coverage({
            kernel: Kernel(launched, count, {row[0]: f"{row[3]} {Path(row[2]).name}:{row[1]}" for row in missed})
            for kernel, launched, count, missed in self._json("coverage")
        })  # fmt: skip
