"""What `MotionRNN` checks of its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..layers.cells import cell_options


def check_widths(hidden: tuple[int, ...], predictor: str, has_memory: bool, highway: bool) -> None:
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden_channels is {hidden}; it should name at least one layer, each of 1 or more")
    if len(set(hidden)) > 1 and (highway or has_memory):
        why = "a highway" if highway else f"the memory of {predictor!r}"
        raise ValueError(f"hidden_channels is {hidden}; with {why} all layers should be equal")


def checked_cell_options(predictor: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    known = cell_options(predictor)
    for name in options:
        if name not in known:
            has = f"; known: {', '.join(known)}" if known else ", which has none of its own"
            raise TypeError(f"unknown option {name!r} of predictor {predictor!r}{has}")
    return options


def per_position_size(image_size: tuple[int, int] | None, patch_size: int, who: str) -> tuple[int, int]:
    if image_size is None:
        raise ValueError(f"image_size is None; {who} needs (H, W), as its parameters are per position")
    height, width = image_size
    if height % patch_size or width % patch_size:
        raise ValueError(f"image_size is {height}x{width}; it should be divisible by patch_size {patch_size}")
    return height, width
