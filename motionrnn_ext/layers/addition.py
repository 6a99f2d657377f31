"""Sums in the memory of a convolution's result."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..backends.transforms import is_mapped
from .plain import is_fresh


def add_to(fresh: Tensor, addend: Tensor, by: nn.Module | None = None) -> Tensor:
    """fresh + addend, in the memory of `fresh`, a convolution's result that nothing else reads.

    Apart where something else may: the module `by` that made it has hooks or is not the package's own, or there is a
    dispatch mode, as selective checkpointing keeps what convolutions returned. And inside of vmap, where `fresh` may be
    the same for all that is mapped and `addend` not.
    """
    watched = not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() > 0
    apart = watched or is_mapped() or not (by is None or is_fresh(by))
    return fresh + addend if apart else fresh.add_(addend)
