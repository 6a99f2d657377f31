"""Maps with a depth axis, (B, C, D, h, w), for layers that know none: a slice is a sample of its own."""

from __future__ import annotations

from torch import Tensor


def fold_depth(maps: Tensor) -> Tensor:
    """(B, C, D, h, w) -> (B*D, C, h, w); maps without depth stay as they are."""
    return maps if maps.dim() == 4 else maps.transpose(1, 2).flatten(0, 1)


def unfold_depth(maps: Tensor, like: Tensor) -> Tensor:
    """The inverse, (B*D, C', h', w') -> (B, C', D, h', w') with B and D of `like`; as they are if that has no depth."""
    if like.dim() == 4:
        return maps
    return maps.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)
