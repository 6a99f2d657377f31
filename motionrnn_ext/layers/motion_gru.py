"""MotionGRU (MotionRNN, CVPR 2021, section 3.2): a recurrent unit that warps features along a learned motion.

The notation is that of `motionrnn_ext.ops`: K = k*k taps, M = 2K motion channels, K row offsets then K column
offsets, in pixels of the map; F is the motion filter (`offset`), D its trend (`trend`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import backends, ops
from ..backends import reference
from ..backends.layouts import memory_format
from ..ops import _arguments as arguments
from .addition import add_to
from .depth import fold_depth, unfold_depth
from .states import exportable


@exportable
class MotionState(NamedTuple):
    """Motion between time steps: filter F and trend D, (B, M, H, W) float32 (float64 beside float64)."""

    offset: Tensor
    trend: Tensor


class PackedGates(NamedTuple):
    """The gates' weights by what they read: x for u, r, z (and the mask), F for u and r, s(r).F for z."""

    x_weight: Tensor  # (3M, C, g, g), or (3M + K, C, g, g) where the mask's kernel has the gates' size
    x_bias: Tensor  # (3M,) or (3M + K,)
    state_weight: Tensor  # (2M, M, g, g)
    candidate_weight: Tensor  # (M, M, g, g)


def _same_conv(in_channels: int, out_channels: int, kernel_size: int, name: str) -> nn.Conv2d:
    if kernel_size % 2 == 0:
        raise ValueError(f"{name} is {kernel_size}; it should be odd")
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


class OffsetWarp(nn.Module):
    """The masked neighbourhood warp with weights of its own: `offset_warp(x, offset, mask, conv.weight)`.

    x (B, C, H, W), offset (B, M, H, W) -> (B, C_out, H, W). The mask logits are the convolution `warp_gate`
    of x; `conv` only holds the (C_out, C, k, k) weight that sums over channels and taps. Names and initial
    values (the mask's weight at 0, with `zero_init`) are the official Warp's.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        *,
        mask_kernel_size: int = 3,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; it should be odd")
        self.conv = nn.Conv2d(channels, out_channels or channels, kernel_size, stride=kernel_size, bias=False)
        self.warp_gate = _same_conv(channels, kernel_size**2, mask_kernel_size, "mask_kernel_size")
        if zero_init:
            nn.init.zeros_(self.warp_gate.weight)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        return ops.offset_warp(x, offset, self.warp_gate(x), self.conv.weight)


class MotionGRUCell(nn.Module):
    """One MotionGRU step on encoded features: `(x, offset, trend) -> (out, offset, trend)`.

        u = s(W_u * [x, F]),  r = s(W_r * [x, F]),  z = tanh(W_z * [x, r.F])
        F' = u.z + (1 - u).F,   D' = D + alpha (F - D),   F_t = F' + D',   out = warp(x, F_t)

    F_t is kept within max_offset, in pixels, so that a stream may go on for ever: F grows by up to 1.7 a step, and
    float32 would end at inf and then nan. Far beyond the map every tap reads zero, so a bound there changes no `out`;
    None is the official program's behaviour, no bound. alpha, in [0, 1], may be a `Parameter` of one element; it is
    then learned, by PyTorch's own operations instead of the kernels.

    x (B, C, H, W), offset and trend (B, M, H, W) -> out (B, out_channels, H, W), offset and trend of the next
    step. Drop-in for the official `MotionGRU(x_t, pre_offset, mean)`: same call, state-dict keys, defaults
    and initial values (weights of gates and mask at 0; `zero_init=False` keeps PyTorch's).

    Ablations: `trend=False` leaves D alone, and F_t = F'; `transient=False` has D_t = D + alpha (u.z - D),
    and F_t = D_t. The paper's formulas for them are not known; these are this package's.

    Backward keeps, besides inputs and parameters, 9K channels of the map on the backend `cpu`: logits of u, r
    and z, and F_t (2K each), logits of the mask (K); 20.25 MiB at 16x16x64x64 in float32. There `motion_gates`
    and `offset_warp` are all that runs. Elsewhere, in ablations and where the mask's kernel has
    another size, r.F is kept as well, 24.75 MiB; all that reads x is one convolution, whose parts are added in
    place into the fresh convolutions of the state.

    Raises:
        ValueError: an even kernel size; both ablations at once; alpha outside of [0, 1]; max_offset not above 0;
            x, offset or trend of another shape.
        TypeError: alpha or max_offset is no number.
    """

    max_offset: float | None = None  # of cells that were pickled before there was one

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        alpha: float | Tensor = 0.5,
        *,
        max_offset: float | None = 1e4,
        gate_kernel_size: int = 3,
        mask_kernel_size: int = 3,
        out_channels: int | None = None,
        transient: bool = True,
        trend: bool = True,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        if not (transient or trend):
            raise ValueError("transient and trend are both False; one should be True, or no motion is left")
        motion = 2 * kernel_size**2
        self.channels, self.motion_channels, self.kernel_size = channels, motion, kernel_size
        self.alpha = arguments.momentum_of_module(alpha)
        self.max_offset = None if max_offset is None else arguments.bound("max_offset", max_offset)
        self.transient, self.trend = transient, trend
        self.update = _same_conv(channels + motion, motion, gate_kernel_size, "gate_kernel_size")
        self.reset = _same_conv(channels + motion, motion, gate_kernel_size, "gate_kernel_size")
        self.output = _same_conv(channels + motion, motion, gate_kernel_size, "gate_kernel_size")
        self.warp = OffsetWarp(
            channels, out_channels, kernel_size, mask_kernel_size=mask_kernel_size, zero_init=zero_init
        )
        if zero_init:
            for gate in (self.update, self.reset, self.output):
                nn.init.zeros_(gate.weight)
        # One convolution of 7K channels takes 0.7 to 0.8 of the time of 6K and K apart (CPU, B8 C16, 16x16,
        # 32x32).
        self.mask_with_gates = gate_kernel_size == mask_kernel_size

    def extra_repr(self) -> str:
        alpha = "learned" if isinstance(self.alpha, Tensor) else self.alpha
        return f"alpha={alpha}, max_offset={self.max_offset}, transient={self.transient}, trend={self.trend}"

    def pack(self) -> PackedGates:
        """The gates' weights as `forward` uses them; a rollout packs once and hands them to every step."""
        gates = (self.update, self.reset, self.output)
        parts = [gate.weight.split((self.channels, self.motion_channels), dim=1) for gate in gates]
        (update_x, update_f), (reset_x, reset_f), (output_x, output_f) = parts
        weights, convolutions = [update_x, reset_x, output_x], list(gates)
        if self.mask_with_gates:
            weights.append(self.warp.warp_gate.weight)
            convolutions.append(self.warp.warp_gate)
        biases = [conv.bias for conv in convolutions if conv.bias is not None]
        return PackedGates(torch.cat(weights), torch.cat(biases), torch.cat([update_f, reset_f]), output_f)

    def initial_state(self, x: Tensor) -> MotionState:
        """Zero motion for features x (B, C, H, W)."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        zeros = x.new_zeros((x.shape[0], self.motion_channels, *x.shape[2:]), dtype=dtype)
        zeros = zeros.contiguous(memory_format=memory_format(x))
        return MotionState(zeros, zeros)

    def forward(
        self, x: Tensor, offset: Tensor, trend: Tensor, packed: PackedGates | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        self._check(x, offset, trend)
        packed = self.pack() if packed is None else packed
        if self.mask_with_gates and self.transient and self.trend and backends.runs_cpu_kernels(x):
            offset, trend, mask = ops.motion_gates(x, offset, trend, *packed, self.alpha, self.max_offset)
            return ops.offset_warp(x, offset, mask, self.warp.conv.weight), offset, trend
        motion, padding = self.motion_channels, self.update.padding
        from_x = F.conv2d(x, packed.x_weight, packed.x_bias, padding=padding)  # (B, 3M [+ K], H, W)
        if self.mask_with_gates:
            gates_x, candidate_x, mask = from_x.split((2 * motion, motion, motion // 2), dim=1)
            mask = mask.clone()  # the warp keeps it; a view would keep all of from_x
        else:
            gates_x, candidate_x = from_x.split((2 * motion, motion), dim=1)
            mask = self.warp.warp_gate(x)

        # Added to the fresh convolution, never to from_x: its views are still to be read.
        gates = F.conv2d(offset.to(packed.state_weight.dtype), packed.state_weight, padding=padding)
        gates = add_to(gates, gates_x)
        update, reset = gates.split(motion, dim=1)  # (B, M, H, W) each
        candidate = F.conv2d(ops.motion_reset(reset, offset), packed.candidate_weight, padding=padding)
        candidate = add_to(candidate, candidate_x)

        weight = self.warp.conv.weight
        if self.transient and self.trend:
            numbers = self.alpha, self.max_offset
            return ops.motion_warp(x, update, candidate, offset, trend, mask, weight, *numbers)
        offset, trend = self._ablated(update, candidate, offset, trend)
        return ops.offset_warp(x, offset, mask, weight), offset, trend

    def _ablated(
        self, update: Tensor, candidate: Tensor, offset: Tensor, trend: Tensor
    ) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(update.to(offset.dtype))
        target = torch.tanh(candidate.to(offset.dtype))
        limit = arguments.bound("max_offset", self.max_offset)
        if self.transient:
            return reference.bounded(offset + gate * (target - offset), limit), trend
        alpha = arguments.momentum("MotionGRUCell", self.alpha, update)
        trend = trend + alpha * (gate * target - trend)
        return reference.bounded(trend, limit), trend

    def _check(self, x: Tensor, offset: Tensor, trend: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x has shape {tuple(x.shape)}; it should be (B, {self.channels}, H, W)")
        wanted = (x.shape[0], self.motion_channels, *x.shape[2:])
        for name, tensor in (("offset", offset), ("trend", trend)):
            if tuple(tensor.shape) != wanted:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}; it should be {wanted}, (B, 2*k*k, H, W) of x"
                )


class MotionGRU(nn.Module):
    """The MotionGRU as MotionRNN puts it between two layers: encoder, cell, decoder, output gate.

        E = Enc(H) at half size and C/4 channels,   Q = Dec(cell(E)),   g = s(W_g * [Q, H])
        X = g.H + (1 - g).Q   with gate_side="hidden" (the paper)
        X = g.Q + (1 - g).H   with gate_side="decoded" (the official code)

    `(hidden, state=None) -> (x, state)`: hidden and x (B, C, h, w) with h and w even, state a `MotionState`
    at (h/2, w/2), zero when not given. The slices of a depth axis, (B, C, D, h, w), are moved each by itself with
    the same weights, and state is (B*D, M, h/2, w/2). Enc is a convolution of stride 2 and `encoder_kernel_size`, Dec a
    transposed 4x4 one, W_g one of `blend_kernel_size`; u, r and z have `gate_kernel_size`, the mask has
    `mask_kernel_size`; alpha and max_offset are `MotionGRUCell`'s. The defaults are the paper's form; `zero_init`
    starts the weights of gates and mask at 0, as the official code does.

    Raises:
        ValueError: fewer than 4 channels; an even kernel (but Enc's); an unknown gate_side; odd h or w; alpha or
            max_offset as for `MotionGRUCell`.
    """

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
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        encoded = hidden_channels // 4
        if encoded < 1:
            raise ValueError(
                f"hidden_channels is {hidden_channels}; it should be at least 4, a quarter is encoded"
            )
        if gate_side not in ("hidden", "decoded"):
            raise ValueError(f"gate_side is {gate_side!r}; it should be 'hidden' or 'decoded'")
        self.hidden_channels, self.gate_side = hidden_channels, gate_side
        padding = (encoder_kernel_size - 1) // 2  # halves an even map for odd and even kernels alike
        self.encoder = nn.Conv2d(hidden_channels, encoded, encoder_kernel_size, stride=2, padding=padding)
        self.cell = MotionGRUCell(
            encoded,
            kernel_size,
            alpha,
            max_offset=max_offset,
            gate_kernel_size=gate_kernel_size,
            mask_kernel_size=mask_kernel_size,
            transient=transient,
            trend=trend,
            zero_init=zero_init,
        )
        self.decoder = nn.ConvTranspose2d(encoded, hidden_channels, 4, stride=2, padding=1)
        self.gate = _same_conv(2 * hidden_channels, hidden_channels, blend_kernel_size, "blend_kernel_size")

    def extra_repr(self) -> str:
        return f"gate_side={self.gate_side!r}"

    def forward(
        self, hidden: Tensor, state: MotionState | None = None, packed: PackedGates | None = None
    ) -> tuple[Tensor, MotionState]:
        if hidden.dim() == 5:
            x, state = self(fold_depth(hidden), state, packed)
            return unfold_depth(x, hidden), state
        if hidden.dim() != 4 or hidden.shape[1] != self.hidden_channels:
            raise ValueError(
                f"hidden has shape {tuple(hidden.shape)}; it should be (B, {self.hidden_channels}, h, w)"
            )
        if hidden.shape[2] % 2 or hidden.shape[3] % 2:
            raise ValueError(
                f"hidden is {hidden.shape[2]}x{hidden.shape[3]}; height and width should be even"
            )
        features = self.encoder(hidden)  # (B, C/4, h/2, w/2)
        outside = memory_format(features)
        inside = torch.channels_last if self._is_large(features) else outside
        features = features.contiguous(memory_format=inside)
        offset, trend = self.cell.initial_state(features) if state is None else state
        warped, offset, trend = self.cell(features, offset, trend, packed)
        decoded = self.decoder(warped.contiguous(memory_format=outside))  # (B, C, h, w)
        logits = self._blend_logits(decoded, hidden)
        first, second = (hidden, decoded) if self.gate_side == "hidden" else (decoded, hidden)
        return ops.gated_blend(logits, first, second), MotionState(offset, trend)

    def _is_large(self, features: Tensor) -> bool:
        # In channels_last the CUDA warp reads whole memory sectors, with a third of the instructions: from about 2^15
        # pixels on that should be worth the two copies that a contiguous model then makes (an estimate from the
        # instruction counts in docs/kernels.md). A channels_last model is left as it is.
        batch, _, height, width = features.shape
        return backends.runs_gpu_kernels(features) and batch * height * width >= 2**15

    def _blend_logits(self, decoded: Tensor, hidden: Tensor) -> Tensor:
        # W_g * [Q, H]. Joined, the maps are 2C channels more to keep; apart, two halves of the weight are to be laid
        # out each time, both ways. The smaller is chosen, where sizes are no symbols: at 1x64x16x16 on the CPU a 5x5
        # gate takes 1.0 ms with its backward joined and 1.26 ms apart, a 1x1 gate 0.23 and 0.15 ms.
        weight, bias, padding = self.gate.weight, self.gate.bias, self.gate.padding
        if not torch.compiler.is_compiling() and decoded.numel() + hidden.numel() < weight.numel():
            return F.conv2d(torch.cat([decoded, hidden], dim=1), weight, bias, padding=padding)
        decoded_weight, hidden_weight = weight.split(self.hidden_channels, dim=1)
        logits = F.conv2d(decoded, decoded_weight, bias, padding=padding)
        return add_to(logits, F.conv2d(hidden, hidden_weight, padding=padding))
