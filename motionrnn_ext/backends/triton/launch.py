"""How a kernel becomes an op of torch, how it is launched, and in which blocks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.library import custom_op, triton_op, wrap_triton

from . import INTERPRETED, NAMESPACE, is_on

Result = TypeVar("Result")

# float32 matrix products: three of tf32, as exact as those of float32 and several times as fast on tensor cores. AMD's
# compiler knows no such form. Never tf32 itself: its error is 1e-3.
PRECISION = "ieee" if torch.version.hip else "tf32x3"
# Products and sums in one instruction, as nvcc has it: Triton 3.9 warns where this is left out, later ones have it off.
COMPILED = {} if INTERPRETED else {"enable_fp_fusion": True}


def kernel_op(function: Callable[..., Any]) -> Any:
    """The op `motionrnn_ext_triton::<name of the function>`, whose function launches kernels.

    torch.compile looks into it and sees the kernels. Under Triton's interpreter, which fake tensors cannot enter, it is
    opaque.
    """
    name = f"{NAMESPACE}::{function.__name__}"
    if INTERPRETED:
        return custom_op(name, function, mutates_args=())
    return triton_op(name, function, mutates_args={})


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Run so many programs of a kernel, on the current stream of its tensors' device: Triton itself takes the current
    device. torch.compile takes note of the launch instead, and later compiles the kernel its own way.
    """
    if programs == 0:
        return
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    with torch.cuda.device(tensors[0].device) if tensors[0].is_cuda else nullcontext():
        if any(map(is_traced, tensors)):
            wrap_triton(kernel)[(programs,)](*arguments, **constants)
        else:
            _launchable(kernel)[(programs,)](*arguments, **constants, **COMPILED)


def is_traced(t: Tensor) -> bool:
    """Whether t is one of those without elements that torch.compile runs a function on."""
    return isinstance(t, (FakeTensor, FunctionalTensor))


def _launchable(kernel: Any) -> Any:
    return kernel  # what counts or records launches puts itself here


def log2_ceil(n: int) -> int:
    """The smallest e with 2^e >= n, also of a traced size."""
    e = 0
    while 2**e < n:
        e += 1
    return e


class Block(NamedTuple):
    """What one program takes on, elements of a pointwise op or pixels of a warp; how many warps of threads it has; what
    it takes on at the least, where there is too little to keep a GPU busy."""

    size: int
    warps: int
    least: int | None = None  # the size itself

    def spread(self, work: int) -> Block:
        """For so many elements or pixels in all: half the size as often as there are fewer programs than a large GPU
        has multiprocessors. A traced number, of which nothing is known yet, changes nothing."""
        size = self.size
        while isinstance(work, int) and size > (self.least or size) and work < size * MULTIPROCESSORS:
            size //= 2
        return self._replace(size=size)

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": 1}


MULTIPROCESSORS = 128
MANY = 2**31
# Of an op: up to so many channels, the block for float32, and for half precision. A table, not @triton.autotune, which
# would time on a user's first step, and which Triton's interpreter cannot run ("0 active drivers").
BLOCKS: dict[str, list[tuple[int, Block, Block]]] = {
    "pointwise": [(MANY, Block(1024, 4, least=512), Block(1024, 4, least=512))],
    "offset_warp": [
        (16, Block(64, 4, least=16), Block(64, 4, least=16)),
        (MANY, Block(64, 8, least=16), Block(64, 8, least=16)),
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

# What MOTIONRNN_EXT_AUTOTUNE=1 tries on the first call of an op with new channels or dtype.
CANDIDATES = {
    "pointwise": [Block(size, warps) for size in (512, 1024, 2048) for warps in (2, 4, 8)],
    "offset_warp": [Block(size, warps) for size in (16, 32, 64, 128) for warps in (2, 4, 8)],
    "offset_warp_backward": [Block(size, warps) for size in (16, 32, 64) for warps in (2, 4, 8)],
    "offset_warp_backward_deterministic": [Block(size, warps) for size in (16, 32, 64) for warps in (4, 8)],
}
_tuned: dict[tuple[str, str, int, torch.dtype, torch.device], Block] = {}


def block(op: str, channels: int, dtype: torch.dtype) -> Block:
    """The table's entry."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return next(half if is_half else full for limit, full, half in BLOCKS[op] if channels <= limit)


def in_blocks(
    op: str, channels: int, like: Tensor, work: int, run: Callable[[Block], Result], kernel: str = ""
) -> Result:
    """run(block) with the table's block for `op` and so much work, elements or pixels; with the fastest block for the
    op, its `kernel`, channels and dtype if tuning is asked for.

    Tuning runs whole ops on their real inputs, each result apart, so that nothing is overwritten; never while a CUDA
    graph is captured or torch.compile traces, where time cannot be taken.
    """
    key = (op, kernel, channels, like.dtype, like.device)
    if key not in _tuned:
        may_tune = is_on("MOTIONRNN_EXT_AUTOTUNE") and not INTERPRETED
        if not may_tune or is_traced(like) or torch.cuda.is_current_stream_capturing():
            return run(block(op, channels, like.dtype).spread(work))
        _tuned[key] = min(CANDIDATES[op], key=lambda candidate: _time(lambda: run(candidate)))
    return run(_tuned[key])


def _time(call: Callable[[], Any]) -> float:
    """Milliseconds of a call on the GPU; infinity where its kernels take more than a block may have."""
    try:
        return float(triton.testing.do_bench(call, warmup=5, rep=20))
    except triton.runtime.errors.OutOfResources:
        return float("inf")
