"""A warning about rollouts whose motion has left the map, so that the taps of a MotionGRU read zeros, or is nan."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends.torch_private import has_dispatch_modes, is_wrapped
from ..backends.transforms import is_transformed
from ..caller import stacklevel_of_user
from ..layers.motion import MotionState


def share_off_map(offset: Tensor) -> Tensor:
    """Return the share of taps, over all pixels, that lie outside of the map and read zeros.

    Args:
        offset: (B, 2K, h, w), in pixels of the map.

    Returns:
        A tensor without axes, in [0, 1].
    """
    taps, (height, width) = offset.shape[1] // 2, offset.shape[-2:]
    k = math.isqrt(taps)
    tap = torch.arange(k, device=offset.device) - (k - 1) // 2
    row, col = offset.chunk(2, dim=1)  # (B, K, h, w) each
    row = (
        row + tap.repeat_interleave(k).view(-1, 1, 1) + torch.arange(height, device=offset.device).view(-1, 1)
    )
    col = col + tap.repeat(k).view(-1, 1, 1) + torch.arange(width, device=offset.device)
    return 1 - ((row > -1) & (row < height) & (col > -1) & (col < width)).float().mean()


def warn_of_lost_motion(motion: Sequence[MotionState], when: str) -> bool:
    """Warn if the motion of a layer is nan, or most of the taps that are on the map at rest have left it.

    Nothing is checked for tensors on other devices than the CPU, which the check would wait for, and while torch traces
    or transforms the call, when there are no values. Return whether there was a warning.
    """
    for level, (offset, _) in enumerate(motion, 1):
        if not _is_at_hand(offset):
            return False
        if offset.isnan().any():
            warnings.warn(
                f"the MotionGRU after layer {level}: its motion is nan {when}; frames and weights should be finite, "
                "and max_offset a number, as without it the motion grows until it overflows",
                RuntimeWarning,
                stacklevel=stacklevel_of_user(),
            )
            return True
        share = share_off_map(offset.detach()).item()
        # On a map of 2x2 pixels most taps are outside at rest. Their share matters only if most taps are outside now.
        if share > 0.5 and 1 - share < 0.5 * (1 - share_off_map(torch.zeros_like(offset[:1])).item()):
            warnings.warn(
                f"the MotionGRU after layer {level}: {share:.0%} of its taps lie outside of the map {when} and read "
                "zeros, so that predictions no longer follow the motion; predict fewer frames from one state, train "
                "on sequences as long as these, or keep taps nearer by a smaller max_offset",
                RuntimeWarning,
                stacklevel=stacklevel_of_user(),
            )
            return True
    return False


def _is_at_hand(t: Tensor) -> bool:
    """Return whether the values of a tensor can be read now, without waiting for a device."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    is_plain = type(t) is Tensor and t.device.type == "cpu" and t.numel() > 0
    return is_plain and not (has_dispatch_modes() or is_transformed() or is_wrapped(t))
