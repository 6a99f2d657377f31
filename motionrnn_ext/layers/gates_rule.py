"""The rule by which a MotionGRU takes the package's kernels for its gates, or PyTorch's convolutions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import backends

_local = threading.local()


def takes_kernels(x: Tensor) -> bool:
    """Return whether a MotionGRU whose maps are on the device of x computes its gates by the package's kernels.

    It does wherever there are kernels, whatever the sizes are. On a CPU that was measured (docs/benchmarks.md). On a
    GPU it is calculated (docs/kernels.md): the convolutions of a library take five more launches forward, which
    outweighs all else on the maps of 8x8 to 64x64 that the models have. No GPU has confirmed it, and on larger maps
    the convolutions might be faster: benchmarks/on_gpu.sh measures both sides and says which is faster, by shape. A
    bound that it finds belongs here.
    """
    if torch.compiler.is_compiling():
        return backends.runs_kernels(x)
    return backends.runs_kernels(x) and not getattr(_local, "by_convolutions", False)


@contextmanager
def by_convolutions() -> Iterator[None]:
    """Take PyTorch's convolutions for the gates in this thread and `with` block, for comparison."""
    before = getattr(_local, "by_convolutions", False)
    _local.by_convolutions = True
    try:
        yield
    finally:
        _local.by_convolutions = before
