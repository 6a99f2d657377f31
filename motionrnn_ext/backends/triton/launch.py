"""Kernels as ops of torch, their launch, and the sizes of their blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ..torch_private import is_traced
from . import INTERPRETED, NAMESPACE, is_off, is_on, tuning
from .measured import Row
from .tuning import Key

Result = TypeVar("Result")

# The precision of float32 matrix products: three of tf32 are as exact as one of float32, and several times as fast on
# tensor cores. AMD's compiler has no such form. One of tf32 would have an error of 1e-3.
PRECISION = "ieee" if torch.version.hip else "tf32x3"
# The fusion of a product and a sum into one instruction, as in nvcc. Triton 3.9 warns where the option is left out, and
# later releases have it off by default.
COMPILED = {} if INTERPRETED else {"enable_fp_fusion": True}


def kernel_op(function: Callable[..., Any]) -> Any:
    """Make the op `motionrnn_ext_triton::<name of the function>` of a function that launches kernels.

    torch.compile looks into the function and sees the kernels. Under Triton's interpreter, which fake tensors cannot
    enter, the op is opaque.
    """
    name = f"{NAMESPACE}::{function.__name__}"
    if INTERPRETED:
        return custom_op(name, function, mutates_args=())
    return triton_op(name, function, mutates_args={})


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Run `programs` programs of a kernel on the current stream of its tensors' device.

    Triton itself would take the current device. In a trace, torch.compile records the launch, and later compiles the
    kernel its own way.
    """
    if programs == 0:
        return
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    with torch.cuda.device(tensors[0].device) if tensors[0].is_cuda else nullcontext():
        if any(map(is_traced, tensors)):
            wrap_triton(kernel)[(programs,)](*arguments, **constants)
        else:
            _launchable(kernel)[(programs,)](*arguments, **constants, **COMPILED)


def _launchable(kernel: Any) -> Any:
    # Tests and benchmarks that count or record launches replace this function.
    return kernel


def log2_ceil(n: int) -> int:
    """Return the smallest e with 2^e >= n. A loop, so that n may be a traced size."""
    e = 0
    while 2**e < n:
        e += 1
    return e


class Block(NamedTuple):
    """The work of one program of a kernel.

    size: elements of a pointwise op, or pixels of a warp. warps: groups of 32 threads. least: the smallest size, for
    inputs that are too small to keep a GPU busy; None is `size` itself.
    """

    size: int
    warps: int
    least: int | None = None

    def spread(self, work: int) -> Block:
        """Halve the block, down to `least`, until there are at least MULTIPROCESSORS programs for `work` elements or
        pixels. A traced number leaves the block as it is, since its value is not known yet."""
        size = self.size
        while isinstance(work, int) and size > (self.least or size) and work < size * MULTIPROCESSORS:
            size //= 2
        return self._replace(size=size)

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": 1}


# The multiprocessors of a large GPU.
MULTIPROCESSORS = 128
MANY = 2**31
# The blocks of each op, and of some kernels of the gates: the largest number of channels, the block for float32, the
# block for half precision. Unlike @triton.autotune, a table measures nothing on a user's first step, and works in
# Triton's interpreter, where autotune fails ("0 active drivers").
BLOCKS: dict[str, list[tuple[int, Block, Block]]] = {
    "pointwise": [(MANY, Block(1024, 4, least=512), Block(1024, 4, least=512))],
    "offset_warp": [
        (16, Block(64, 4, least=16), Block(64, 4, least=16)),
        (MANY, Block(64, 8, least=16), Block(64, 8, least=16)),
    ],
    "motion_gates": [(MANY, Block(64, 4, least=16), Block(64, 4, least=16))],
    # The convolution of s(r) F, forward and backward. With 4 warps it spills in float32, on sm_120 and sm_80.
    "candidate": [(MANY, Block(64, 8, least=32), Block(64, 4, least=16))],
    # With 32 pixels backward spills in float32 on sm_80 and sm_90.
    "pixel_gates": [(MANY, Block(16, 4), Block(32, 4, least=16))],
    # A block of 32 pixels spills in float32.
    "gated_warp": [(MANY, Block(16, 8), Block(64, 8, least=16))],
    # 16 pixels a warp: with fewer, several warps compute the same factor. With 64 channels that spills in float32.
    "decode_blend": [
        (32, Block(64, 4, least=32), Block(64, 4, least=32)),
        (MANY, Block(16, 4), Block(64, 4, least=32)),
    ],
    "offset_warp_backward": [
        (16, Block(64, 4), Block(64, 4)),
        (32, Block(32, 4), Block(64, 8)),
        (MANY, Block(32, 8), Block(32, 8)),
    ],
    "offset_warp_backward_deterministic": [
        (16, Block(32, 4), Block(64, 4)),
        (32, Block(16, 8), Block(64, 8)),
        (MANY, Block(16, 8), Block(32, 8)),
    ],
}

# The blocks that measuring tries.
CANDIDATES = {
    "pointwise": [Block(size, warps) for size in (512, 1024, 2048) for warps in (2, 4, 8)],
    "offset_warp": [Block(size, warps) for size in (16, 32, 64, 128) for warps in (2, 4, 8)],
    "motion_gates": [Block(size, warps) for size in (16, 32, 64, 128) for warps in (2, 4, 8)],
    "candidate": [Block(size, warps) for size in (16, 32, 64, 128) for warps in (2, 4, 8)],
    "pixel_gates": [Block(size, warps) for size in (16, 32, 64) for warps in (2, 4, 8)],
    "gated_warp": [Block(size, warps) for size in (16, 32, 64) for warps in (2, 4, 8)],
    "decode_blend": [Block(size, warps) for size in (16, 32, 64, 128) for warps in (2, 4, 8)],
    "offset_warp_backward": [Block(size, warps) for size in (16, 32, 64) for warps in (2, 4, 8)],
    "offset_warp_backward_deterministic": [Block(size, warps) for size in (16, 32, 64) for warps in (4, 8)],
}
# The blocks in use that are not the table's.
_tuned: dict[Key, Block] = {}
# Where `measuring` notes what it measured, or None outside of it.
_noted: list[Measured] | None = None


class Measured(NamedTuple):
    """A choice that was measured, with the milliseconds of the chosen block and of the table's."""

    row: Row
    milliseconds: float
    of_table: float


def block(op: str, channels: int, dtype: torch.dtype) -> Block:
    """Return the block of the table for an op, its channels and its dtype."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return next(half if is_half else full for limit, full, half in BLOCKS[op] if channels <= limit)


def in_blocks(
    op: str, channels: int, like: Tensor, work: int, run: Callable[[Block], Result], kernel: str = ""
) -> Result:
    """Return `run(block)` with the table's block for `op` and `work` elements or pixels, or with the fastest block.

    The fastest is that of an earlier process or of the package, see tuning.py. If MOTIONRNN_EXT_AUTOTUNE=1 it is
    measured where none is known, once per op, `kernel`, channels and dtype, and kept. With 0 the table is used.
    """
    key = Key(op, kernel, channels, like.dtype, like.device)
    if key not in _tuned:
        found = None if INTERPRETED else _fastest(key, like, run)
        if found is None:
            return run(block(op, channels, like.dtype).spread(work))
        _tuned[key] = found
    return run(_tuned[key])


def _fastest(key: Key, like: Tensor, run: Callable[[Block], Any]) -> Block | None:
    """Return the block of a key that is known to be the fastest, or is measured now; None if there is none.

    Measuring runs whole ops on their real inputs, several times into the same results: no kernel reads what it writes.
    It is left out while a CUDA graph is captured or torch.compile traces, where time cannot be measured.
    """
    candidates = CANDIDATES[key.op]
    if _noted is None:
        row = tuning.stored(key)
        if row is not None and Block(row.size, row.warps) in candidates:
            return None if is_off("MOTIONRNN_EXT_AUTOTUNE") else Block(row.size, row.warps)
        if not is_on("MOTIONRNN_EXT_AUTOTUNE"):
            return None
    if is_traced(like) or torch.cuda.is_current_stream_capturing():
        return None
    times = {candidate: _time(partial(run, candidate)) for candidate in candidates}
    fastest = min(times, key=times.__getitem__)
    if times[fastest] == math.inf:
        return None
    row = tuning.keep(key, fastest.size, fastest.warps)
    if _noted is not None and row is not None:
        usual = block(key.op, key.channels, key.dtype)._replace(least=None)
        _noted.append(Measured(row, times[fastest], times.get(usual, math.nan)))
    return fastest


@contextmanager
def measuring() -> Iterator[list[Measured]]:
    """Measure every choice anew that is met in the block, whatever was known of it, and yield the list of them."""
    global _noted
    _tuned.clear()
    _noted = []
    try:
        yield _noted
    finally:
        _noted = None


def _time(call: Callable[[], Any]) -> float:
    """Return the milliseconds of a call on the GPU, or infinity if a block of its kernels needs more than there is."""
    try:
        return float(triton.testing.do_bench(call, warmup=5, rep=20))
    except triton.runtime.errors.OutOfResources:
        return math.inf
