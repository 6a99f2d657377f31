"""Convolutions of a user's model that share their weights between the steps of a forward."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .forward_rollout import joined_rollout
from .plain import keeps_parameters
from .rollout import SharedWeights, dtype_of_convolutions, geometry_of
from .states import under_autocast


class SharingConv2d(nn.Conv2d):
    """An `nn.Conv2d` that shares its weights in a `ForwardRollout`."""

    def forward(self, input: Tensor) -> Tensor:
        shared = _shared(self, input)
        return super().forward(input) if shared is None else shared


class SharingConvTranspose2d(nn.ConvTranspose2d):
    """An `nn.ConvTranspose2d` that shares its weights in a `ForwardRollout`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        shared = _shared(self, input) if output_size is None else None
        return super().forward(input, output_size) if shared is None else shared


_SHARING: dict[type, Any] = {nn.Conv2d: SharingConv2d, nn.ConvTranspose2d: SharingConvTranspose2d}


def can_share(module: nn.Module) -> bool:
    """Return whether `module` is a convolution that `start_sharing` changes."""
    return type(module) in _SHARING


def start_sharing(conv: nn.Module) -> None:
    """Make a convolution share its weights; it stays the same object."""
    conv.__class__ = _SHARING[type(conv)]


def stop_sharing(conv: nn.Module) -> bool:
    """Undo `start_sharing`, and return whether `conv` was such a convolution."""
    for plain, sharing in _SHARING.items():
        if type(conv) is sharing:
            conv.__class__ = plain
            return True
    return False


def _shared(conv: SharingConv2d | SharingConvTranspose2d, x: Tensor) -> Tensor | None:
    """Return conv(x) by shared weights, or None where it is to be called as such."""
    active = joined_rollout(conv, x)
    if active is None or not (isinstance(x, Tensor) and x.dim() == 4 and keeps_parameters(conv)):
        return None
    # Another dtype or device than the weight's is an error of PyTorch's.
    fits = (conv.weight.dtype == x.dtype or under_autocast(x)) and conv.weight.device == x.device
    if not fits or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    dtype = dtype_of_convolutions(x)
    weights: SharedWeights = active.share(
        (conv, dtype),
        lambda: SharedWeights(geometry_of(conv), x, dtype, conv.weight, conv.bias),
    )
    return weights.convolve(x)
