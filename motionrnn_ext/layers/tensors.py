"""Tensor helpers of the layers: sums in the memory of a convolution's result, and folding depth into the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..backends.torch_private import has_dispatch_modes, has_function_modes, has_hooks_on_all_modules
from ..backends.transforms import is_mapped
from .plain import is_fresh


def add_to(fresh: Tensor, addend: Tensor, by: nn.Module | None = None) -> Tensor:
    """Return fresh + addend, in the memory of `fresh`, the result of a convolution that nothing else reads.

    The sum gets memory of its own if something else may read `fresh`: if the module `by` that computed it has hooks,
    as all modules may, or is a user's, or if a mode is active that may keep the results of convolutions, as selective
    checkpointing does. It does so inside vmap as well, where `fresh` may be shared by all mapped entries while `addend`
    is not.
    """
    watched = not torch.compiler.is_compiling() and (has_dispatch_modes() or has_function_modes())
    fresh_alone = by is None or (is_fresh(by) and not has_hooks_on_all_modules())
    apart = watched or is_mapped() or not fresh_alone
    return fresh + addend if apart else fresh.add_(addend)


def fold_depth(maps: Tensor) -> Tensor:
    """Fold the depth axis into the batch, (B, C, D, h, w) -> (B*D, C, h, w); return maps without depth as they are."""
    return maps if maps.dim() == 4 else maps.transpose(1, 2).flatten(0, 1)


def unfold_depth(maps: Tensor, like: Tensor) -> Tensor:
    """Undo `fold_depth`, (B*D, C', h', w') -> (B, C', D, h', w') as in `like`; without depth, return `maps`."""
    if like.dim() == 4:
        return maps
    return maps.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)
