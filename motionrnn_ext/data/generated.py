"""What the generated data sets share: checked arguments, and random numbers that belong to an item alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .digits import SPLITS
from .files import is_count

Range = tuple[float, float]  # lowest, highest


def check_generated(seed: int, length: int) -> None:
    """ValueError for a bad seed or number of items."""
    if not is_count(length):
        raise ValueError(f"length must be a positive integer; got {length!r}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0; got {seed!r}")


def item_stream(seed: int, split: str, index: int) -> Any:
    """numpy's generator of an item, a function of the three alone."""
    import numpy as np

    # SeedSequence hashes every word of its key; torch's CPU generator would keep 32 bits of a seed
    return np.random.default_rng([seed, SPLITS.index(split), index])


def between(ends: Range, unit: Tensor) -> Tensor:
    """Numbers in [0, 1) to numbers in a range."""
    return ends[0] + (ends[1] - ends[0]) * unit
