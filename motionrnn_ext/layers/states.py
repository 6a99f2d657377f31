"""States are named tuples. torch.export saves a program that has one only if pytree has a name for it, and loads its
example inputs, as torch.load a state, only if the class is known to be harmless."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch.utils import _pytree as pytree

State = TypeVar("State", bound=type)


def exportable(cls: State) -> State:
    """Class decorator of a named tuple of tensors: it can be saved and loaded, and so can exported programs that take
    or return it."""
    pytree._register_namedtuple(cls, serialized_type_name=f"motionrnn_ext.{cls.__name__}")
    torch.serialization.add_safe_globals([cls])
    return cls
