"""Checks of the arguments of `MotionRNN`."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import torch

from ..layers.arguments import is_whole, shown
from ..layers.cells import cell_options


def widths(given: Any, predictor: str, has_memory: bool, highway: bool) -> tuple[int, ...]:
    """Return the width of every layer as ints, from a list, an array or another iterable with an order.

    Raises:
        TypeError: the widths have no order, or one is no integer.
        ValueError: there are none, one is below 1, or they differ although all should be equal.
    """
    ordered = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Set, Mapping))
    # An array without axes counts as an Iterable, but cannot be iterated.
    hidden = tuple(given) if ordered and getattr(given, "ndim", None) != 0 else (None,)
    if isinstance(given, Iterator):
        given = hidden  # a message can show the tuple
    whole = all(map(is_whole, hidden))
    if not whole or not hidden or min(hidden) < 1:
        raise (ValueError if whole else TypeError)(
            f"hidden_channels is {shown(given)}; it should be the width of every layer, such as (64, 64), whole "
            "numbers of at least 1"
        )
    hidden = tuple(map(operator.index, hidden))
    if len(set(hidden)) > 1 and (highway or has_memory):
        why = "a highway" if highway else f"the memory of {predictor!r}"
        raise ValueError(f"hidden_channels is {hidden}; with {why} all layers should be equal")
    return hidden


def checked_cell_options(predictor: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of the predictor's own cell; raise a TypeError if it does not take one of them."""
    if not isinstance(options, Mapping):
        raise TypeError(f"cell_options is {shown(options)}; it should be a dict of names and values")
    known = cell_options(predictor)
    for name in options:
        if name not in known:
            has = f"; known: {', '.join(known)}" if known else ", which has none of its own"
            raise TypeError(f"unknown option {name!r} of predictor {predictor!r}{has}")
    return options


def per_position_size(image_size: tuple[int, int] | None, patch_size: int, who: str) -> tuple[int, int]:
    """Return the image size (H, W) that parameters per position need; `who` names in messages what has them.

    Raises:
        ValueError: it is None, or patch_size does not divide it.
    """
    if image_size is None:
        raise ValueError(f"image_size is None; {who} needs (H, W), as its parameters are per position")
    height, width = image_size
    if height % patch_size or width % patch_size:
        raise ValueError(f"image_size is {height}x{width}; it should be divisible by patch_size {patch_size}")
    return height, width


def check_count(name: str, value: Any) -> None:
    """Raise a TypeError unless `value`, a number of frames, is a whole number."""
    if not is_whole(value):
        raise TypeError(f"{name} is {shown(value)}; it should be a whole number of frames")


def check_size(name: str, value: Any) -> None:
    """Raise an error unless `value` is a whole number of at least 0, or a symbol for one."""
    if not is_whole(value) or value < 0:
        error = ValueError if is_whole(value) else TypeError
        raise error(f"{name} is {shown(value)}; it should be a whole number of at least 0")


def check_generator(generator: torch.Generator | None, device: torch.device | None) -> None:
    """Raise an error unless `generator` is None, or a generator on the device of the tensors that are drawn."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator is {shown(generator)}; it should be a torch.Generator, such as "
            "torch.Generator().manual_seed(0)"
        )
    if device is not None and device.type not in (generator.device.type, "meta"):
        raise ValueError(
            f"generator is on {generator.device}; it should be on {device}, the device of the weights"
        )
