"""Checks of the arguments that data sets share."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

SPLITS = ("train", "val", "test")


def is_count(value: Any) -> bool:
    """Return whether a value is a positive integer, of Python or NumPy; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def check_split(split: str) -> None:
    """Raise a ValueError unless `split` is one of `SPLITS`."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")


def checked_size(image_size: Sequence[int]) -> tuple[int, int]:
    """Return an image size as (H, W); raise a ValueError unless it is two positive integers."""
    is_pair = isinstance(image_size, Sequence) and len(image_size) == 2
    if not is_pair or not all(map(is_count, image_size)):
        raise ValueError(f"image_size must be two positive integers (H, W); got {image_size!r}")
    return int(image_size[0]), int(image_size[1])


def check_clips(split: str, n_frames: int, image_size: Sequence[int]) -> tuple[int, int]:
    """Check the arguments that every data set takes and return the image size as (H, W).

    Raises:
        ValueError: an unknown split, or a number of frames or an image size that is not positive.
    """
    check_split(split)
    if not is_count(n_frames):
        raise ValueError(f"n_frames must be a positive integer; got {n_frames!r}")
    return checked_size(image_size)


def check_step(clip_step: int | None) -> None:
    """Raise a ValueError unless the distance between clips is None or a positive integer."""
    if clip_step is not None and not is_count(clip_step):
        raise ValueError(f"clip_step must be a positive integer; got {clip_step!r}")


def check_generated(seed: int, length: int) -> None:
    """Raise a ValueError unless the seed is an integer >= 0 and the number of clips a positive integer."""
    if not is_count(length):
        raise ValueError(f"length must be a positive integer; got {length!r}")
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0; got {seed!r}")


def checked_index(index: int, length: int) -> int:
    """Return the position, from 0, of item `index` among `length`; a negative index counts from the end.

    Raises:
        IndexError: there is no such item.
    """
    if not -length <= index < length:
        raise IndexError(f"index must be in 0..{length - 1}; got {index}")
    return index % length
