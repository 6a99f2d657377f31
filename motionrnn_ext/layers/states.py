"""Make states, which are named tuples of tensors, known to PyTorch, so that they can be saved, loaded and exported.

torch.export saves a program that takes or returns a state only if pytree has a name for its class. torch.load reads a
state, and torch.export the example inputs of a program, only if the class is registered as safe.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..backends.torch_private import register_namedtuple, tree_map_only
from ..name import PACKAGE

Class = TypeVar("Class", bound=type)
State = TypeVar("State", bound=tuple)  # type: ignore[type-arg]
HALVES = (torch.bfloat16, torch.float16)


def exportable(cls: Class) -> Class:
    """Register a named tuple of tensors, so that it and exported programs with it can be saved and loaded.

    This is a class decorator.
    """
    register_namedtuple(cls, serialized_type_name=f"{PACKAGE}.{cls.__name__}")
    torch.serialization.add_safe_globals([cls])
    return cls


def under_autocast(x: Tensor) -> bool:
    """Return whether autocast is on for the device of x; the device "meta" has none, and torch raises an error."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def detached(state: State) -> State:
    """Return `state` with every tensor in it cut from the graph, in nested tuples as well; the rest stays as it is."""
    return tree_map_only(Tensor, Tensor.detach, state)


def check_fields(name: str, state: object, kind: Any) -> None:
    """Raise a TypeError unless `state` has the fields of the named tuple `kind`."""
    if not all(hasattr(state, field) for field in kind._fields):
        raise TypeError(
            f"{name} is a {type(state).__name__}; it should be None, or the {kind.__name__} that the cell returned"
        )


def adapt_state(state: State, dtype: torch.dtype, weight_dtype: torch.dtype) -> State:
    """Return a `MotionRNNState` for frames of `dtype`.

    Beside float32 frames, tensors of half precision become float32; autocast or a model of half precision may have left
    them. Beside frames and weights of half precision, all but the motion gets that dtype.

    Raises:
        TypeError: one of its `layers` is float64 and the frames are not, or the other way round.
    """
    layers: tuple[Any, ...] = state.layers  # type: ignore[attr-defined]
    for level, layer in enumerate(layers):
        if layer.hidden.dtype != dtype and torch.float64 in (layer.hidden.dtype, dtype):
            raise TypeError(
                f"state.layers[{level}].hidden has dtype {layer.hidden.dtype}; it should be {dtype}, "
                "the dtype of frames"
            )
    if dtype == torch.float32:
        return without_halves(state)
    if dtype == weight_dtype and any(layer.hidden.dtype != dtype for layer in layers):
        carried = {"layers": layers, "memory": state.memory}  # type: ignore[attr-defined]
        return state._replace(**tree_map_only(Tensor, lambda t: t.to(dtype), carried))  # type: ignore[attr-defined,no-any-return]
    return state


def without_halves(state: State) -> State:
    """Return `state` with its tensors of half precision converted to float32."""
    return tree_map_only(Tensor, lambda t: t.float() if t.dtype in HALVES else t, state)


def check_not_rounded(module: nn.Module, name: str, motion: Tensor) -> None:
    """Raise a TypeError if FSDP has cast the motion to half precision, which it would do at every step."""
    is_half = isinstance(motion, Tensor) and motion.dtype in HALVES
    if is_half and any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__):
        raise TypeError(
            f"{name} has dtype {motion.dtype} by FSDP's mixed precision, which would round the motion at every step; "
            "it should be float32: set cast_forward_inputs=False in that MixedPrecisionPolicy"
        )
