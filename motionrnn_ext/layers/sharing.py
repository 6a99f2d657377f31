"""3x3 and 5x5 convolutions of a user's model that share their weights between the steps of a forward."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..backends.convolution import KERNEL_SIZES, gains
from .forward_rollout import ForwardRollout, joined_rollout
from .plain import keeps_parameters
from .rollout import SharedWeights, dtype_of_convolutions, geometry_of
from .states import under_autocast


class SharingConv2d(nn.Conv2d):
    """An `nn.Conv2d` that shares its weights in a `ForwardRollout`, where that is faster."""

    def forward(self, input: Tensor) -> Tensor:
        active = joined_rollout(self, input)
        shared = None if active is None else _convolved(active, self, input)
        return super().forward(input) if shared is None else shared


def can_share(module: nn.Module) -> bool:
    """Return whether `start_sharing` changes `module`: a 3x3 or 5x5 convolution that keeps the size of maps."""
    return type(module) is nn.Conv2d and _keeps_size(module)


def start_sharing(conv: nn.Module) -> None:
    """Make a convolution share its weights; it stays the same object."""
    conv.__class__ = SharingConv2d


def stop_sharing(conv: nn.Module) -> bool:
    """Undo `start_sharing`, and return whether `conv` was such a convolution."""
    if type(conv) is not SharingConv2d:
        return False
    conv.__class__ = nn.Conv2d  # type: ignore[assignment]
    return True


def _convolved(active: ForwardRollout, conv: SharingConv2d, x: Any) -> Tensor | None:
    """Return conv(x) by shared weights, or None where it is to be called as such."""
    # Another number of axes, dtype or device is called as such, for PyTorch's results or errors.
    if not (isinstance(x, Tensor) and x.dim() == 4 and keeps_parameters(conv) and _keeps_size(conv)):
        return None
    fits = (conv.weight.dtype == x.dtype or under_autocast(x)) and conv.weight.device == x.device
    dtype = dtype_of_convolutions(x)
    if not fits or not active.joins(conv, dtype, lambda: gains(conv.weight.shape, x, dtype)):
        return None
    weights: SharedWeights = active.share(
        (conv, dtype), lambda: SharedWeights(geometry_of(conv), x, dtype, conv.weight, conv.bias)
    )
    return weights.convolve(x)


def _keeps_size(conv: nn.Conv2d) -> bool:
    k = conv.kernel_size[0]
    found = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    return k in KERNEL_SIZES and found == ((k, k), (1, 1), (k // 2, k // 2), (1, 1), 1, "zeros")
