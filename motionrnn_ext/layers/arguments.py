"""What layers and models check of the arguments that they are made with and called with."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def shown(value: object) -> str:
    """A value as a message has it: one line, and not a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:75]} ..."


def is_whole(value: Any) -> bool:
    """Whether `value` is an integer, of whichever library; True and False are none."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and not (value.is_meta or _is_fractional(value.dtype))
    if isinstance(value, bool):
        return False
    # A size may be a symbol, in an export.
    return isinstance(value, (int, torch.SymInt)) or _has_index(value)


def whole(name: str, value: Any, at_least: int = 1) -> int:
    """`value` as an int.

    Raises:
        TypeError: it is no integer. ValueError: it is too small.
    """
    if not is_whole(value) or value < at_least:
        error = ValueError if is_whole(value) else TypeError
        raise error(f"{name} is {shown(value)}; it should be a whole number of at least {at_least}")
    return operator.index(value)


def odd(name: str, value: Any) -> int:
    """`value`, the size of a kernel that keeps the size of the map, as an int.

    Raises:
        TypeError: it is no integer. ValueError: it is even, or below 1.
    """
    size = whole(name, value)
    if size % 2 == 0:
        raise ValueError(f"{name} is {size}; it should be odd")
    return size


def pair(name: str, value: Any, meaning: str) -> tuple[int, int]:
    """`value`, the size of a map or an image, as two ints; `meaning` spells them, such as (h, w).

    Raises:
        TypeError: they are no integers, or not two. ValueError: one is below 1.
    """
    good = is_sequence(value) and len(value) == 2 and all(map(is_whole, value))
    if not good or min(value) < 1:
        error = ValueError if good else TypeError
        raise error(f"{name} is {shown(value)}; it should be {meaning}, whole numbers of at least 1")
    return operator.index(value[0]), operator.index(value[1])


def flag(name: str, value: Any) -> bool:
    """`value` as a bool; 0 and 1 are. A TypeError for all else, such as the word "no", which is true in Python."""
    if getattr(value, "is_meta", False) or getattr(value, "ndim", 0) or value not in (False, True):
        raise TypeError(f"{name} is {shown(value)}; it should be True or False")
    return bool(value)


def choice(name: str, value: Any, known: Sequence[str | None]) -> Any:
    """`value`, one of the words that are `known`, or None where that is; a ValueError that lists them for all else."""
    if not (value is None or isinstance(value, str)) or value not in known:
        raise ValueError(f"{name} is {shown(value)}; it should be {' or '.join(map(repr, known))}")
    return value


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; it should be a torch.Tensor")


def is_sequence(value: object) -> bool:
    """Whether `value` has items in an order: a list, a tuple, an array; no text."""
    known = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return known or getattr(value, "ndim", 0) == 1


def _is_fractional(dtype: torch.dtype) -> bool:
    return dtype == torch.bool or dtype.is_floating_point or dtype.is_complex


def _has_index(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True
