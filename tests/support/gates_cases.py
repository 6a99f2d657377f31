"""The cases of motion_gates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from case import MAX_OFFSET, Case, channels_last, cut, misaligned, normal, partly_bounded
from torch import Tensor


def gates_inputs(
    g: torch.Generator,
    batch: int = 2,
    channels: int = 4,
    motion: int = 18,
    masks: int = 9,
    height: int = 7,
    width: int = 9,
    size: int = 3,
    bias: float = 0.3,
    layout: Callable[[Tensor], Tensor] = lambda x: x,
    layout_of_all: Callable[[Tensor], Tensor] = lambda t: t,
) -> dict[str, Tensor | None]:
    """`layout` is that of x, `layout_of_all` of every map."""
    deviation = max((channels + motion) * size * size, 1) ** -0.5
    rows = 3 * motion + masks
    maps = {
        "x": layout(normal(batch, channels, height, width)(g)),
        "offset": normal(batch, motion, height, width)(g),
        "trend": normal(batch, motion, height, width)(g),
    }
    return {
        **{name: layout_of_all(t) for name, t in maps.items()},
        "x_weight": normal(rows, channels, size, size, scale=deviation)(g),
        "x_bias": normal(rows, scale=bias)(g),
        "state_weight": normal(2 * motion, motion, size, size, scale=deviation)(g),
        "candidate_weight": normal(motion, motion, size, size, scale=deviation)(g),
    }


def _gates_cases() -> list[Case]:
    variants: dict[str, dict[str, Any]] = {
        "usual": {},
        "c16": {"channels": 16, "height": 16, "width": 16},
        "c1": {"channels": 1, "height": 5},
        "c33": {"channels": 33, "height": 5, "width": 4},
        "one_tap": {"motion": 2, "masks": 1, "size": 1},
        "kernel1": {"size": 1},
        "kernel5": {"size": 5, "height": 6},
        "kernel5_of_5x5_taps": {"size": 5, "motion": 50, "masks": 25, "height": 4, "width": 3},
        "no_mask": {"masks": 0},
        "odd_motion": {"motion": 3, "masks": 2},
        "one_pixel": {"height": 1, "width": 1},
        "row": {"height": 1, "width": 53},
        "column": {"height": 53, "width": 1},
        "no_entries": {"batch": 0},
        "one_entry": {"batch": 1, "height": 19, "width": 23},  # a band per thread
        "bands": {"batch": 1, "motion": 2, "masks": 1, "height": 129, "width": 70},  # more than threads
        "many": {"batch": 9, "channels": 3, "height": 4, "width": 5},  # some to a wave
        "saturated": {"bias": 8.0},
        "cut": {"layout_of_all": cut},
        "misaligned": {"layout_of_all": misaligned},
        "transposed": {"layout": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3)},
        "of_channels_last": {"layout_of_all": channels_last},
        "x_of_channels_last": {"layout": channels_last},
        "cut_of_channels_last": {"layout_of_all": lambda t: cut(channels_last(t))},
    }
    cases = [
        Case("motion_gates", name, partial(gates_inputs, **options)) for name, options in variants.items()
    ]
    bounded = ("usual", "c1", "one_tap", "kernel1", "kernel5", "no_entries", "one_entry", "bands", "misaligned",
               "of_channels_last", "cut_of_channels_last")  # fmt: skip
    cases += [
        Case(c.op, f"bounded_{c.name}", lambda g, c=c: partly_bounded(c.make(g)), {"max_offset": MAX_OFFSET})
        for c in cases
        if c.name in bounded
    ]
    return [*cases, Case("motion_gates", "alpha", gates_inputs, {"alpha": 0.2})]


GATES_CASES = _gates_cases()
