"""MotionGRU (MotionRNN, CVPR 2021, section 3.2): a recurrent unit that warps features along a learned motion.

The notation is that of `motionrnn_ext.ops`: K = k*k taps, M = 2K motion channels, K row offsets then K column
offsets, in pixels of the map; F is the motion filter (`offset`), D its trend (`trend`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from .. import backends, ops
from ..backends import reference
from ..backends.layouts import memory_format
from ..ops import _arguments as arguments
from .arguments import choice, flag, odd, whole
from .initial_values import Resettable, ZeroConv2d
from .plain import called, check_returned, is_plain, is_plain_conv, keeps_parameters
from .states import check_not_rounded, detached, exportable
from .tensors import add_to, fold_depth, unfold_depth


@exportable
class MotionState(NamedTuple):
    """Motion between time steps: filter F and trend D, (B, M, H, W) float32 (float64 beside float64)."""

    offset: Tensor
    trend: Tensor

    def detach(self) -> MotionState:
        """Return the state cut from the graph, for truncated backpropagation."""
        return detached(self)


class PackedGates(NamedTuple):
    """The gates' weights by what they read: x for u, r, z (and the mask), F for u and r, s(r).F for z."""

    x_weight: Tensor  # (3M, C, g, g), or (3M + K, C, g, g) where the mask's kernel has the gates' size
    x_bias: Tensor  # (3M,) or (3M + K,)
    state_weight: Tensor  # (2M, M, g, g)
    candidate_weight: Tensor  # (M, M, g, g)

    @property
    def has_mask(self) -> bool:
        return self.x_weight.shape[0] > 3 * self.candidate_weight.shape[0]


def _same_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    zero: bool = False,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Conv2d:
    conv, padding = ZeroConv2d if zero else nn.Conv2d, kernel_size // 2
    return conv(in_channels, out_channels, kernel_size, padding=padding, device=device, dtype=dtype)


def _no_motion(x: Tensor, shape: tuple[int, ...]) -> MotionState:
    """Zero motion of that shape for maps x, in the memory format of x."""
    zeros = x.new_zeros(shape, dtype=reference.state_dtype(x.dtype))
    zeros = zeros.contiguous(memory_format=memory_format(x))
    return MotionState(zeros, zeros)


def _check_map(name: str, x: Tensor, channels: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; it should be a torch.Tensor")
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it should be (B, {channels}, H, W)")
    if not x.is_floating_point():
        raise TypeError(f"{name} has dtype {x.dtype}; it should be floating point")


def check_hidden(hidden: object) -> None:
    if isinstance(hidden, Tensor):
        return
    # As in an nn.Sequential, which hands on all that a layer returns.
    is_pair = isinstance(hidden, tuple) and any(isinstance(part, MotionState) for part in hidden)
    pair = ", the first of the pair (x, state) that a MotionGRU returns" if is_pair else ""
    raise TypeError(f"hidden is a {type(hidden).__name__}; it should be a torch.Tensor{pair}")


def _as_motion(owner: nn.Module, name: str, motion: Tensor, x: Tensor, channels: int) -> Tensor:
    """The filter or trend that moves x, of half precision taken up to float32."""
    if not isinstance(motion, Tensor):
        raise TypeError(f"{name} is a {type(motion).__name__}; it should be a torch.Tensor")
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


class OffsetWarp(Resettable):
    """The masked neighbourhood warp with weights of its own: `offset_warp(x, offset, mask, conv.weight)`.

    x (B, C, H, W), offset (B, M, H, W) -> (B, C_out, H, W). The mask logits are the convolution `warp_gate`
    of x; `conv` holds the (C_out, C, k, k) weight that sums over channels and taps. One that is not plain (see
    `layers.plain`) is called on the masked taps laid side by side, (B, C, k*H, k*W), as the official Warp calls it.
    Names and initial values (the mask's weight at 0, with `zero_init`) are the official Warp's.
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
        self.warp_gate = _same_conv(channels, k * k, mask_kernel_size, zero, device, dtype)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "channels" not in state:  # pickled by an older version
            self.channels, self.out_channels = self.conv.in_channels, self.conv.out_channels
            self.kernel_size = self.conv.kernel_size[0]

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        k = self.kernel_size
        _check_map("x", x, self.channels)
        offset = _as_motion(self, "offset", offset, x, 2 * k * k)
        mask = self.mask_logits(x)
        if self.reads_conv():
            return ops.offset_warp(x, offset, mask, self.conv.weight)
        taps = reference.masked_taps(x, offset, mask, k).to(x.dtype).unflatten(2, (k, k))
        batch, channels, _, _, height, width = taps.shape
        side_by_side = taps.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels, height * k, width * k)
        return called(self.conv, "warp.conv", side_by_side, (batch, self.out_channels, height, width))

    def mask_logits(self, x: Tensor) -> Tensor:
        """Return m, (B, K, H, W) in the dtype of x."""
        return called(self.warp_gate, "warp.warp_gate", x, (x.shape[0], self.kernel_size**2, *x.shape[2:]))

    def reads_conv(self) -> bool:
        """Whether the weight of `conv` may be read, and the mask be computed, past this module."""
        return is_plain(self, OffsetWarp) and is_plain_conv(
            self.conv, self.channels, self.out_channels, self.kernel_size
        )


class MotionGRUCell(Resettable):
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

    Motion of half precision is taken up to float32, and returned so. Gates and warp that are not plain (with hooks of
    their own, or replaced, see `layers.plain`) are called, with the same results to rounding, and slower.

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

    # Of cells that were pickled by an older version.
    max_offset: float | None = None
    _first_alpha: float | None = None

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
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        transient, trend = flag("transient", transient), flag("trend", trend)
        if not (transient or trend):
            raise ValueError("transient and trend are both False; one should be True, or no motion is left")
        channels, kernel_size = whole("channels", channels), odd("kernel_size", kernel_size)
        gate_kernel_size = odd("gate_kernel_size", gate_kernel_size)
        motion, zero = 2 * kernel_size**2, flag("zero_init", zero_init)
        self.channels, self.motion_channels, self.kernel_size = channels, motion, kernel_size
        self.alpha = arguments.momentum_of_module(alpha)
        # The first value of an alpha that is learned, for `reset_parameters`.
        if not isinstance(self.alpha, Tensor):
            self._first_alpha = self.alpha
        elif not self.alpha.is_meta:
            self._first_alpha = self.alpha.item()
        self.max_offset = None if max_offset is None else arguments.bound("max_offset", max_offset)
        self.transient, self.trend = transient, trend
        self.update = _same_conv(channels + motion, motion, gate_kernel_size, zero, device, dtype)
        self.reset = _same_conv(channels + motion, motion, gate_kernel_size, zero, device, dtype)
        self.output = _same_conv(channels + motion, motion, gate_kernel_size, zero, device, dtype)
        self.warp = OffsetWarp(
            channels,
            out_channels,
            kernel_size,
            mask_kernel_size=mask_kernel_size,
            zero_init=zero,
            device=device,
            dtype=dtype,
        )

    def extra_repr(self) -> str:
        alpha = "learned" if isinstance(self.alpha, Tensor) else self.alpha
        return f"alpha={alpha}, max_offset={self.max_offset}, transient={self.transient}, trend={self.trend}"

    def reset_parameters(self) -> None:
        """As of all modules; a learned alpha begins at the value that it was given with.

        Raises:
            TypeError: alpha was given without a value, on the device "meta".
        """
        super().reset_parameters()
        if isinstance(self.alpha, nn.Parameter):
            if self._first_alpha is None:
                raise TypeError(
                    "alpha is a Parameter that was made on the device meta; it should be made with its value"
                )
            nn.init.constant_(self.alpha, self._first_alpha)

    def pack(self) -> PackedGates | None:
        """The gates' weights as `forward` uses them; None where one of the gates is to be called."""
        channels, motion = self.channels, self.motion_channels
        convolutions = [self.update, self.reset, self.output]
        if not all(is_plain_conv(gate, channels + motion, motion) for gate in convolutions):
            return None
        size = self.update.kernel_size
        if not self.reset.kernel_size == self.output.kernel_size == size:
            return None
        if self._reads_warp():
            mask = self.warp.warp_gate
            # One convolution of 7K channels takes 0.7 to 0.8 of the time of 6K and K apart (CPU, B8 C16, 16x16,
            # 32x32).
            if is_plain_conv(mask, channels, motion // 2) and mask.kernel_size == size:
                convolutions.append(mask)
        weights = [conv.weight for conv in convolutions]
        biases = [cast(Tensor, conv.bias) for conv in convolutions]
        if len({parameter.dtype for parameter in (*weights, *biases)}) > 1:
            return None
        parts = [weight.split((channels, motion), dim=1) for weight in weights[:3]]
        (update_x, update_f), (reset_x, reset_f), (output_x, output_f) = parts
        of_x = [update_x, reset_x, output_x, *weights[3:]]
        return PackedGates(torch.cat(of_x), torch.cat(biases), torch.cat([update_f, reset_f]), output_f)

    def pack_ahead(self) -> PackedGates | None:
        """`pack` for many steps at once; None where the next step might find other weights than this one."""
        convolutions = (self.update, self.reset, self.output, getattr(self.warp, "warp_gate", None))
        fixed = is_plain(self, MotionGRUCell) and all(c is None or keeps_parameters(c) for c in convolutions)
        return self.pack() if fixed else None

    def initial_state(self, x: Tensor) -> MotionState:
        """Zero motion for features x (B, C, H, W)."""
        _check_map("x", x, self.channels)
        return _no_motion(x, (x.shape[0], self.motion_channels, *x.shape[2:]))

    def forward(
        self, x: Tensor, offset: Tensor, trend: Tensor, packed: PackedGates | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        _check_map("x", x, self.channels)
        offset = _as_motion(self, "offset", offset, x, self.motion_channels)
        trend = _as_motion(self, "trend", trend, x, self.motion_channels)
        packed = self.pack() if packed is None else packed
        if packed is None:
            update, candidate, mask = *self._called_gates(x, offset), None
        elif packed.has_mask and self.transient and self.trend and backends.runs_cpu_kernels(x):
            offset, trend, mask = ops.motion_gates(x, offset, trend, *packed, self.alpha, self.max_offset)
            return ops.offset_warp(x, offset, mask, self.warp.conv.weight), offset, trend
        else:
            update, candidate, mask = self._read_gates(x, offset, packed)
        if mask is None and self._reads_warp():
            mask = self.warp.mask_logits(x)
        if mask is None:
            offset, trend = self._moved(update, candidate, offset, trend)
            out = self.warp(x, offset)
            check_returned("warp", out, (x.shape[0], None, *x.shape[2:]))
            return out, offset, trend
        weight = self.warp.conv.weight
        if self.transient and self.trend:
            numbers = self.alpha, self.max_offset
            return ops.motion_warp(x, update, candidate, offset, trend, mask, weight, *numbers)
        offset, trend = self._moved(update, candidate, offset, trend)
        return ops.offset_warp(x, offset, mask, weight), offset, trend

    def _reads_warp(self) -> bool:
        return isinstance(self.warp, OffsetWarp) and self.warp.reads_conv()

    def _read_gates(
        self, x: Tensor, offset: Tensor, packed: PackedGates
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The logits of u, z and, where they are packed with them, of the mask."""
        motion, padding = self.motion_channels, packed.x_weight.shape[-1] // 2
        from_x = F.conv2d(x, packed.x_weight, packed.x_bias, padding=padding)  # (B, 3M [+ K], H, W)
        taps = (motion // 2,) if packed.has_mask else ()
        gates_x, candidate_x, *rest = from_x.split((2 * motion, motion, *taps), dim=1)
        mask = rest[0].clone() if rest else None  # the warp keeps it; a view would keep all of from_x

        # Added to the fresh convolution, never to from_x: its views are still to be read.
        gates = F.conv2d(offset.to(packed.state_weight.dtype), packed.state_weight, padding=padding)
        gates = add_to(gates, gates_x)
        update, reset = gates.split(motion, dim=1)  # (B, M, H, W) each
        candidate = F.conv2d(ops.motion_reset(reset, offset), packed.candidate_weight, padding=padding)
        return update, add_to(candidate, candidate_x), mask

    def _called_gates(self, x: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of u and z by the modules themselves."""
        seen = torch.cat([x, offset.to(x.dtype)], dim=1)
        update = called(self.update, "update", seen, offset.shape)
        reset = called(self.reset, "reset", seen, offset.shape)
        kept = torch.cat([x, ops.motion_reset(reset, offset).to(x.dtype)], dim=1)
        return update, called(self.output, "output", kept, offset.shape)

    def _moved(
        self, update: Tensor, candidate: Tensor, offset: Tensor, trend: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.transient and self.trend:
            return ops.motion_update(update, candidate, offset, trend, self.alpha, self.max_offset)
        gate = torch.sigmoid(update.to(offset.dtype))
        target = torch.tanh(candidate.to(offset.dtype))
        limit = arguments.bound("max_offset", self.max_offset)
        if self.transient:
            return reference.bounded(offset + gate * (target - offset), limit), trend
        alpha = arguments.momentum("MotionGRUCell", self.alpha, update)
        trend = trend + alpha * (gate * target - trend)
        return reference.bounded(trend, limit), trend


class MotionGRU(Resettable):
    """The MotionGRU as MotionRNN puts it between two layers: encoder, cell, decoder, output gate.

        E = Enc(H) at half size and C/4 channels,   Q = Dec(cell(E)),   g = s(W_g * [Q, H])
        X = g.H + (1 - g).Q   with gate_side="hidden" (the paper)
        X = g.Q + (1 - g).H   with gate_side="decoded" (the official code)

    `(hidden, state=None) -> (x, state)`: hidden and x (B, C, h, w) with h and w even, state a `MotionState`
    at (h/2, w/2), zero when not given. With `depth` maps are (B, C, D, h, w): slices are moved each by itself with
    the same weights, and state is (B*D, M, h/2, w/2). Sequences are `MotionGRULayer`'s. Enc is a convolution of
    stride 2 and `encoder_kernel_size`, Dec a transposed 4x4 one, W_g one of `blend_kernel_size`; u, r and z have
    `gate_kernel_size`, the mask has `mask_kernel_size`; alpha and max_offset are `MotionGRUCell`'s. The defaults are
    the paper's form; `zero_init` starts the weights of gates and mask at 0, as the official code does.

    Raises:
        ValueError: fewer than 4 channels; an even kernel (but Enc's); an unknown gate_side; odd h or w; alpha or
            max_offset as for `MotionGRUCell`.
        TypeError: an argument of another type.
    """

    depth = False  # of layers that were pickled by an older version

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
        depth: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden_channels = whole("hidden_channels", hidden_channels)
        encoded = hidden_channels // 4
        if encoded < 1:
            raise ValueError(
                f"hidden_channels is {hidden_channels}; it should be at least 4, a quarter is encoded"
            )
        encoder_kernel_size = whole("encoder_kernel_size", encoder_kernel_size)
        blend_kernel_size = odd("blend_kernel_size", blend_kernel_size)
        kernel_size = odd("kernel_size", kernel_size)
        self.gate_side = choice("gate_side", gate_side, ("hidden", "decoded"))
        self.hidden_channels, self.depth = hidden_channels, flag("depth", depth)
        self.motion_channels = 2 * kernel_size**2
        padding = (encoder_kernel_size - 1) // 2  # halves an even map for odd and even kernels alike
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
            zero_init=zero_init,
            **made,
        )
        self.decoder = nn.ConvTranspose2d(encoded, hidden_channels, 4, stride=2, padding=1, **made)
        self.gate = _same_conv(2 * hidden_channels, hidden_channels, blend_kernel_size, **made)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "motion_channels" not in state:  # pickled by an older version
            self.motion_channels = self.cell.motion_channels

    def extra_repr(self) -> str:
        return f"gate_side={self.gate_side!r}" + ", depth=True" * self.depth

    def pack_ahead(self) -> PackedGates | None:
        """`MotionGRUCell.pack_ahead` of the cell; None where that is a user's module."""
        return self.cell.pack_ahead() if isinstance(self.cell, MotionGRUCell) else None

    def initial_state(self, hidden: Tensor) -> MotionState:
        """Zero motion for maps `hidden` of the call's shape: that of a call without a state."""
        maps = self._checked(hidden)
        return _no_motion(maps, (maps.shape[0], self.motion_channels, maps.shape[2] // 2, maps.shape[3] // 2))

    def forward(
        self, hidden: Tensor, state: MotionState | None = None, packed: PackedGates | None = None
    ) -> tuple[Tensor, MotionState]:
        maps = self._checked(hidden)
        batch, _, height, width = maps.shape
        features = self.encoder(maps)  # (B, C/4, h/2, w/2)
        check_returned("encoder", features, (batch, None, height // 2, width // 2))
        outside = memory_format(features)
        inside = torch.channels_last if self._is_large(features) else outside
        features = features.contiguous(memory_format=inside)
        offset, trend = self._state(features, state)
        ahead = () if packed is None else (packed,)  # left out for the sake of a `cell` that is the user's
        moved = self.cell(features, offset, trend, *ahead)
        if not isinstance(moved, (tuple, list)) or len(moved) != 3:
            found = (
                f"{len(moved)} entries" if isinstance(moved, (tuple, list)) else f"a {type(moved).__name__}"
            )
            raise TypeError(f"cell returns {found}; it should return (out, offset, trend)")
        warped, offset, trend = moved
        check_returned("cell", warped, (batch, None, height // 2, width // 2))
        decoded = self.decoder(warped.contiguous(memory_format=outside))  # (B, C, h, w)
        check_returned("decoder", decoded, maps.shape)
        logits = self._blend_logits(decoded, maps)
        first, second = (maps, decoded) if self.gate_side == "hidden" else (decoded, maps)
        x = ops.gated_blend(logits, first, second)
        return unfold_depth(x, hidden), MotionState(offset, trend)

    def _checked(self, hidden: Tensor) -> Tensor:
        """The maps to move, (B, C, h, w), with (B*D, C, h, w) the slices of a depth axis."""
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
        if state is None:
            return _no_motion(features, (features.shape[0], self.motion_channels, *features.shape[2:]))
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            found = (
                f"{len(state)} entries" if isinstance(state, (tuple, list)) else f"a {type(state).__name__}"
            )
            raise TypeError(f"state is {found}; it should be a MotionState, or a pair (offset, trend)")
        for name, motion in zip(MotionState._fields, state):
            check_not_rounded(self, name, motion)
        return MotionState(*state)

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
        if not is_plain_conv(self.gate, 2 * self.hidden_channels, self.hidden_channels):
            return called(self.gate, "gate", torch.cat([decoded, hidden], dim=1), hidden.shape)
        weight, bias, padding = self.gate.weight, self.gate.bias, self.gate.padding
        if not torch.compiler.is_compiling() and decoded.numel() + hidden.numel() < weight.numel():
            return F.conv2d(torch.cat([decoded, hidden], dim=1), weight, bias, padding=padding)
        decoded_weight, hidden_weight = weight.split(self.hidden_channels, dim=1)
        logits = F.conv2d(decoded, decoded_weight, bias, padding=padding)
        return add_to(logits, F.conv2d(hidden, hidden_weight, padding=padding))
