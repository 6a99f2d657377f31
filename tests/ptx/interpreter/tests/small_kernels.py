"""Small kernels in PTX, and what they compute."""

from __future__ import annotations

import ctypes
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

HEAD = ".version 8.7\n.target sm_{target}\n.address_size 64\n"
REGISTERS = """
  .reg .pred %p<8>;
  .reg .b16 %h<16>;
  .reg .b32 %r<64>;
  .reg .f32 %f<130>;
  .reg .b64 %d<32>;
"""
DEFAULTS = {
    "check_races": 1, "check_global": 1, "stats": 1, "noise": 0, "mma_mode": 0, "mma_extra_bits": 1, "mma_group": 0,
    "seed": 0, "max_blocks": 0, "max_warp_insts": 2e9,
}  # fmt: skip
SUFFIX = {1: "b8", 2: "b16", 4: "b32", 8: "b64"}
LANES = np.arange(32)


def aligned(values: np.ndarray) -> np.ndarray:
    """Return a copy at a multiple of 256 bytes, as GPU memory is."""
    buffer = np.zeros(values.nbytes + 256, np.uint8)
    first = -buffer.ctypes.data % 256
    copy = buffer[first : first + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


class Interpreter:
    """The functions of libptx_interpreter.so."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        for name in ("errors", "launches", "stats", "unsupported", "coverage", "text", "opcodes"):
            getattr(self.library, f"ptxsim_{name}").restype = ctypes.c_char_p
        self.library.ptxsim_register.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p]
        self.library.ptxsim_unregister.argtypes = [ctypes.c_uint64]
        self.library.ptxsim_set.argtypes = [ctypes.c_char_p, ctypes.c_double]
        self._numbers = itertools.count()

    def reset(self) -> None:
        self.set(**DEFAULTS)
        self.reports()
        self.library.ptxsim_clear_stats()
        self.library.ptxsim_launches()

    def set(self, **options: float) -> None:
        for name, value in options.items():
            assert self.library.ptxsim_set(name.encode(), float(value)) == 0, name

    def load(self, text: str) -> int:
        return self.library.ptxsim_load(b"small", text.encode())

    def register(self, array: np.ndarray) -> None:
        self.library.ptxsim_register(array.ctypes.data, array.nbytes, b"array")

    def unregister(self, array: np.ndarray) -> None:
        self.library.ptxsim_unregister(array.ctypes.data)

    def launch(self, module: int, entry: str, grid: Any, block: Any, shared: int, values: list[bytes]) -> int:
        kept = [ctypes.create_string_buffer(value, max(len(value), 8)) for value in values]
        pointers = (ctypes.c_void_p * max(len(kept), 1))(*[ctypes.addressof(b) for b in kept])
        sizes = [(ctypes.c_uint32 * 3)(*size) for size in (grid, block)]
        return self.library.ptxsim_launch(module, entry.encode(), *sizes, shared, pointers)

    def run(
        self,
        body: str,
        *arrays: np.ndarray,
        block: int = 32,
        grid: int = 1,
        declarations: str = "",
        directives: str = "",
        shared: int = 0,
        target: int = 80,
        numbers: tuple[int, ...] = (),
    ) -> str:
        """Run a body and return the kernel's name.

        The addresses of the arrays are in %d0, %d1, and so on, further numbers of 64 bits behind them; %r0 is the
        thread, and %d31 four times that.
        """
        name = f"k{next(self._numbers)}"
        count = len(arrays) + len(numbers)
        parameters = ", ".join(f".param .u64 a{i}" for i in range(count))
        loads = "".join(f"  ld.param.u64 %d{i}, [a{i}];\n" for i in range(count))
        text = HEAD.format(target=target) + declarations
        text += f"\n.visible .entry {name}({parameters})\n{directives}\n{{{REGISTERS}{loads}"
        text += f"  mov.u32 %r0, %tid.x;\n  mul.wide.u32 %d31, %r0, 4;\n{body}\n  ret;\n}}\n"
        module = self.load(text)
        assert module >= 0
        for array in arrays:
            self.register(array)
        values = [struct.pack("Q", a.ctypes.data) for a in arrays] + [struct.pack("Q", n) for n in numbers]
        self.launch(module, name, (grid, 1, 1), (block, 1, 1), shared, values)
        for array in arrays:
            self.unregister(array)
        return name

    def lanes(self, instructions: str, *inputs: Any, result: Any = np.uint32) -> np.ndarray:
        """Return what each lane of a warp computes: `{d}` of the values `{0}`, `{1}` and so on, 32 each.

        Registers are untyped, of the size of the values; a result of np.bool_ is a predicate.
        """
        arrays = [aligned(np.broadcast_to(np.asarray(x), (32,)).copy()) for x in inputs]
        is_predicate = result == np.bool_
        out = aligned(np.zeros(32, np.uint32 if is_predicate else result))
        sizes = [a.itemsize for a in (*arrays, out)]
        names = [f"%v{i}" for i in range(len(sizes))]
        body = "".join(f"  .reg .{SUFFIX[max(s, 2)]} {n};\n" for s, n in zip(sizes, names))
        for i, (size, name) in enumerate(zip(sizes[:-1], names)):
            body += f"  mad.wide.u32 %d30, %r0, {size}, %d{i};\n  ld.global.{SUFFIX[size]} {name}, [%d30];\n"
        destination = "%p1" if is_predicate else names[-1]
        values = dict(enumerate(names[:-1]))
        body += "  " + instructions.format(*values.values(), d=destination) + "\n"
        if is_predicate:
            body += f"  selp.b32 {names[-1]}, 1, 0, %p1;\n"
        body += f"  mad.wide.u32 %d30, %r0, {sizes[-1]}, %d{len(arrays)};\n"
        body += f"  st.global.{SUFFIX[sizes[-1]]} [%d30], {names[-1]};\n"
        self.run(body, *arrays, out)
        assert self.reports() == []
        return out.astype(np.bool_) if is_predicate else out

    def reports(self) -> list[dict[str, Any]]:
        found = json.loads(self.library.ptxsim_errors().decode())
        self.library.ptxsim_clear_errors()
        return found

    def kinds(self) -> list[str]:
        return [report["kind"] for report in self.reports()]

    def counts(self, kernel: str) -> list[dict[str, Any]]:
        """Return what the instructions of a kernel did."""
        columns = [
            "pc",
            "class",
            "issued",
            "lanes",
            "requests",
            "sectors",
            "ideal_sectors",
            "wavefronts",
            "ideal",
            "lines",
            "line",
            "file",
            "text",
        ]
        for found in json.loads(self.library.ptxsim_stats().decode()):
            if found["kernel"] == kernel:
                return [dict(zip(columns, row)) for row in found["code"]]
        return []

    def coverage(self, kernel: str) -> tuple[bool, int, list[list[Any]]]:
        """Return whether it was launched, its number of instructions, and those that were never executed."""
        rows = json.loads(self.library.ptxsim_coverage().decode())
        return next((launched, size, rest) for name, launched, size, rest in rows if name == kernel)
