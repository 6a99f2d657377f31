"""Measure this processor's ceilings with torch, with as many threads as the rows have.

copy_bytes_per_s    a copy much larger than the caches, bytes read plus bytes written
copies              the same by size, from what the inner caches hold up to that: {"bytes", "bytes_per_s"} of each
matmul_flops        a float32 matrix product, 2 n^3 for n x n
convolution_flops   a float32 convolution 5x5 of 64 to 448 channels, PredRNN's widest; it is faster than the product
                    where the product's library is not tuned for the processor
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

COPIES = tuple(1 << k for k in range(16, 30, 2))  # bytes read plus bytes written, 64 KiB to 256 MiB
SECONDS = 0.25  # per ceiling


def measure() -> dict[str, Any]:
    copies = [{"bytes": size, "bytes_per_s": _copy_rate(size)} for size in COPIES]
    return {
        "copy_bytes_per_s": copies[-1]["bytes_per_s"],
        "copies": copies,
        "matmul_flops": _matmul_rate(),
        "convolution_flops": _convolution_rate(),
    }


def _copy_rate(size: int) -> float:
    source = torch.ones(size // 8)
    to = torch.empty_like(source)
    return size / _best_seconds(lambda: to.copy_(source))


def _matmul_rate(n: int = 1536) -> float:
    a, b, out = (torch.randn(n, n) for _ in range(3))
    return 2 * n**3 / _best_seconds(lambda: torch.mm(a, b, out=out))


def _convolution_rate(size: int = 32) -> float:
    x, weight = torch.randn(8, 64, size, size), torch.randn(448, 64, 5, 5)
    with torch.no_grad():
        seconds = _best_seconds(lambda: F.conv2d(x, weight, padding=2))
    return 2 * x.shape[0] * size**2 * weight.numel() / seconds


def _best_seconds(call: Callable[[], object]) -> float:
    """Return the time of one call: the best of batches of about a millisecond, as a ceiling is what is possible."""
    call()
    started = time.perf_counter()
    call()
    batch = max(1, int(1e-3 / (time.perf_counter() - started)))
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        for _ in range(batch):
            call()
        best = min(best, (time.perf_counter() - started) / batch)
    return best
