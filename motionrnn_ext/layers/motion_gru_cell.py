"""One step of the MotionGRU: the gates with their weights packed, the motion, the warp."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from .. import ops
from ..backends import reference
from ..ops import _arguments as arguments
from . import gates_rule
from .arguments import flag, odd, whole
from .initial_values import Resettable, same_conv, sets
from .motion import MotionState, as_motion, check_map, zero_motion
from .plain import call, check_returned, is_plain, is_plain_conv, keeps_parameters, may_be_plain
from .tensors import add_to
from .warp import OffsetWarp


class PackedGates(NamedTuple):
    """The weights of the gates, grouped by the input that they are applied to.

    x is read by u, r, z (and the mask), F by u and r, and s(r).F by z. g is the kernel size of the gates.
    """

    x_weight: Tensor  # (3M, C, g, g), or (3M + K, C, g, g) if the mask's kernel has the size of the gates'
    x_bias: Tensor  # (3M,) or (3M + K,)
    state_weight: Tensor  # (2M, M, g, g)
    candidate_weight: Tensor  # (M, M, g, g)

    @property
    def has_mask(self) -> bool:
        """Return whether the mask's weights are packed with those of the gates."""
        return self.x_weight.shape[0] > 3 * self.candidate_weight.shape[0]


def packed_gates(weights: list[Tensor], biases: list[Tensor]) -> PackedGates:
    """Return the packed weights of u, r and z, (M, C + M, g, g) each, and of the mask, (K, C, g, g), if it is given."""
    motion = weights[0].shape[0]
    parts = [weight.split((weight.shape[1] - motion, motion), dim=1) for weight in weights[:3]]
    (update_x, update_f), (reset_x, reset_f), (output_x, output_f) = parts
    of_x = [update_x, reset_x, output_x, *weights[3:]]
    return PackedGates(torch.cat(of_x), torch.cat(biases), torch.cat([update_f, reset_f]), output_f)


@may_be_plain
class MotionGRUCell(Resettable):
    """One MotionGRU step on encoded features: `(x, offset, trend) -> (out, offset, trend)`.

        u = s(W_u * [x, F]),  r = s(W_r * [x, F]),  z = tanh(W_z * [x, r.F])
        F' = u.z + (1 - u).F,   D' = D + alpha (F - D),   F_t = F' + D',   out = warp(x, F_t)

    Here s is the logistic function, * a convolution and . the product of elements. F is the motion filter (`offset`)
    and D its trend (`trend`), M = 2*k*k channels each: K = k*k row offsets, then K column offsets, in pixels of the
    map. The cell is a drop-in replacement for the official `MotionGRU(x_t, pre_offset, mean)`: it has the same call,
    state-dict keys, defaults and initial values.

    F_t is kept within `max_offset`, so that a stream may go on for ever: F grows by a factor of up to 1.7 a step, and
    float32 would end at inf and then nan. Far beyond the map every tap reads zero, so a bound there changes no `out`.

    With `trend_gate` = c the update gate weighs the trend, F_t = F' + c u.D' = (1 - u).F + u.(z + c D'). This form is
    the package's own, not the paper's. |F| and |D| then stay within 1 / (1 - c) if they begin there, whatever the gates
    do. With c = 1 F no longer grows by a factor, but a z of one sign adds to it in every step, in the long run
    u z alpha / (alpha + u (1 - alpha)). docs/pytorch.md, "Stable motion", derives this.

    Gates and a warp that are not plain (with hooks of their own, or replaced, see `motionrnn_ext.layers.plain`) are
    called. The results are the same up to rounding, and the step is slower.

    Backward keeps, besides inputs and parameters, 9K channels of the map: the logits of u, r and z and F_t (2K each),
    and the logits of the mask (K); 20.25 MiB at 16x16x64x64 in float32. The ops `motion_gates` and `offset_warp`
    compute the whole step. The reference, the ablations, and a mask whose kernel has
    another size than the gates' keep r.F as well, 24.75 MiB. There one convolution computes all that depends on x, and
    its parts are added in place to the fresh convolutions of the state.

    Args:
        channels: C, the channels of x.
        kernel_size: k, the side of the warp's neighbourhood, odd.
        alpha: the trend's momentum step, in [0, 1]. A `Parameter` of one element is learned; PyTorch's own operations
            then compute the step instead of the kernels, except under no_grad.
        max_offset: the largest absolute value of F_t, in pixels of the map. None sets no bound, as in the official
            program.
        gate_kernel_size: kernel size of W_u, W_r and W_z, odd.
        mask_kernel_size: kernel size of the warp's mask, odd.
        out_channels: channels of `out`; None for C.
        transient: False is an ablation: D_t = D + alpha (u.z - D) and F_t = D_t. The paper's formula for it is not
            known; this one is the package's own.
        trend: False is an ablation: D is left alone and F_t = F'. This formula is the package's own, too.
        trend_gate: c in [0, 1] for the trend gated by u, F_t = F' + c u.D'; None for the paper's F_t = F' + D'. It has
            no effect with transient=False or trend=False. PyTorch's own operations then compute the motion, as in the
            ablations, by which a training step takes 1.02 to 1.08 times as long on a CPU (docs/pytorch.md).
        zero_init: whether the weights of gates and mask start at 0, as in the official program. False keeps PyTorch's
            initial values.
        device: device of the parameters, as in `nn.Conv2d`.
        dtype: dtype of the parameters, as in `nn.Conv2d`.

    Raises:
        ValueError: a kernel size is even, both ablations are chosen, alpha or trend_gate is outside of [0, 1], or
            max_offset is not above 0.
        TypeError: an argument has another type, or alpha asks for a gradient although trend=False leaves it out.

    Examples:
        >>> cell = MotionGRUCell(16)
        >>> x = torch.rand(2, 16, 32, 32)
        >>> out, offset, trend = cell(x, *cell.initial_state(x))
    """

    # Defaults for cells that were pickled by an older version.
    max_offset: float | None = None
    trend_gate: float | None = None
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
        trend_gate: float | None = None,
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
        given = arguments.momentum_of_module(alpha)
        arguments.check_read(given, trend, "trend=False")
        # The first value of a learned alpha, for `reset_parameters`, is read before alpha is registered: under
        # accelerate's init_empty_weights a registered parameter is moved to the device "meta" and loses its value.
        if not isinstance(given, Tensor):
            self._first_alpha = given
        elif not given.is_meta:
            self._first_alpha = given.item()
        self.alpha = given
        self.max_offset = None if max_offset is None else arguments.bound("max_offset", max_offset)
        self.transient, self.trend = transient, trend
        self.trend_gate = None if trend_gate is None else arguments.unit("trend_gate", trend_gate)
        self.update = same_conv(channels + motion, motion, gate_kernel_size, zero, device, dtype)
        self.reset = same_conv(channels + motion, motion, gate_kernel_size, zero, device, dtype)
        self.output = same_conv(channels + motion, motion, gate_kernel_size, zero, device, dtype)
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
        numbers = f"alpha={alpha}, max_offset={self.max_offset}, trend_gate={self.trend_gate}"
        return f"{numbers}, transient={self.transient}, trend={self.trend}"

    @property
    def moves_as_in_the_paper(self) -> bool:
        """Return whether F_t = F' + D', which the kernels compute."""
        return self.transient and self.trend and self.trend_gate is None

    @sets("alpha")
    def reset_parameters(self) -> None:
        """Give all parameters new initial values; a learned alpha gets the value that it was given with.

        Raises:
            TypeError: alpha was given on the device "meta", without a value.
        """
        super().reset_parameters()
        if isinstance(self.alpha, nn.Parameter):
            if self._first_alpha is None:
                raise TypeError(
                    "alpha is a Parameter that was made on the device meta; it should be made with its value"
                )
            nn.init.constant_(self.alpha, self._first_alpha)

    def pack(self) -> PackedGates | None:
        """Return the gates' weights as `forward` uses them, or None if a gate has to be called as a module."""
        channels, motion = self.channels, self.motion_channels
        convolutions = [self.update, self.reset, self.output]
        if not all(is_plain_conv(gate, channels + motion, motion) for gate in convolutions):
            return None
        size = self.update.kernel_size
        if not self.reset.kernel_size == self.output.kernel_size == size:
            return None
        if self._may_read_warp():
            mask = self.warp.warp_gate
            # One convolution of 7K channels takes 0.7 to 0.8 of the time of two, of 6K and of K channels (CPU, B8 C16,
            # 16x16 and 32x32).
            if is_plain_conv(mask, channels, motion // 2) and mask.kernel_size == size:
                convolutions.append(mask)
        weights = [conv.weight for conv in convolutions]
        biases = [cast(Tensor, conv.bias) for conv in convolutions]
        if len({parameter.dtype for parameter in (*weights, *biases)}) > 1:
            return None
        return packed_gates(weights, biases)

    def pack_ahead(self) -> PackedGates | None:
        """Return `pack()` for many steps at once, or None if the next step might find other weights than this one."""
        convolutions = (self.update, self.reset, self.output, getattr(self.warp, "warp_gate", None))
        fixed = is_plain(self, MotionGRUCell) and all(c is None or keeps_parameters(c) for c in convolutions)
        return self.pack() if fixed else None

    def initial_state(self, x: Tensor) -> MotionState:
        """Return zero motion for features x (B, C, H, W)."""
        check_map("x", x, self.channels)
        return zero_motion(x, (x.shape[0], self.motion_channels, *x.shape[2:]))

    def forward(
        self,
        x: Tensor,
        offset: Tensor | None = None,
        trend: Tensor | None = None,
        packed: PackedGates | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step.

        Args:
            x: encoded features, (B, C, H, W).
            offset: F of the previous step, (B, M, H, W), in pixels of the map; half precision becomes float32. None,
                and None for the trend, is zero motion.
            trend: D of the previous step, like `offset`.
            packed: what `pack_ahead` returned, for a caller that takes many steps with the same weights.

        Returns:
            The warped features (B, out_channels, H, W), and the offset F_t and trend of this step, (B, M, H, W)
            float32, or float64 beside float64 features.

        Raises:
            ValueError: x, offset or trend has another shape, or they are on different devices.
            TypeError: x, offset or trend is no tensor, or has another dtype.
        """
        check_map("x", x, self.channels)
        if offset is None and trend is None:
            offset, trend = self.initial_state(x)
        offset = as_motion(self, "offset", cast(Tensor, offset), x, self.motion_channels)
        trend = as_motion(self, "trend", cast(Tensor, trend), x, self.motion_channels)
        packed = self.pack() if packed is None else packed
        if packed is None:
            update, candidate, mask = *self._gates_of_modules(x, offset), None
        elif packed.has_mask and self.moves_as_in_the_paper and gates_rule.takes_kernels(x):
            offset, trend, mask = ops.motion_gates(x, offset, trend, *packed, self.alpha, self.max_offset)
            return ops.offset_warp(x, offset, mask, self.warp.conv.weight), offset, trend
        else:
            update, candidate, mask = self._gates_of_weights(x, offset, packed)
        if mask is None and self._may_read_warp():
            mask = self.warp.mask_logits(x)
        if mask is None:
            offset, trend = self._move(update, candidate, offset, trend)
            out = self.warp(x, offset)
            check_returned("warp", out, (x.shape[0], None, *x.shape[2:]))
            return out, offset, trend
        weight = self.warp.conv.weight
        if self.moves_as_in_the_paper:
            numbers = self.alpha, self.max_offset
            return ops.motion_warp(x, update, candidate, offset, trend, mask, weight, *numbers)
        offset, trend = self._move(update, candidate, offset, trend)
        return ops.offset_warp(x, offset, mask, weight), offset, trend

    def _may_read_warp(self) -> bool:
        """Return whether the warp's weights may be read instead of calling it."""
        return isinstance(self.warp, OffsetWarp) and self.warp.reads_conv()

    def _gates_of_weights(
        self, x: Tensor, offset: Tensor, packed: PackedGates
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the logits of u and z and, if its weights are packed with theirs, those of the mask."""
        motion, padding = self.motion_channels, packed.x_weight.shape[-1] // 2
        from_x = F.conv2d(x, packed.x_weight, packed.x_bias, padding=padding)  # (B, 3M [+ K], H, W)
        taps = (motion // 2,) if packed.has_mask else ()
        gates_x, candidate_x, *rest = from_x.split((2 * motion, motion, *taps), dim=1)
        # A copy, because backward keeps the mask, and a view would keep all of from_x.
        mask = rest[0].clone() if rest else None

        # Sums are taken in the fresh convolution, never in from_x, whose views are still to be read.
        gates = F.conv2d(offset.to(packed.state_weight.dtype), packed.state_weight, padding=padding)
        gates = add_to(gates, gates_x)
        update, reset = gates.split(motion, dim=1)  # (B, M, H, W) each
        candidate = F.conv2d(ops.motion_reset(reset, offset), packed.candidate_weight, padding=padding)
        return update, add_to(candidate, candidate_x), mask

    def _gates_of_modules(self, x: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of u and z, computed by calling the gates as modules."""
        seen = torch.cat([x, offset.to(x.dtype)], dim=1)
        update = call(self.update, "update", seen, offset.shape)
        reset = call(self.reset, "reset", seen, offset.shape)
        kept = torch.cat([x, ops.motion_reset(reset, offset).to(x.dtype)], dim=1)
        return update, call(self.output, "output", kept, offset.shape)

    def _move(
        self, update: Tensor, candidate: Tensor, offset: Tensor, trend: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return F_t and the new trend, from the logits of u and z and the motion of the previous step."""
        if self.moves_as_in_the_paper:
            return ops.motion_update(update, candidate, offset, trend, self.alpha, self.max_offset)
        gate = torch.sigmoid(update.to(offset.dtype))
        target = torch.tanh(candidate.to(offset.dtype))
        limit = arguments.bound("max_offset", self.max_offset)
        if self.trend:
            alpha = arguments.momentum("MotionGRUCell", self.alpha, update)
            trend = trend + alpha * ((offset if self.transient else gate * target) - trend)
        if not self.transient:
            return reference.bounded(trend, limit), trend
        if self.trend_gate is not None and self.trend:
            target = target + self.trend_gate * trend
        return reference.bounded(offset + gate * (target - offset), limit), trend
