"""The cases of offset_warp, and of motion_warp, which makes the offset itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from case import MAX_OFFSET, Case, as_format_of, channels_last, cut, misaligned, normal, partly_bounded
from torch import Tensor


def warp_inputs(
    g: torch.Generator,
    batch: int = 2,
    channels: int = 4,
    out_channels: int | None = None,
    height: int = 7,
    width: int = 9,
    k: int = 3,
    offset: Callable[[Tensor], Tensor] = lambda normal: 1.5 * normal,
    mask: Callable[[Tensor], Tensor] = lambda normal: normal,
    layout: Callable[[Tensor], Tensor] = lambda x: x,
    layout_of_all: Callable[[Tensor], Tensor] = lambda t: t,
) -> dict[str, Tensor | None]:
    """`layout` is that of x, `layout_of_all` is applied to every tensor."""
    out_channels = channels if out_channels is None else out_channels
    made = {
        "x": layout(normal(batch, channels, height, width)(g)),
        "offset": offset(normal(batch, 2 * k * k, height, width)(g))
        .float()
        .double(),  # all dtypes floor alike
        "mask_logits": mask(normal(batch, k * k, height, width)(g)),
        "weight": normal(out_channels, channels, k, k, scale=max(channels * k * k, 1) ** -0.5)(g),
    }
    return {name: layout_of_all(t) for name, t in made.items()}


def motion_inputs(
    g: torch.Generator, *, layout_of_logits: Callable[[Tensor], Tensor] = lambda t: t, **options: Any
) -> dict[str, Tensor | None]:
    """`warp_inputs` with the motion before its offset; the logits are parts of one tensor, as of one convolution."""
    warp = warp_inputs(g, **options)
    shape, taps = warp["offset"].shape, warp["mask_logits"].shape[1]
    logits = layout_of_logits(normal(shape[0], 5 * taps, *shape[2:])(g))
    update, candidate, mask = logits.split([2 * taps, 2 * taps, taps], dim=1)
    return {
        "x": warp["x"],
        "update_logits": update,
        "candidate_logits": candidate,
        "offset": warp["offset"],
        "trend": normal(*shape)(g),
        "mask_logits": mask,
        "weight": warp["weight"],
    }


def _exact_motion(g: torch.Generator, **options: Any) -> dict[str, Tensor | None]:
    """Halves of pixels, and every other channel not updated: there the new offset is exact, often an integer."""
    inputs = motion_inputs(g, **options)
    inputs["update_logits"][:, ::2] = -200.0
    inputs["candidate_logits"][:, ::2] = 0.0
    for name in ("offset", "trend"):
        inputs[name] = (inputs[name] * 2).round() / 2
    return inputs


def _edges(normal: Tensor) -> Tensor:
    """Multiples of a quarter, many of them exactly on -1, 0 and the last row or column."""
    return (normal * 16).round() / 4


def _absurd(normal: Tensor) -> Tensor:
    """Some coordinates so far away that no integer holds them."""
    far = torch.tensor([1e4, -1e7, 1e30, float("inf"), -float("inf")], dtype=normal.dtype)
    normal.view(-1)[::7] = far.repeat(normal.numel())[: normal.view(-1)[::7].numel()]
    return normal


def _every_other_entry(x: Tensor) -> Tensor:
    return as_format_of(x, torch.stack([x, x.neg()], dim=1).flatten(0, 1))[::2]


WARP_CHANNELS = (4, 8, 12, 16, 24, 32, 33, 40, 64, 72)  # every way that kernels divide them
WARP_CHANNELS_IN_AND_OUT = ((20, 3), (1, 33), (16, 8), (8, 33), (33, 8), (64, 12), (12, 64))


def _warp_cases() -> list[Case]:
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "several_blocks": {"channels": 16, "height": 20, "width": 21},
        "one_pixel": {"height": 1, "width": 1},
        "row": {"height": 1, "width": 53},
        "column": {"height": 53, "width": 1},
        "k1": {"k": 1},
        "k5": {"k": 5},
        "k9": {"k": 9, "batch": 1, "height": 4, "width": 5},
        "empty": {"batch": 0},
        "no_rows": {"height": 0},
        "no_columns": {"batch": 3, "width": 0},
        "no_channels": {"channels": 0, "out_channels": 3},
        "no_out_channels": {"out_channels": 0},
        "bands": {"batch": 1, "height": 19, "width": 23},
        "many": {"batch": 9, "channels": 3, "height": 4, "width": 5},
        "zero": {"offset": torch.zeros_like},
        "integer": {"offset": lambda n: (2 * n).round()},
        "edges": {"offset": _edges},
        "far": {"offset": lambda n: 15 * n},
        "absurd": {"offset": _absurd},
        "saturated_gates": {"mask": lambda n: 200 * n},
        "cut": {"layout": cut},
        "every_other_entry": {"layout": _every_other_entry},
        "all_cut": {"layout_of_all": cut},
        "misaligned": {"channels": 8, "layout_of_all": misaligned},
    }
    small = {"height": 3, "width": 7}
    variants |= {f"c{c}": {"channels": c, **small} for c in WARP_CHANNELS}
    variants |= {
        f"c{c}_to_{o}": {"channels": c, "out_channels": o, **small} for c, o in WARP_CHANNELS_IN_AND_OUT
    }
    in_both = [name for name in variants if name not in ("plain", "row", "column", "zero", "bands", "many")]
    variants |= {f"{name}_channels_last": _with_channels_last(variants[name]) for name in in_both}
    variants |= {
        "all_channels_last": {"channels": 8, "layout_of_all": channels_last},
        "all_channels_last_k1": {"k": 1, "layout_of_all": channels_last},
        "transposed": {"layout": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3)},
    }
    return [Case("offset_warp", name, partial(warp_inputs, **options)) for name, options in variants.items()]


def _with_channels_last(options: dict[str, Any]) -> dict[str, Any]:
    then = options.get("layout", lambda x: x)
    return {**options, "layout": lambda x: then(channels_last(x))}


def _motion_cases() -> list[Case]:
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "several_blocks": {"channels": 16, "height": 12, "width": 13},
        "c8": {"channels": 8, "height": 3, "width": 7},
        "c32": {"channels": 32, "height": 3, "width": 7},
        "c33": {"channels": 33, "height": 3, "width": 7},
        "c16_to_64": {"channels": 16, "out_channels": 64, "height": 3, "width": 7},
        "k1": {"k": 1},
        "k5": {"k": 5},
        "empty": {"batch": 0},
        "no_columns": {"width": 0},
        "misaligned": {"channels": 8, "layout_of_all": misaligned},
    }
    made = {name: partial(motion_inputs, **options) for name, options in variants.items()}
    made["exact"] = _exact_motion
    layouts = {
        "": {},
        "_x_channels_last": {"layout": channels_last},
        "_logits_channels_last": {"layout_of_logits": channels_last},
        "_channels_last": {"layout": channels_last, "layout_of_logits": channels_last},
    }
    cases = [
        Case("motion_warp", name + suffix, partial(make, **layout))
        for name, make in made.items()
        for suffix, layout in layouts.items()
    ]
    bounded = ("plain", "several_blocks", "c8", "c33", "k1", "empty", "misaligned")
    cases += [
        Case(c.op, f"bounded_{c.name}", lambda g, c=c: partly_bounded(c.make(g)), {"max_offset": MAX_OFFSET})
        for c in cases
        if c.name.startswith(bounded)
    ]
    return [*cases, Case("motion_warp", "alpha", motion_inputs, {"alpha": 0.2})]


WARP_CASES = _warp_cases()
MOTION_CASES = _motion_cases()
