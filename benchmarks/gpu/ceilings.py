"""The card's ceilings, measured: what the shares of the roofline are shares of.

    nvcc -O3 -std=c++20 -arch=native -shared -Xcompiler -fPIC -o libceilings.so benchmarks/gpu/ceilings.cu
    python -m motionrnn_ext.benchmarks.gpu.ceilings --library libceilings.so --json CEILINGS

    copy_bytes_per_s                 a device-to-device copy of 1 GiB, bytes read plus bytes written
    gather_l1_16_bytes_per_s         four lanes read a row of 4 x 16 bytes, rows scattered over 16 KiB (8: 4 x 8 bytes)
    gather_l2_16_bytes_per_s         the same over 16 MiB, beyond L1
    ffma_flops, mma_*_flops          float32 multiply-adds; mma.sync m16n8k16 bf16 and m16n8k8 tf32
    empty_kernel_us                  one of 256 empty kernels in a graph
    red_float4_bytes_per_s           float32 sums added by the warp's backward, four at a time, at the largest shape

`red` holds the adds of every shape: float by float, four at a time, as 64-bit integers; at offsets N(0, 1) and 0; bytes
are those of the sums added, taps outside of the map not counted.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..cases import GPU_MAPS, MapShape
from ..measuring import timing
from ..measuring.roofline import K, M

L1_WINDOW, L2_WINDOW = 16 << 10, 16 << 20
GRAPH_LAUNCHES = 256
RED_KINDS = ("float", "float4", "fixed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", type=Path, required=True, help="ceilings.cu, compiled")
    parser.add_argument("--json", type=Path, required=True, help="write the ceilings here")
    options = parser.parse_args()
    kernels = Kernels(options.library)
    ceilings = measure(kernels)
    options.json.write_text(json.dumps(ceilings, indent=1) + "\n")
    for name, value in ceilings.items():
        if name != "red":
            print(f"{name:28} {value:12.4g}")
    for row in ceilings["red"]:
        print(
            "red {kind:7} {shape:15} offsets x{offset_scale:g} {us:10.1f} us {bytes_per_s:10.3g} B/s".format(
                **row
            )
        )


class Kernels:
    """ceilings.cu's functions on PyTorch's current stream; a CUDA error is a RuntimeError."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library.resolve()))
        self.threads = self.library.threads_per_block()
        self.chains = self.library.chains_per_thread()
        self.sink = torch.zeros(64, device="cuda")
        self.blocks = torch.cuda.get_device_properties(0).multi_processor_count * 2048 // self.threads

    def __call__(self, name: str, *arguments: int | torch.Tensor) -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        passed = [
            ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else ctypes.c_int(a)
            for a in arguments
        ]
        status = getattr(self.library, f"launch_{name}")(*passed, stream)
        if status:
            raise RuntimeError(f"launch_{name}: CUDA error {status}")


def measure(kernels: Kernels) -> dict[str, Any]:
    found: dict[str, Any] = {"copy_bytes_per_s": copy_rate()}
    for where, window in (("l1", L1_WINDOW), ("l2", L2_WINDOW)):
        for lane in (8, 16):
            found[f"gather_{where}_{lane}_bytes_per_s"] = gather_rate(kernels, lane, window)
    found["ffma_flops"] = ffma_rate(kernels)
    found["mma_bf16_flops"] = mma_rate(kernels, tf32=False)
    found["mma_tf32_flops"] = mma_rate(kernels, tf32=True)
    found["empty_kernel_us"] = empty_kernel_us(kernels)
    found["red"] = [
        red_row(kernels, shape, kind, scale)
        for shape in GPU_MAPS
        for scale in (1.0, 0.0)
        for kind in range(len(RED_KINDS))
    ]
    full = [r for r in found["red"] if r["shape"] == str(GPU_MAPS.full) and r["offset_scale"]]
    found["red_float4_bytes_per_s"] = next(r["bytes_per_s"] for r in full if r["kind"] == "float4")
    return found


def copy_rate() -> float:
    source = torch.randint(255, (1 << 30,), dtype=torch.uint8, device="cuda")
    to = torch.empty_like(source)
    return 1e6 * 2 * source.numel() / timing.device_us(lambda: to.copy_(source), repeats=11)


def gather_rate(kernels: Kernels, lane: int, window_bytes: int) -> float:
    window = torch.randint(255, (window_bytes,), dtype=torch.uint8, device="cuda")
    repeats = 400 if window_bytes == L1_WINDOW else 60

    def call() -> None:
        kernels("gather", lane, window, window_bytes, repeats, kernels.blocks, kernels.sink)

    total = kernels.blocks * kernels.threads * repeats * kernels.chains * lane
    return 1e6 * total / timing.device_us(call)


def ffma_rate(kernels: Kernels, repeats: int = 8192) -> float:
    microseconds = timing.device_us(lambda: kernels("ffma", repeats, kernels.blocks, kernels.sink))
    return 1e6 * 2 * kernels.blocks * kernels.threads * repeats * kernels.chains / microseconds


def mma_rate(kernels: Kernels, tf32: bool, repeats: int = 2048) -> float:
    blocks = kernels.blocks // 2  # its registers leave no room for more at a time
    microseconds = timing.device_us(lambda: kernels("mma", int(tf32), repeats, blocks, kernels.sink))
    one = 2 * 16 * 8 * (8 if tf32 else 16)
    return 1e6 * blocks * (kernels.threads // 32) * repeats * kernels.chains * one / microseconds


def empty_kernel_us(kernels: Kernels) -> float:
    calls: list[Callable[[], Any]] = [lambda: kernels("empty")] * GRAPH_LAUNCHES
    graph, count = timing.captured(calls)
    return timing.device_us(graph.replay, repeats=21) / count


def red_row(kernels: Kernels, shape: MapShape, kind: int, scale: float) -> dict[str, Any]:
    size = (shape.batch, M, shape.size, shape.size)
    offset = scale * torch.randn(size, generator=torch.Generator("cuda").manual_seed(0), device="cuda")
    to = torch.zeros(
        shape.pixels * shape.channels, dtype=torch.int64 if kind == 2 else torch.float32, device="cuda"
    )

    def call() -> None:
        kernels("red", kind, offset, to, shape.batch, shape.size, shape.size, shape.channels)

    microseconds = timing.device_us(call, repeats=7)
    added = corners_inside(offset.cpu()) * shape.channels * to.element_size()
    return {
        "shape": str(shape), "kind": RED_KINDS[kind], "offset_scale": scale,
        "us": microseconds, "bytes": added, "bytes_per_s": 1e6 * added / microseconds,
    }  # fmt: skip


def corners_inside(offset: torch.Tensor) -> int:
    """How many of the four corners of all taps of all pixels lie on the map."""
    height, width = offset.shape[-2:]
    tap = torch.arange(K).view(1, K, 1, 1)
    top = offset[:, :K].floor() + tap // 3 - 1 + torch.arange(height).view(-1, 1)
    left = offset[:, K:].floor() + tap % 3 - 1 + torch.arange(width)
    rows: Any = sum(((top + i >= 0) & (top + i < height)).long() for i in (0, 1))
    cols = sum(((left + i >= 0) & (left + i < width)).long() for i in (0, 1))
    return int((rows * cols).sum())


if __name__ == "__main__":
    main()
