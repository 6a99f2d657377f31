"""Random numbers that belong to one item of a generated data set."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .arguments import SPLITS

# The lowest and the highest value.
Range = tuple[float, float]


def as_range(name: str, value: Any) -> Range:
    """Return a range as two floats; raise a ValueError that names the field if it is none."""
    try:
        low, high = (float(end) for end in value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be two numbers (lowest, highest); got {value!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"{name} must be two finite numbers, the lowest first; got {value!r}")
    return low, high


def as_number(name: str, value: Any) -> float:
    """Return a finite number as a float; raise a ValueError that names the field if it is none."""
    try:
        number = math.nan if isinstance(value, (str, bool)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number; got {value!r}")
    return number


def item_stream(seed: int, split: str, index: int) -> Any:
    """Return a NumPy random generator that depends on the seed, the split and the item's index alone."""
    import numpy as np

    # SeedSequence hashes every word of its key; torch's CPU generator would keep 32 bits of a seed.
    return np.random.default_rng([seed, SPLITS.index(split), index])


def between(ends: Range, unit: Tensor) -> Tensor:
    """Map numbers in [0, 1) linearly to a range."""
    return ends[0] + (ends[1] - ends[0]) * unit
