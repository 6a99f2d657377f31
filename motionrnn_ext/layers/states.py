"""States are named tuples. torch.export saves a program that has one only if pytree has a name for it, and loads its
example inputs, as torch.load a state, only if the class is known to be harmless."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from ..backends.torch_private import register_namedtuple, tree_map_only

Class = TypeVar("Class", bound=type)
State = TypeVar("State", bound=tuple)  # type: ignore[type-arg]


def exportable(cls: Class) -> Class:
    """Class decorator of a named tuple of tensors: it can be saved and loaded, and so can exported programs that take
    or return it."""
    register_namedtuple(cls, serialized_type_name=f"motionrnn_ext.{cls.__name__}")
    torch.serialization.add_safe_globals([cls])
    return cls


def detached(state: State) -> State:
    """Return `state` with every tensor in it cut from the graph, in nested tuples as well; the rest stays as it is."""
    return tree_map_only(Tensor, Tensor.detach, state)


def taken_up(state: State, dtype: torch.dtype) -> State:
    """Return `state` for features of `dtype`: with float32 ones what autocast or a half model left becomes float32.

    Raises:
        TypeError: its `layers` are of float32 and the features of float64, or the other way round.
    """
    for level, layer in enumerate(state.layers):  # type: ignore[attr-defined]
        if {layer.hidden.dtype, dtype} == {torch.float32, torch.float64}:
            raise TypeError(
                f"state.layers[{level}].hidden has dtype {layer.hidden.dtype}; it should be {dtype}, "
                "the dtype of frames"
            )
    if dtype != torch.float32:
        return state
    halves = (torch.bfloat16, torch.float16)
    return tree_map_only(Tensor, lambda t: t.float() if t.dtype in halves else t, state)


def check_not_rounded(module: nn.Module, name: str, motion: Tensor) -> None:
    """Raise where FSDP has cast motion to half precision, as it would at every step."""
    is_half = isinstance(motion, Tensor) and motion.dtype in (torch.bfloat16, torch.float16)
    if is_half and any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__):
        raise TypeError(
            f"{name} has dtype {motion.dtype} by FSDP's mixed precision, which would round the motion at every step; "
            "it should be float32: set cast_forward_inputs=False in that MixedPrecisionPolicy"
        )
