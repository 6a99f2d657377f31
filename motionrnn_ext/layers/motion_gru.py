"""MotionGRU (MotionRNN, CVPR 2021, section 3.2): a recurrent unit that warps features along a learned motion."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from .. import backends, ops
from ..backends.layouts import memory_format
from . import nodes
from .arguments import choice, flag, odd, whole
from .initial_values import Resettable, same_conv
from .motion import MotionState, zero_motion
from .motion_gru_cell import MotionGRUCell, PackedGates
from .plain import (
    call,
    check_entries,
    check_returned,
    has_entries,
    has_hooks_inside,
    is_plain_conv,
    may_be_plain,
    number_or_type,
)
from .rollout import convolve, current_rollout
from .states import check_not_rounded
from .tensors import add_to, fold_depth, unfold_depth
from .warp import OffsetWarp

# Pickles of older versions name all of these classes by this module.
__all__ = ["MotionGRU", "MotionGRUCell", "MotionState", "OffsetWarp", "PackedGates"]

_GATE_SIDES = ("hidden", "decoded")


@may_be_plain
class MotionGRU(Resettable):
    """The MotionGRU that MotionRNN puts between two layers: encoder, cell, decoder and output gate.

        E = Enc(H) at half size and C/4 channels,   Q = Dec(cell(E)),   g = s(W_g * [Q, H])
        X = g.H + (1 - g).Q   with gate_side="hidden" (the paper)
        X = g.Q + (1 - g).H   with gate_side="decoded" (the official code)

    Enc is a convolution of stride 2, Dec a transposed 4x4 convolution of stride 2, and the cell a `MotionGRUCell`. The
    defaults are the paper's form. `MotionGRULayer` takes whole sequences.

    Args:
        hidden_channels: C, the channels of the maps, at least 4.
        kernel_size: k, the side of the warp's neighbourhood, odd; the motion has M = 2*k*k channels.
        alpha: the trend's momentum step, in [0, 1], see `MotionGRUCell`.
        max_offset: the largest motion, in pixels of the half-size map; None sets no bound.
        encoder_kernel_size: kernel size of Enc.
        gate_kernel_size: kernel size of the cell's gates u, r and z, odd.
        mask_kernel_size: kernel size of the warp's mask, odd.
        blend_kernel_size: kernel size of W_g, odd.
        gate_side: the operand that the output gate multiplies, "hidden" or "decoded".
        transient: False leaves out the transient motion, see `MotionGRUCell`.
        trend: False leaves out the motion trend, see `MotionGRUCell`.
        trend_gate: c of the package's own F_t = F' + c u.D', see `MotionGRUCell`; None for the paper's F_t = F' + D'.
        zero_init: whether the weights of gates and mask start at 0, as in the official code.
        depth: whether the maps have a depth axis, (B, C, D, h, w). Every slice is then moved by itself, with the same
            weights.
        device: device of the parameters, as in `nn.Conv2d`.
        dtype: dtype of the parameters, as in `nn.Conv2d`.

    Raises:
        ValueError: there are fewer than 4 channels, a kernel size other than Enc's is even, gate_side is unknown, or
            alpha, max_offset or trend_gate is out of range.
        TypeError: an argument has another type, or alpha asks for a gradient although trend=False leaves it out.

    Examples:
        >>> gru, state = MotionGRU(64), None
        >>> for hidden in torch.rand(5, 2, 64, 32, 32):
        ...     x, state = gru(hidden, state)
    """

    depth = False  # the default for layers that were pickled by an older version

    def __init__(
        self,
        hidden_channels: int,
        kernel_size: int = 3,
        alpha: float | Tensor = 0.5,
        *,
        max_offset: float | None = 1e4,
        encoder_kernel_size: int = 3,
        gate_kernel_size: int = 1,
        mask_kernel_size: int = 1,
        blend_kernel_size: int = 1,
        gate_side: str = "hidden",
        transient: bool = True,
        trend: bool = True,
        trend_gate: float | None = None,
        zero_init: bool = False,
        depth: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden_channels = whole("hidden_channels", hidden_channels)
        encoded = hidden_channels // 4
        if encoded < 1:
            raise ValueError(
                f"hidden_channels is {hidden_channels}; it should be at least 4, because a quarter of them is encoded"
            )
        encoder_kernel_size = whole("encoder_kernel_size", encoder_kernel_size)
        blend_kernel_size = odd("blend_kernel_size", blend_kernel_size)
        kernel_size = odd("kernel_size", kernel_size)
        self.gate_side = choice("gate_side", gate_side, _GATE_SIDES)
        self.hidden_channels, self.depth = hidden_channels, flag("depth", depth)
        self.motion_channels = 2 * kernel_size**2
        # This padding halves an even map, with odd and with even kernels.
        padding = (encoder_kernel_size - 1) // 2
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.encoder = nn.Conv2d(
            hidden_channels, encoded, encoder_kernel_size, stride=2, padding=padding, **made
        )
        self.cell = MotionGRUCell(
            encoded,
            kernel_size,
            alpha,
            max_offset=max_offset,
            gate_kernel_size=gate_kernel_size,
            mask_kernel_size=mask_kernel_size,
            transient=transient,
            trend=trend,
            trend_gate=trend_gate,
            zero_init=zero_init,
            **made,
        )
        self.decoder = nn.ConvTranspose2d(encoded, hidden_channels, 4, stride=2, padding=1, **made)
        self.gate = same_conv(2 * hidden_channels, hidden_channels, blend_kernel_size, **made)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "motion_channels" not in state:  # pickled by an older version
            self.motion_channels = self.cell.motion_channels

    def extra_repr(self) -> str:
        return f"gate_side={self.gate_side!r}" + ", depth=True" * self.depth

    def pack_ahead(self) -> PackedGates | None:
        """Return the cell's `pack_ahead()`, or None if the cell is a user's module or a part has hooks."""
        if has_hooks_inside(self) or not isinstance(self.cell, MotionGRUCell):
            return None
        return self.cell.pack_ahead()

    def initial_state(self, hidden: Tensor) -> MotionState:
        """Return zero motion for maps `hidden`, which are shaped as in a call: the state of a call without one."""
        maps = self._checked(hidden)
        return zero_motion(
            maps, (maps.shape[0], self.motion_channels, maps.shape[2] // 2, maps.shape[3] // 2)
        )

    def forward(
        self, hidden: Tensor, state: MotionState | None = None, packed: PackedGates | None = None
    ) -> tuple[Tensor, MotionState]:
        """Move the maps by one step.

        Args:
            hidden: H, (B, C, h, w) with h and w even; (B, C, D, h, w) with `depth`.
            state: the motion after the previous step; None for zero motion.
            packed: what `pack_ahead` returned, for a caller that takes many steps with the same weights.

        Returns:
            The moved maps X, in the shape of `hidden`, and the motion after this step, (B, M, h/2, w/2), or
            (B*D, M, h/2, w/2) with `depth`.

        Raises:
            ValueError: hidden or the state has another shape, h or w is odd, or gate_side was set to another word.
            TypeError: hidden is no floating-point tensor, or state is no `MotionState` or pair.
        """
        maps = self._checked(hidden)
        active = current_rollout()
        if active is not None and (state is None or has_entries(state, 2)):
            at_rest = maps.shape[0], self.motion_channels, maps.shape[2] // 2, maps.shape[3] // 2
            motion = zero_motion(maps, at_rest) if state is None else state
            stepped = nodes.motion_gru.step(active, self, maps, *motion, packed)
            if stepped is not None:
                return unfold_depth(stepped[0], hidden), MotionState(*stepped[1:])
        batch, _, height, width = maps.shape
        features = convolve(self.encoder, maps)  # (B, C/4, h/2, w/2)
        check_returned("encoder", features, (batch, None, height // 2, width // 2))
        outside = memory_format(features)
        inside = torch.channels_last if self._wants_channels_last(features) else outside
        features = features.contiguous(memory_format=inside)
        offset, trend = self._state(features, state)
        # Without packed weights the argument is left out, because a user's own cell need not know it.
        ahead = () if packed is None else (packed,)
        moved = self.cell(features, offset, trend, *ahead)
        check_entries("cell", moved, "out", "offset", "trend")
        warped, offset, trend = moved
        check_returned("cell", warped, (batch, None, height // 2, width // 2))
        decoded = convolve(self.decoder, warped.contiguous(memory_format=outside))  # (B, C, h, w)
        check_returned("decoder", decoded, maps.shape)
        logits = self._blend_logits(decoded, maps)
        # Checked here as well, because any other word would silently be "decoded".
        side = choice("gate_side", self.gate_side, _GATE_SIDES)
        first, second = (maps, decoded) if side == "hidden" else (decoded, maps)
        x = ops.gated_blend(logits, first, second)
        return unfold_depth(x, hidden), MotionState(offset, trend)

    def _checked(self, hidden: Tensor) -> Tensor:
        """Return the maps to move, (B, C, h, w); a depth axis is folded into the batch, (B*D, C, h, w)."""
        channels, depth = self.hidden_channels, "D, " if self.depth else ""
        check_hidden(hidden)
        if hidden.dim() != 4 + self.depth or hidden.shape[1] != channels:
            found, fits = tuple(hidden.shape), f"(B, {channels}, {depth}h, w)"
            if hidden.dim() != 5 or self.depth:
                raise ValueError(f"hidden has shape {found}; it should be {fits}")
            raise ValueError(
                f"hidden has shape {found}; it should be {fits}; a sequence (B, T, {channels}, h, w) is for "
                f"MotionGRULayer, maps with a depth axis (B, {channels}, D, h, w) are for MotionGRU(depth=True)"
            )
        if not hidden.is_floating_point():
            raise TypeError(f"hidden has dtype {hidden.dtype}; it should be floating point")
        if hidden.shape[-2] % 2 or hidden.shape[-1] % 2:
            raise ValueError(
                f"hidden is {hidden.shape[-2]}x{hidden.shape[-1]}; height and width should be even"
            )
        return fold_depth(hidden)

    def _state(self, features: Tensor, state: MotionState | None) -> MotionState:
        """Return the given state as a `MotionState`, or zero motion for the encoded features."""
        if state is None:
            return zero_motion(features, (features.shape[0], self.motion_channels, *features.shape[2:]))
        if not has_entries(state, 2):
            found = number_or_type(state)
            raise TypeError(f"state is {found}; it should be a MotionState, or a pair (offset, trend)")
        for name, motion in zip(MotionState._fields, state):
            check_not_rounded(self, name, motion)
        return MotionState(*state)

    def _wants_channels_last(self, features: Tensor) -> bool:
        """Return whether the warp should run in channels_last, although the model is contiguous.

        In channels_last the CUDA warp reads whole memory sectors, with a third of the instructions. From about 2^15
        pixels on that should be worth the two copies that a contiguous model then makes (an estimate from the
        instruction counts in docs/kernels.md). A channels_last model is left as it is, and so is an export for maps of
        any size, whose program has no branches.
        """
        batch, _, height, width = features.shape
        pixels = batch * height * width
        # A symbol of an export is no int, and a comparison would bound the sizes.
        return backends.runs_gpu_kernels(features) and isinstance(pixels, int) and pixels >= 2**15

    def _blend_logits(self, decoded: Tensor, hidden: Tensor) -> Tensor:
        """Return W_g * [Q, H], by one convolution of the joined maps or by two, whichever copies less.

        Joining the maps makes backward keep 2C more channels. Two convolutions lay out the two halves of the weight
        anew, forward and backward. At 1x64x16x16 on the CPU a 5x5 gate takes, with its backward, 1.0 ms joined and
        1.26 ms apart, a 1x1 gate 0.23 and 0.15 ms. While compiling, sizes may be symbols, and two are always taken.
        """
        if not is_plain_conv(self.gate, 2 * self.hidden_channels, self.hidden_channels):
            return call(self.gate, "gate", torch.cat([decoded, hidden], dim=1), hidden.shape)
        if current_rollout() is not None and self.gate.kernel_size != (1, 1):
            return convolve(self.gate, torch.cat([decoded, hidden], dim=1))
        weight, bias, padding = self.gate.weight, self.gate.bias, self.gate.padding
        if not torch.compiler.is_compiling() and decoded.numel() + hidden.numel() < weight.numel():
            return F.conv2d(torch.cat([decoded, hidden], dim=1), weight, bias, padding=padding)
        decoded_weight, hidden_weight = weight.split(self.hidden_channels, dim=1)
        logits = F.conv2d(decoded, decoded_weight, bias, padding=padding)
        return add_to(logits, F.conv2d(hidden, hidden_weight, padding=padding))


def check_hidden(hidden: object) -> None:
    """Raise a TypeError unless `hidden` is a tensor."""
    if isinstance(hidden, Tensor):
        return
    # An nn.Sequential hands on all that a layer returns.
    is_pair = isinstance(hidden, tuple) and any(isinstance(part, MotionState) for part in hidden)
    pair = ", the first of the pair (x, state) that a MotionGRU returns" if is_pair else ""
    raise TypeError(f"hidden is a {type(hidden).__name__}; it should be a torch.Tensor{pair}")
