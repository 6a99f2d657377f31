"""Each CPU kernel beside the machine's own limit, measured in the same run.

    python benchmarks/cpu_limits.py

Pointwise ops stand beside a copy that reads and writes as many bytes; the offset warp beside matrix products of its own
multiply-adds by torch (one forward; backward has three: samples' gradient, weight's gradient, and the samples again).
Best of the rounds, malloc tuned, one thread unless --threads says otherwise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from cases import MAPS, MapShape
from machine import with_tuned_malloc

import motionrnn_ext  # noqa: F401  (registers the ops)
from motionrnn_ext.backends import native

ops = torch.ops.motionrnn_ext


def best(function: Callable[[], object], rounds: int) -> float:
    """Milliseconds."""
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def bytes_of(*tensors: torch.Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def copy_of(*tensors: torch.Tensor) -> Callable[[], object]:
    """A copy that moves as many bytes as reading or writing each tensor once."""
    half = torch.zeros(bytes_of(*tensors) // 2, dtype=torch.uint8)
    return half.clone


def pointwise(shape: MapShape, dtype: torch.dtype, rounds: int) -> None:
    def maps(channels: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape.batch, channels, shape.size, shape.size).to(dtype)

    wide = 4 * shape.channels  # the recurrent cell's width
    motion = (maps(18), maps(18), maps(18, torch.float32), maps(18, torch.float32))
    arguments = {
        "motion_reset": ((motion[0], motion[2]), ()),
        "motion_update": (motion, (0.5,)),
        "memory_update": ((maps(3 * wide), maps(3 * wide), maps(wide)), (1.0,)),
        "highway_output": ((maps(wide), maps(wide), maps(wide)), ()),
        "gated_blend": ((maps(wide), maps(wide), maps(wide)), ()),
    }
    for name, (tensors, parameters) in arguments.items():
        for suffix in ("", "_backward"):
            op = getattr(ops, name + suffix)
            inputs = tensors
            if suffix:
                out = getattr(ops, name)(*tensors, *parameters)
                grads = [torch.randn_like(o) for o in (out if isinstance(out, tuple) else (out,))]
                inputs = (*grads, *(tensors[:3] if name == "motion_update" else tensors))
            made = op(*inputs, *parameters)
            made = made if isinstance(made, tuple) else (made,)
            ours = best(lambda: op(*inputs, *parameters), rounds)  # noqa: B023
            copy = best(copy_of(*inputs, *made), rounds)
            label = f"{name}{suffix} {str(dtype).removeprefix('torch.')}"
            print(f"{shape!s:16} {label:34} {ours:8.3f} ms   copy   {copy:8.3f} ms   {ours / copy:4.1f}x")


def warp(shape: MapShape, rounds: int) -> None:
    size = (shape.size, shape.size)
    x, grad = (torch.randn(shape.batch, shape.channels, *size) for _ in range(2))
    offset, mask = torch.randn(shape.batch, 18, *size), torch.randn(shape.batch, 9, *size)
    weight = torch.randn(shape.channels, shape.channels, 3, 3)
    columns = torch.randn(shape.batch * shape.size**2, 9 * shape.channels)
    matrix, out = (
        torch.randn(9 * shape.channels, shape.channels),
        torch.empty(columns.shape[0], shape.channels),
    )
    product = best(lambda: torch.mm(columns, matrix, out=out), rounds)
    forward = best(lambda: ops.offset_warp(x, offset, mask, weight), rounds)
    backward = best(lambda: ops.offset_warp_backward(grad, x, offset, mask, weight, 15, False), rounds)
    for label, ours, limit in (
        ("offset_warp", forward, product),
        ("offset_warp_backward", backward, 3 * product),
    ):
        print(
            f"{shape!s:16} {label + ' float32':34} {ours:8.3f} ms   matmul {limit:8.3f} ms   {ours / limit:4.1f}x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    with_tuned_malloc()
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, {options.threads} thread(s), kernels for {native.cpu_instruction_set()}"
    )
    for shape in MAPS:
        warp(shape, options.rounds)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in MAPS[1:]:
            pointwise(shape, dtype, options.rounds)


if __name__ == "__main__":
    main()
