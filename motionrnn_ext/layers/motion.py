"""The motion that a MotionGRU carries from step to step: its state, its start at zero, and the checks of its tensors.

K = k*k is the number of taps and M = 2K that of motion channels: K row offsets, then K column offsets, taps row by row,
in pixels of the map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..backends import reference
from ..backends.layouts import memory_format
from ..name import PACKAGE
from .arguments import check_tensor
from .states import check_not_rounded, detached, exportable


@exportable
class MotionState(NamedTuple):
    """The motion between two time steps.

    Attributes:
        offset: the motion filter F, (B, M, H, W), in pixels of the map; float32, or float64 beside float64 features.
        trend: its trend D, with the same shape, unit and dtype.
    """

    offset: Tensor
    trend: Tensor

    def detach(self) -> MotionState:
        """Return the state cut from the graph, for truncated backpropagation."""
        return detached(self)


# Files that torch.save wrote when the class stood in another module name it by that module.
torch.serialization.add_safe_globals([(MotionState, f"{PACKAGE}.layers.motion_gru.MotionState")])


def zero_motion(x: Tensor, shape: tuple[int, ...]) -> MotionState:
    """Return a zero motion of that shape, in the memory format of the features x."""
    zeros = x.new_zeros(shape, dtype=reference.state_dtype(x.dtype))
    zeros = zeros.contiguous(memory_format=memory_format(x))
    # Two tensors, because torch.export would take what it is given twice for one input.
    return MotionState(zeros, zeros.clone())


def as_motion(owner: nn.Module, name: str, motion: Tensor, x: Tensor, channels: int) -> Tensor:
    """Return the filter or trend that moves x, converted to float32 if it has half precision.

    Raises:
        TypeError: it is no tensor, or has another dtype than x asks for.
        ValueError: it has another shape than (B, channels, H, W) of x, or is on another device.
    """
    check_tensor(name, motion)
    wanted, dtype = (x.shape[0], channels, *x.shape[2:]), reference.state_dtype(x.dtype)
    if tuple(motion.shape) != wanted:
        raise ValueError(
            f"{name} has shape {tuple(motion.shape)}; it should be {wanted}, (B, 2*k*k, H, W) of x"
        )
    if motion.device != x.device:
        raise ValueError(f"{name} is on {motion.device}; it should be on {x.device}, the device of x")
    if motion.dtype in (torch.bfloat16, torch.float16):
        check_not_rounded(owner, name, motion)
        return motion.to(dtype)
    if motion.dtype != dtype:
        raise TypeError(
            f"{name} has dtype {motion.dtype}; it should be {dtype}, because x has dtype {x.dtype}"
        )
    return motion


def check_map(name: str, x: Tensor, channels: int) -> None:
    """Raise an error unless x is a floating-point tensor (B, channels, H, W)."""
    check_tensor(name, x)
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it should be (B, {channels}, H, W)")
    if not x.is_floating_point():
        raise TypeError(f"{name} has dtype {x.dtype}; it should be floating point")
