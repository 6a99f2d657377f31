"""Sums in the memory of a convolution's result."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.transforms import is_mapped


def add_to(fresh: Tensor, addend: Tensor) -> Tensor:
    """fresh + addend, in the memory of `fresh`, a convolution's result that nothing else reads.

    Apart where something else may: a dispatch mode, as selective checkpointing keeps what convolutions returned. And
    inside of vmap, where `fresh` may be the same for all that is mapped and `addend` not.
    """
    watched = not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() > 0
    return fresh + addend if watched or is_mapped() else fresh.add_(addend)
