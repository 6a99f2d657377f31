"""Measure the card's ceilings, which the roofline's shares refer to; `ceilings.cu` has the kernels.

copy_bytes_per_s            a device-to-device copy of 1 GiB, bytes read plus bytes written
gather_l1_16_bytes_per_s    four lanes read a row of 4 x 16 bytes, rows scattered over 16 KiB (8: 4 x 8 bytes)
gather_l2_16_bytes_per_s    the same over 16 MiB, beyond L1
ffma_flops, mma_*_flops     float32 multiply-adds; mma.sync m16n8k16 bf16 and m16n8k8 tf32
empty_kernel_us             one of 256 empty kernels in a graph
red_float4_bytes_per_s      float32 sums added as by the warp's backward, four at a time, at the largest shape with
                            offsets N(0, 1); taps outside of the map do not count
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..cases import GPU_MAPS, MapShape
from ..measuring import timing
from ..measuring.roofline import K, M

SOURCE = Path(__file__).with_name("ceilings.cu")
L1_WINDOW, L2_WINDOW = 16 << 10, 16 << 20
GRAPH_LAUNCHES = 256


def measure() -> dict[str, float] | None:
    """Compile the kernels for this machine's GPU and measure; return None if nvcc is missing or fails."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    flags = ["-O3", "-std=c++20", "-arch=native", "-shared", "-Xcompiler", "-fPIC"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libceilings.so"
        try:
            subprocess.run([nvcc, *flags, "-o", str(library), str(SOURCE)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return _measured(Kernels(library))


class Kernels:
    """The functions of ceilings.cu on PyTorch's current stream; a CUDA error becomes a RuntimeError."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
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


def _measured(kernels: Kernels) -> dict[str, float]:
    windows = {"l1": L1_WINDOW, "l2": L2_WINDOW}
    gathers = {
        f"gather_{where}_{lane}_bytes_per_s": _gather_rate(kernels, lane, window)
        for where, window in windows.items()
        for lane in (8, 16)
    }
    return {
        "copy_bytes_per_s": _copy_rate(),
        **gathers,
        "ffma_flops": _ffma_rate(kernels),
        "mma_bf16_flops": _mma_rate(kernels, tf32=False),
        "mma_tf32_flops": _mma_rate(kernels, tf32=True),
        "empty_kernel_us": _empty_kernel_us(kernels),
        "red_float4_bytes_per_s": _red_rate(kernels, GPU_MAPS.full),
    }


def _copy_rate() -> float:
    source = torch.randint(255, (1 << 30,), dtype=torch.uint8, device="cuda")
    to = torch.empty_like(source)
    return 1e6 * 2 * source.numel() / timing.device_us(lambda: to.copy_(source), repeats=11)


def _gather_rate(kernels: Kernels, lane: int, window_bytes: int) -> float:
    window = torch.randint(255, (window_bytes,), dtype=torch.uint8, device="cuda")
    repeats = 400 if window_bytes == L1_WINDOW else 60

    def call() -> None:
        kernels("gather", lane, window, window_bytes, repeats, kernels.blocks, kernels.sink)

    total = kernels.blocks * kernels.threads * repeats * kernels.chains * lane
    return 1e6 * total / timing.device_us(call)


def _ffma_rate(kernels: Kernels, repeats: int = 8192) -> float:
    microseconds = timing.device_us(lambda: kernels("ffma", repeats, kernels.blocks, kernels.sink))
    return 1e6 * 2 * kernels.blocks * kernels.threads * repeats * kernels.chains / microseconds


def _mma_rate(kernels: Kernels, tf32: bool, repeats: int = 2048) -> float:
    blocks = kernels.blocks // 2  # the kernel's registers leave no room for more at a time
    microseconds = timing.device_us(lambda: kernels("mma", int(tf32), repeats, blocks, kernels.sink))
    one = 2 * 16 * 8 * (8 if tf32 else 16)
    return 1e6 * blocks * (kernels.threads // 32) * repeats * kernels.chains * one / microseconds


def _empty_kernel_us(kernels: Kernels) -> float:
    calls: list[Callable[[], Any]] = [lambda: kernels("empty")] * GRAPH_LAUNCHES
    graph, count = timing.captured(calls)
    return timing.device_us(graph.replay, repeats=21) / count


def _red_rate(kernels: Kernels, shape: MapShape) -> float:
    size = (shape.batch, M, shape.size, shape.size)
    offset = torch.randn(size, generator=torch.Generator("cuda").manual_seed(0), device="cuda")
    to = torch.zeros(shape.pixels * shape.channels, device="cuda")

    def call() -> None:
        kernels("red", offset, to, shape.batch, shape.size, shape.size, shape.channels)

    added = corners_inside(offset.cpu()) * shape.channels * to.element_size()
    return 1e6 * added / timing.device_us(call, repeats=7)


def corners_inside(offset: torch.Tensor) -> int:
    """Return how many of the four corners of all taps of all pixels lie on the map; offset: (B, 2K, H, W)."""
    height, width = offset.shape[-2:]
    tap = torch.arange(K).view(1, K, 1, 1)
    top = offset[:, :K].floor() + tap // 3 - 1 + torch.arange(height).view(-1, 1)
    left = offset[:, K:].floor() + tap % 3 - 1 + torch.arange(width)
    rows: Any = sum(((top + i >= 0) & (top + i < height)).long() for i in (0, 1))
    cols = sum(((left + i >= 0) & (left + i < width)).long() for i in (0, 1))
    return int((rows * cols).sum())
