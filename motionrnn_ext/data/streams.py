"""Random numbers that belong to one item of a generated data set."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .arguments import SPLITS

# The lowest and the highest value.
Range = tuple[float, float]


def item_stream(seed: int, split: str, index: int) -> Any:
    """Return a NumPy random generator that depends on the seed, the split and the item's index alone."""
    import numpy as np

    # SeedSequence hashes every word of its key; torch's CPU generator would keep 32 bits of a seed.
    return np.random.default_rng([seed, SPLITS.index(split), index])


def between(ends: Range, unit: Tensor) -> Tensor:
    """Map numbers in [0, 1) linearly to a range."""
    return ends[0] + (ends[1] - ends[0]) * unit
