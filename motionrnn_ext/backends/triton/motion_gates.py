"""The MotionGRU's gates as ops: their convolutions and the motion that they make, by the kernels of tap_gates.py, or of
pixel_gates.py where the convolutions are 1x1.

The convolutions' weights can be packed once for many steps. PyTorch's convolution makes their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.library import triton_op

from ..layouts import format_after
from ..registration.wanted import Wanted
from . import NAMESPACE
from .images import Image, needs_64_bits
from .launch import PRECISION, Block, in_blocks, kernel_op, launch
from .offset_warp import channel_block
from .offset_warp_finish import Sums
from .pixel_gates import pixel_gates_backward_kernel, pixel_gates_kernel
from .tap_gates import (
    candidate_kernel,
    gates_kernel,
    inputs_backward_kernel,
    reset_backward_kernel,
    update_backward_kernel,
)

# The most columns that a program of pixel_gates.py has of one gate.
MOST_COLUMNS = 64
# The kernels with blocks of their own.
BLOCKS_OF = {
    candidate_kernel: "candidate",
    reset_backward_kernel: "candidate",
    pixel_gates_kernel: "pixel_gates",
    pixel_gates_backward_kernel: "pixel_gates",
}


class Sizes(NamedTuple):
    """The sizes of gates: channels of x, of the motion and of the mask, and the convolutions' kernel size."""

    channels: int
    motion: int
    masks: int
    g: int

    @classmethod
    def of(cls, x_weight: Tensor, candidate_weight: Tensor) -> Sizes:
        """Return the sizes that two of the weights tell."""
        rows, channels, g, _ = x_weight.shape
        motion = candidate_weight.shape[0]
        return cls(channels, motion, rows - 3 * motion, g)

    @property
    def rows(self) -> int:
        """Return the channels of all logits, [u, r, z, m]."""
        return 3 * self.motion + self.masks

    @property
    def is_of_pixels(self) -> bool:
        """Return whether the kernels of pixel_gates.py are in use."""
        return self.g == 1 and max(self.motion, self.masks) <= MOST_COLUMNS

    @property
    def constants(self) -> dict[str, int]:
        """Return what all kernels of tap_gates.py with a convolution have."""
        return {"M": self.motion, "G": self.g, "CHANNELS": channel_block(self.motion, 32)}


def _new_map(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Return an empty map of so many channels, in the memory format that follows x."""
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=format_after(x))


def _new_rows(x: Tensor, channels: int) -> Tensor:
    """Return an empty map with channels last, in which a pixel has whole quads."""
    shape = (x.shape[0], (channels + 3) // 4 * 4, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _launch(
    kernel: Any, columns: int, x: Tensor, images: Sequence[Image | Tensor], *arguments: Any, size: int, more: int = 0,
    **constants: Any,
) -> None:  # fmt: skip
    """Launch a kernel over all pixels of x, and over its columns in blocks of `size`, with its operands as `images`.

    more: the number of further programs.
    """
    batch, channels, height, width = x.shape
    pixels = batch * height * width

    def in_block(block: Block) -> None:
        launch(
            kernel, triton.cdiv(pixels, block.size) * columns + more, *arguments[0], *arguments[1],
            height, width, pixels, *arguments[2:], PIXELS=block.size, COLUMNS=size, PRECISION=PRECISION,
            WIDE=needs_64_bits(*images), **constants, **block.options,
        )  # fmt: skip

    in_blocks(BLOCKS_OF.get(kernel, "motion_gates"), channels, x, pixels, in_block, kernel.__name__)


# ---- The weights


def motion_gates_pack(
    x_weight: Tensor, x_bias: Tensor, state_weight: Tensor, candidate_weight: Tensor, warp_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weights for forward and for backward, as kernels read them in whole vectors: tap, channel, column.

    Both are empty where the kernels read the weights as they are, which that of the warp always is.
    """
    weights = [x_weight, state_weight, candidate_weight]
    if Sizes.of(x_weight, candidate_weight).g == 1:
        weights = []
    parts = [[packed_taps(w.transpose(0, 1)) for w in weights], [packed_taps(w) for w in weights]]
    empty = x_weight.new_empty(0)
    forward, backward = (torch.cat([*part, empty]) for part in parts)
    return forward, backward


def packed_taps(weight: Tensor) -> Tensor:
    """Return a weight (channels, columns, G, G) in the order of its taps, with rows of whole 16 columns."""
    taps = weight.permute(2, 3, 0, 1)
    return F.pad(taps, (0, -taps.shape[-1] % 16)).flatten()


def packed_size(channels: int, columns: int, g: int) -> int:
    """Return the number of elements of a weight that `packed_taps` has packed."""
    return channels * (columns + -columns % 16) * g * g


# It launches no kernel, so that it is no opaque op in the interpreter either.
triton_op(f"{NAMESPACE}::motion_gates_pack", motion_gates_pack, mutates_args={})


def _as_read(
    weights: tuple[Tensor, ...], packed: Tensor | None, of_backward: bool
) -> tuple[list[Tensor], bool]:
    """Return the three weights as a kernel reads them, and whether they are packed."""
    if packed is None or packed.numel() == 0:
        return [w.contiguous() for w in weights], False
    sizes = []
    for w in weights:
        out, channels, g, _ = w.shape
        rows, columns = (out, channels) if of_backward else (channels, out)
        sizes.append(packed_size(rows, columns, g))
    return list(packed.split(sizes)), True


# ---- Forward


def new_maps(
    x: Tensor, sizes: Sizes, of_motion: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return empty maps for F_t and D', of dtype `of_motion`, and for the logits m, u, r and z."""
    new_offset, new_trend = (_new_map(x, sizes.motion, of_motion) for _ in range(2))
    mask = _new_map(x, sizes.masks, x.dtype)
    update, reset, candidate = (_new_map(x, sizes.motion, x.dtype) for _ in range(3))
    return new_offset, new_trend, mask, update, reset, candidate


def launch_forward(
    x: Tensor,
    offset: Tensor,
    trend: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    bias: Tensor,
    packed: Tensor | None,
    alpha: float,
    max_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    sizes = Sizes.of(weights[0], weights[2])
    made = new_maps(x, sizes, offset.dtype)
    new_offset, new_trend, mask, update, reset, candidate = made
    if new_offset.numel() == 0 and mask.numel() == 0:
        return made
    images = [Image.of(t) for t in (x, offset, trend, mask, update)]
    x_image, offset_image, trend_image, mask_image, map_image = images
    (x_weight, state_weight, candidate_weight), is_packed = _as_read(weights, packed, False)
    bias = bias.contiguous()
    of_offset = {"MOTION_PIXEL": map_image.pixel, "OFFSET_PIXEL": offset_image.pixel}
    of_x = {
        "C": sizes.channels,
        "MASKS": sizes.masks,
        "X_PIXEL": x_image.pixel,
        "MASK_PIXEL": mask_image.pixel,
    }
    if sizes.is_of_pixels:
        inputs = (*(image.tensor for image in images[:3]), x_weight, bias, state_weight, candidate_weight)
        _launch(
            pixel_gates_kernel, 1, x, images, (*inputs, *made), (x_image.batch, offset_image.batch, trend_image.batch),
            alpha, max_offset, size=channel_block(sizes.motion, MOST_COLUMNS), M=sizes.motion,
            MASK_COLUMNS=channel_block(sizes.masks, MOST_COLUMNS), CHANNELS=channel_block(sizes.channels, 32),
            TREND_PIXEL=trend_image.pixel, **of_offset, **of_x,
        )  # fmt: skip
        return made
    # z without the share of s(r) F, and s(r) F.
    candidate_x, reset_offset = (_new_map(x, sizes.motion, x.dtype) for _ in range(2))
    columns = channel_block(sizes.rows, 64)
    outputs = (update, reset, candidate_x, mask, reset_offset)
    _launch(
        gates_kernel, triton.cdiv(sizes.rows, columns), x, images,
        (x_image.tensor, offset_image.tensor, x_weight, bias, state_weight, *outputs),
        (x_image.batch, offset_image.batch),
        size=columns, X_CHANNELS=channel_block(sizes.channels, 32), PACKED=is_packed, **sizes.constants, **of_offset,
        **of_x,
    )  # fmt: skip
    columns = channel_block(sizes.motion, 32)
    states = (update, candidate_x, offset_image.tensor, trend_image.tensor, candidate, new_offset, new_trend)
    _launch(
        candidate_kernel, triton.cdiv(sizes.motion, columns), x, images,
        (reset_offset, candidate_weight, *states), (offset_image.batch, trend_image.batch), alpha, max_offset,
        size=columns, TREND_PIXEL=trend_image.pixel, PACKED=is_packed, **sizes.constants, **of_offset,
    )  # fmt: skip
    return made


@kernel_op
def motion_gates(
    x: Tensor,
    offset: Tensor,
    trend: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    state_weight: Tensor,
    candidate_weight: Tensor,
    alpha: float,
    max_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = (x_weight, state_weight, candidate_weight)
    return launch_forward(x, offset, trend, weights, x_bias, None, alpha, max_offset)


# ---- Backward


class Given(NamedTuple):
    """Backward reads these beside the weights: the gradients of F_t, D' and the mask, and what forward has kept."""

    grad_offset: Tensor
    grad_trend: Tensor
    grad_mask: Tensor
    offset: Tensor
    update: Tensor
    reset: Tensor
    candidate: Tensor
    new_offset: Tensor


class Made(NamedTuple):
    """The gradients of x, F and D; those of all logits, and s(r) F, of which the weights' gradients are made."""

    x: Tensor
    offset: Tensor
    trend: Tensor
    logits: Tensor
    reset_offset: Tensor


class _OfWarp(NamedTuple):
    """The arguments of kernels for a warp's gradients; those without a warp (`is_there` is false) are not read.

    offset: the gradient of F_t. x: the sums of that of x. weight_parts: of `weight`, which `programs` programs finish.
    """

    offset: Tensor
    x: Tensor
    weight_parts: Tensor
    weight: Tensor
    parts: int = 0
    log_addends: int = 0
    programs: int = 0
    constants: dict[str, int] = dict.fromkeys(("C", "C_OUT", "K", "WEIGHT_PARTS", "WEIGHTS"), 1)
    is_deterministic: bool = False
    is_there: bool = False

    @classmethod
    def of(cls, warp: Sums | None, x: Tensor, grad_offset: Tensor) -> _OfWarp:
        """Return the arguments; `grad_offset` stands for tensors that are not there."""
        if warp is None:
            return cls(grad_offset, grad_offset, grad_offset, grad_offset)
        into_offset = warp.offset.contiguous(memory_format=format_after(x))
        return cls(
            into_offset, warp.x, warp.weight_parts, warp.weight, warp.weight_parts.shape[0], warp.log_addends,
            warp.weight_programs, warp.constants, warp.is_deterministic, True,
        )  # fmt: skip


def launch_backward(
    x: Tensor,
    given: Given,
    weights: tuple[Tensor, Tensor, Tensor],
    packed: Tensor | None,
    alpha: float,
    max_offset: float,
    warp: Sums | None = None,
) -> Made:
    """Return the gradients; those of F_t and x by a warp are added, and that of its weight is finished."""
    sizes = Sizes.of(weights[0], weights[2])
    into_trend, by_inputs = (_new_map(x, sizes.motion, given.offset.dtype) for _ in range(2))
    grad_x = _new_map(x, sizes.channels, x.dtype)
    logits, reset_offset = _new_rows(x, sizes.rows), _new_rows(x, sizes.motion)
    made = Made(
        grad_x,
        by_inputs,
        into_trend,
        logits.narrow(1, 0, sizes.rows),
        reset_offset.narrow(1, 0, sizes.motion),
    )
    if x.shape[0] * x.shape[2] * x.shape[3] == 0:
        return made
    grad_offset, grad_trend, update, reset, candidate, new_offset = (
        t.contiguous(memory_format=format_after(x))
        for t in (
            given.grad_offset,
            given.grad_trend,
            given.update,
            given.reset,
            given.candidate,
            given.new_offset,
        )
    )
    of_warp = _OfWarp.of(warp, x, grad_offset)
    images = [Image.of(t) for t in (given.offset, given.grad_mask, update, grad_x, logits)]
    offset_image, mask_image, map_image, x_image, _ = images
    operands: list[Image | Tensor] = [*images, of_warp.offset, of_warp.x, of_warp.weight_parts]
    (x_weight, state_weight, candidate_weight), is_packed = _as_read(weights, packed, True)
    maps = {"MOTION_PIXEL": map_image.pixel, "LOGITS_PIXEL": logits.shape[1]}
    of_offset = {"OFFSET_PIXEL": offset_image.pixel}
    of_mask = {"MASKS": sizes.masks, "GRAD_MASK_PIXEL": mask_image.pixel}
    of_x = {"C": sizes.channels, "X_PIXEL": x_image.pixel}
    of_reset = {"RESET_PIXEL": reset_offset.shape[1]}
    batches = (mask_image.batch, offset_image.batch)
    if sizes.is_of_pixels:
        read = (
            grad_offset,
            grad_trend,
            mask_image.tensor,
            update,
            reset,
            candidate,
            offset_image.tensor,
            new_offset,
        )
        written = (logits, reset_offset, grad_x, by_inputs, into_trend)
        _launch(
            pixel_gates_backward_kernel, 1, x, operands,
            (*read, x_weight, state_weight, candidate_weight, *written, *of_warp[:4]), batches, alpha, max_offset,
            of_warp.parts, of_warp.log_addends, size=channel_block(sizes.motion, MOST_COLUMNS), more=of_warp.programs,
            MASK_COLUMNS=channel_block(sizes.masks, MOST_COLUMNS), CHANNELS=channel_block(sizes.channels, 32),
            M=sizes.motion, WARP=of_warp.is_there, DETERMINISTIC=of_warp.is_deterministic, **of_offset, **maps,
            **of_mask, **of_warp.constants | of_x, **of_reset,
        )  # fmt: skip
        return made
    by_update, by_reset = (_new_map(x, sizes.motion, given.offset.dtype) for _ in range(2))
    columns = channel_block(sizes.motion, 32)
    parts = triton.cdiv(sizes.motion, columns)
    of_update = (
        grad_offset,
        grad_trend,
        mask_image.tensor,
        update,
        candidate,
        offset_image.tensor,
        new_offset,
    )
    _launch(
        update_backward_kernel, parts + triton.cdiv(sizes.masks, columns), x, operands,
        (*of_update, logits, by_update, into_trend, of_warp.offset, *of_warp[2:4]), batches, alpha, max_offset,
        of_warp.parts, size=columns, more=of_warp.programs, M=sizes.motion, WARP=of_warp.is_there,
        **of_offset, **maps, **of_mask, **of_warp.constants,
    )  # fmt: skip
    _launch(
        reset_backward_kernel, parts, x, operands,
        (logits, candidate_weight, reset, offset_image.tensor, by_update, by_reset, reset_offset),
        (offset_image.batch,),
        size=columns, PACKED=is_packed, **sizes.constants, **of_offset, **maps, **of_reset,
    )  # fmt: skip
    columns = channel_block(max(sizes.channels, sizes.motion), 32)
    parts = triton.cdiv(sizes.channels, columns) + triton.cdiv(sizes.motion, columns)
    constants = sizes.constants | {"CHANNELS": channel_block(sizes.rows, 32)}
    _launch(
        inputs_backward_kernel, parts, x, operands,
        (logits, x_weight, state_weight, by_reset, grad_x, by_inputs, of_warp.x), (), of_warp.log_addends,
        size=columns, MASKS=sizes.masks, PACKED=is_packed, WARP=of_warp.is_there,
        DETERMINISTIC=of_warp.is_deterministic, **constants, **maps, **of_x,
    )  # fmt: skip
    return made


def wanted_maps(x: Tensor, made: Made, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, F and D, with an empty tensor in place of each that is not wanted."""
    of_x, of_motion = wanted & Wanted.X, wanted & Wanted.MOTION
    return (
        made.x if of_x else x.new_empty(0),
        made.offset if of_motion else made.offset.new_empty(0),
        made.trend if of_motion else made.trend.new_empty(0),
    )


@kernel_op
def motion_gates_backward(
    grad_offset: Tensor,
    grad_trend: Tensor,
    grad_mask: Tensor,
    x: Tensor,
    offset: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    state_weight: Tensor,
    candidate_weight: Tensor,
    update_logits: Tensor,
    reset_logits: Tensor,
    candidate_logits: Tensor,
    new_offset: Tensor,
    alpha: float,
    max_offset: float,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    kept = (offset, update_logits, reset_logits, candidate_logits, new_offset)
    weights = (x_weight, state_weight, candidate_weight)
    given = Given(grad_offset, grad_trend, grad_mask, *kept)
    made = launch_backward(x, given, weights, None, alpha, max_offset)
    maps = wanted_maps(x, made, wanted)
    if not wanted & Wanted.WEIGHTS:
        return (*maps, x.new_empty(0), x.new_empty(0), x.new_empty(0), x.new_empty(0))
    motion = offset.shape[1]
    to_x_weight, to_bias = _weight_gradient(made.logits, x, x_weight, True)
    of_state, of_candidate = made.logits[:, : 2 * motion], made.logits[:, 2 * motion : 3 * motion]
    to_state_weight, _ = _weight_gradient(of_state, offset.to(x.dtype), state_weight, False)
    to_candidate_weight, _ = _weight_gradient(of_candidate, made.reset_offset, candidate_weight, False)
    return (*maps, to_x_weight, to_bias, to_state_weight, to_candidate_weight)


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, has_bias: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weight and the bias of a convolution that keeps the size of x."""
    pad = weight.shape[-1] // 2
    _, of_weight, of_bias = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        [weight.shape[0]],
        [1, 1],
        [pad, pad],
        [1, 1],
        False,
        [0, 0],
        1,
        [False, True, has_bias],
    )
    return of_weight.contiguous(), of_bias
