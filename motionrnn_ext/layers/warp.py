"""The masked neighbourhood warp as a module, with the weights of its mask and of its taps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from .. import ops
from ..backends import reference
from .arguments import flag, odd, whole
from .initial_values import Resettable, same_conv
from .motion import as_motion, check_map
from .plain import call, is_plain, is_plain_conv, may_be_plain


@may_be_plain
class OffsetWarp(Resettable):
    """The masked neighbourhood warp with weights of its own: `offset_warp(x, offset, mask, conv.weight)`.

    The convolution `warp_gate` computes the mask logits from x, and `conv` holds the (C_out, C, k, k) weight that sums
    over channels and taps. A `conv` that is not plain (see `motionrnn_ext.layers.plain`) is called on the masked taps
    laid side by side, (B, C, k*H, k*W), as the official Warp calls it. Names and initial values are those of the
    official Warp.

    Args:
        channels: C, the channels of x.
        out_channels: C_out; None for C.
        kernel_size: k, the side of the neighbourhood, odd.
        mask_kernel_size: kernel size of `warp_gate`, odd.
        zero_init: whether the weight of `warp_gate` starts at 0.
        device: device of the parameters, as in `nn.Conv2d`.
        dtype: dtype of the parameters, as in `nn.Conv2d`.

    Raises:
        ValueError: a size is below 1, or a kernel size is even.
        TypeError: an argument has another type.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        *,
        mask_kernel_size: int = 3,
        zero_init: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        channels, k = whole("channels", channels), odd("kernel_size", kernel_size)
        out_channels = channels if out_channels is None else whole("out_channels", out_channels)
        mask_kernel_size, zero = odd("mask_kernel_size", mask_kernel_size), flag("zero_init", zero_init)
        self.channels, self.out_channels, self.kernel_size = channels, out_channels, k
        self.conv = nn.Conv2d(channels, out_channels, k, stride=k, bias=False, device=device, dtype=dtype)
        self.warp_gate = same_conv(channels, k * k, mask_kernel_size, zero, device, dtype)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "channels" not in state:  # pickled by an older version
            self.channels, self.out_channels = self.conv.in_channels, self.conv.out_channels
            self.kernel_size = self.conv.kernel_size[0]

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Warp x along an offset.

        Args:
            x: features, (B, C, H, W).
            offset: the motion filter F, (B, 2*k*k, H, W), in pixels: row offsets, then column offsets.

        Returns:
            The warped features, (B, C_out, H, W), in the dtype of x.

        Raises:
            ValueError: x or offset has another shape, or they are on different devices.
            TypeError: x or offset is no tensor, or has another dtype.
        """
        k = self.kernel_size
        check_map("x", x, self.channels)
        offset = as_motion(self, "offset", offset, x, 2 * k * k)
        mask = self.mask_logits(x)
        if is_plain_conv(self.conv, self.channels, self.out_channels, k):
            return ops.offset_warp(x, offset, mask, self.conv.weight)
        taps = reference.masked_taps(x, offset, mask, k).to(x.dtype).unflatten(2, (k, k))
        batch, channels, _, _, height, width = taps.shape
        side_by_side = taps.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels, height * k, width * k)
        return call(self.conv, "warp.conv", side_by_side, (batch, self.out_channels, height, width))

    def mask_logits(self, x: Tensor) -> Tensor:
        """Return the logits of the mask, (B, K, H, W), in the dtype of x."""
        return call(self.warp_gate, "warp.warp_gate", x, (x.shape[0], self.kernel_size**2, *x.shape[2:]))

    def reads_conv(self) -> bool:
        """Return whether a caller may read the weight of `conv` and compute the mask without calling this module."""
        has_own_mask = getattr(self.mask_logits, "__func__", None) is not OffsetWarp.mask_logits
        return (
            not has_own_mask
            and is_plain(self, OffsetWarp)
            and is_plain_conv(self.conv, self.channels, self.out_channels, self.kernel_size)
        )
