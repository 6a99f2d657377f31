"""Checks of the arguments that layers and models are made and called with.

Every message names the argument, shows its value, and says what it should be.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def shown(value: object) -> str:
    """Return a value as a message shows it: in one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:75]} ..."


def is_whole(value: Any) -> bool:
    """Return whether `value` is an integer of Python, NumPy or torch; True and False are not."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and not (value.is_meta or _is_fractional(value.dtype))
    if isinstance(value, bool):
        return False
    # An export may pass a size as a symbol.
    return isinstance(value, (int, torch.SymInt)) or _has_index(value)


def whole(name: str, value: Any, at_least: int = 1) -> int:
    """Return `value` as an int.

    Raises:
        TypeError: it is no integer.
        ValueError: it is smaller than `at_least`.
    """
    check_whole(name, value, at_least)
    return operator.index(value)


def check_whole(name: str, value: Any, at_least: int) -> None:
    """Raise an error unless `value` is a whole number of at least `at_least`, or a symbol for one.

    Raises:
        TypeError: it is no integer.
        ValueError: it is smaller.
    """
    if not is_whole(value) or value < at_least:
        error = ValueError if is_whole(value) else TypeError
        raise error(f"{name} is {shown(value)}; it should be a whole number of at least {at_least}")


def odd(name: str, value: Any) -> int:
    """Return `value`, the size of a kernel that keeps the size of the map, as an int.

    Raises:
        TypeError: it is no integer.
        ValueError: it is even, or below 1.
    """
    size = whole(name, value)
    if size % 2 == 0:
        raise ValueError(f"{name} is {size}; it should be odd")
    return size


def pair(name: str, value: Any, meaning: str) -> tuple[int, int]:
    """Return `value`, the size of a map or an image, as two ints; `meaning` names them in messages, such as (h, w).

    Raises:
        TypeError: it does not consist of two integers.
        ValueError: one of them is below 1.
    """
    good = is_sequence(value) and len(value) == 2 and all(map(is_whole, value))
    if not good or min(value) < 1:
        error = ValueError if good else TypeError
        raise error(f"{name} is {shown(value)}; it should be {meaning}, whole numbers of at least 1")
    return operator.index(value[0]), operator.index(value[1])


def flag(name: str, value: Any) -> bool:
    """Return `value` as a bool; 0 and 1 are accepted.

    Raises:
        TypeError: it is anything else, such as the word "no", which is true in Python.
    """
    if getattr(value, "is_meta", False) or getattr(value, "ndim", 0) or value not in (False, True):
        raise TypeError(f"{name} is {shown(value)}; it should be True or False")
    return bool(value)


def choice(name: str, value: Any, known: Sequence[str | None]) -> Any:
    """Return `value`, which should be one of `known`.

    Raises:
        ValueError: it is not; the message lists the known values.
    """
    if not (value is None or isinstance(value, str)) or value not in known:
        raise ValueError(f"{name} is {shown(value)}; it should be {' or '.join(map(repr, known))}")
    return value


def check_tensor(name: str, value: object) -> None:
    """Raise a TypeError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; it should be a torch.Tensor")


def is_sequence(value: object) -> bool:
    """Return whether `value` has items in an order, as a list, a tuple or an array has; text does not count."""
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
