"""Triton's own compiler, with a driver whose launches run on the interpreter, on CPU tensors.

The compiler stops at PTX: ptxas is left out, and the PTX takes the place of the machine code that a driver loads.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

from .library import Interpreter

_FORMATS = {
    "i1": "b", "i8": "b", "u1": "B", "u8": "B", "i16": "h", "u16": "H", "i32": "i", "u32": "I", "i64": "q", "u64": "Q",
    "fp32": "f", "f32": "f", "fp64": "d",
}  # fmt: skip
_SHARED_BYTES = {80: 166912, 90: 232448}  # the most that a block may have
_MULTIPROCESSORS = {80: 108, 90: 132}
_WARP = 32

Function = tuple[int, str]  # a loaded module, and its kernel


class _Utilities:
    def __init__(self, interpreter: Interpreter, architecture: int) -> None:
        self.interpreter, self.architecture = interpreter, architecture

    def load_binary(
        self, name: str, ptx: bytes, shared: int, device: int
    ) -> tuple[int, Function, int, int, int]:
        """Load a kernel. Triton compiles many forms of one: their names get a hash, so that each is counted."""
        own = f"{name}_{hashlib.sha256(ptx).hexdigest()[:8]}"
        text = ptx.decode().replace(f".entry {name}(", f".entry {own}(")
        module = self.interpreter.load(f"triton:{name}", text)
        registers, spills, threads = 0, 0, 1024
        return module, (module, own), registers, spills, threads

    def unload_module(self, module: int) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": _SHARED_BYTES[self.architecture],
            "multiprocessor_count": _MULTIPROCESSORS[self.architecture],
            "max_num_regs": 65536,
            "warpSize": _WARP,
        }


class Driver:
    """As much of a driver as Triton's JIT asks for."""

    def __init__(self, interpreter: Interpreter, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, _WARP)
        self.utils = _Utilities(interpreter, architecture)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Return the function that launches a compiled kernel."""
        kinds = list(source.signature.values())

        def launch(
            x: int, y: int, z: int, stream: int, function: Function, packed: Any, launch: Any, enter: Any, leave: Any,
            *arguments: Any,
        ) -> None:  # fmt: skip
            values = [_bytes_of(kind, a) for kind, a in zip(kinds, arguments) if kind != "constexpr"]
            block = (_WARP * metadata.num_warps, 1, 1)
            self.utils.interpreter.launch(*function, (x, y, z), block, metadata.shared, values)

        return launch

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cuda


def _bytes_of(kind: str, value: Any) -> bytes:
    if kind.startswith("*"):
        return struct.pack("Q", 0 if value is None else value.data_ptr())
    return struct.pack(_FORMATS[kind], value)


def use(interpreter: Interpreter, architecture: int) -> None:
    """Let Triton compile for this architecture (80 or 90) and launch on the interpreter, in all of this process."""
    CUDABackend.make_cubin = lambda self, ptx, *arguments, **named: ptx.encode()
    triton.runtime.driver.set_active(Driver(interpreter, architecture))
