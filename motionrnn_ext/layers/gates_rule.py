"""The rule by which a MotionGRU takes the package's kernels for its gates, or PyTorch's convolutions."""

from __future__ import annotations

from torch import Tensor

from .. import backends


def takes_kernels(x: Tensor) -> bool:
    """Return whether a MotionGRU whose maps are on the device of x computes its gates by the package's kernels.

    It does wherever there are kernels, whatever the sizes are. On a CPU that was measured (docs/benchmarks.md). On a
    GPU it is calculated (docs/kernels.md): the convolutions of a library take five more launches forward, which
    outweighs all else on the maps of 8x8 to 64x64 that the models have. No GPU has confirmed it, and on larger maps
    the convolutions might be faster: benchmarks/on_gpu.sh measures both sides and says which is faster, by shape. A
    bound that it finds belongs here.
    """
    return backends.runs_kernels(x)
