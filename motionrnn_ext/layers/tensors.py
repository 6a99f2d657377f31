"""Two helpers of layers: sums in the memory of a convolution's result, and a depth axis folded into the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..backends.torch_private import has_dispatch_modes
from ..backends.transforms import is_mapped
from .plain import is_fresh


def add_to(fresh: Tensor, addend: Tensor, by: nn.Module | None = None) -> Tensor:
    """Return fresh + addend, in the memory of `fresh`: a convolution's result that nothing else reads.

    The sum gets memory of its own where something else may read `fresh`: the module `by` that made it has hooks or is
    not the package's own, or a dispatch mode is active, as selective checkpointing keeps what convolutions returned.
    Inside vmap too, where `fresh` may be the same for every mapped entry while `addend` is not.
    """
    watched = not torch.compiler.is_compiling() and has_dispatch_modes()
    apart = watched or is_mapped() or not (by is None or is_fresh(by))
    return fresh + addend if apart else fresh.add_(addend)


def fold_depth(maps: Tensor) -> Tensor:
    """Fold the depth axis into the batch, (B, C, D, h, w) -> (B*D, C, h, w); maps without depth stay as they are."""
    return maps if maps.dim() == 4 else maps.transpose(1, 2).flatten(0, 1)


def unfold_depth(maps: Tensor, like: Tensor) -> Tensor:
    """Undo `fold_depth`, (B*D, C', h', w') -> (B, C', D, h', w'), B and D of `like`; without depth, return `maps`."""
    if like.dim() == 4:
        return maps
    return maps.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)
