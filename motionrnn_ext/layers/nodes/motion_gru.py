"""The time step of a MotionGRU as one node, see `MotionGRU` and `MotionGRUCell` for its equations.

    E = Enc(H);   F', D', m = motion_gates(E, F, D);   Q = Dec(warp(E, F', m))
    X = s(g).A + (1 - s(g)).B,   g = W_g * [Q, H];   (A, B) is (H, Q) or (Q, H)

motion_step.py computes Q, F' and D', and their gradients; output_gate.py the rest.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from ... import backends, ops
from ...backends.convolution import Geometry
from ...backends.reference import state_dtype
from ...backends.torch_private import plain_apply
from ...ops import _arguments as arguments
from .. import gates_rule
from ..plain import is_plain_conv
from ..rollout import (
    Rollout,
    SharedConvolution,
    SharedWeights,
    dtype_of_convolutions,
    geometry_of,
)
from .common import differentiable_gradients, present, run_step, step_of_node
from .motion_step import Gradients, Kept, Laid, Needs, StepOfGpu, StepOfOneOp
from .output_gate import DecodingOutputGate, OutputGate


class Step(NamedTuple):
    """The common part of all steps of a rollout, without a tensor of the graph."""

    kernels: Any
    dtype: torch.dtype
    encoder: SharedConvolution
    decoder: SharedConvolution
    # What is between the maps and the output gate, and that gate.
    inner: StepOfOneOp | StepOfGpu
    out: OutputGate


# The arguments of a node before those of Laid: the common part, maps, offset and trend.
_BEFORE = 4
# The maps that backward reads beside the arguments of a node: those of Kept, F', Q and g.
_KEPT = len(Kept._fields) + 3


def step(
    active: Rollout, gru: Any, maps: Tensor, offset: Tensor, trend: Tensor, packed: Any
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return X, F' and D' of maps (B, C, h, w) by one node, or None where the MotionGRU has to be composed.

    `packed` is what its `pack_ahead` returned.
    """
    dtype = dtype_of_convolutions(maps)
    state, shape = (
        state_dtype(dtype),
        (maps.shape[0], gru.motion_channels, maps.shape[2] // 2, maps.shape[3] // 2),
    )
    if any(t.shape != shape or t.dtype != state or t.device != maps.device for t in (offset, trend)):
        return None
    return step_of_node((active, gru, maps, dtype, packed), _weights, _apply, _forward, maps, offset, trend)


def _weights(
    active: Rollout, gru: Any, maps: Tensor, dtype: torch.dtype, packed: Any
) -> tuple[Step, Laid] | None:
    """Return the weights for all steps of a rollout, or None if a part has to be called or has no kernel."""
    cell, channels = gru.cell, gru.hidden_channels
    has_kernels = backends.runs_cpu_kernels(maps) or backends.runs_gpu_kernels(maps)
    if not (has_kernels and gates_rule.takes_kernels(maps) and active.has(gru) and active.has(cell)):
        return None
    if not cell.moves_as_in_the_paper:
        return None
    if packed is None or not packed.has_mask or not isinstance(cell.alpha, float):
        return None
    convs = (gru.encoder, gru.decoder, gru.gate)
    if not all(active.has_conv(conv, maps) for conv in convs):
        return None
    if not is_plain_conv(gru.gate, 2 * channels, channels) or gru.decoder.kernel_size != (4, 4):
        return None
    # Encoder and decoder halve and double the maps.
    expected = (
        (gru.encoder, nn.Conv2d, (channels, cell.channels), Geometry((2, 2), _half(gru.encoder))),
        (
            gru.decoder,
            nn.ConvTranspose2d,
            (cell.channels, channels),
            Geometry((2, 2), (1, 1), transposed=True),
        ),
    )
    for module, kind, sizes, geometry in expected:
        if (
            type(module) is not kind
            or module.bias is None
            or (module.in_channels, module.out_channels) != sizes
        ):
            return None
        if geometry_of(module) != geometry:
            return None
    if any(conv.weight.dtype != packed.x_weight.dtype for conv in convs):
        return None
    encoder, decoder, gate = (
        SharedWeights(geometry_of(conv), maps, dtype, conv.weight, conv.bias) for conv in convs
    )
    limit = arguments.bound("max_offset", cell.max_offset)
    kernels = backends.kernels(maps)
    settings = (active, kernels, dtype, cell.alpha, limit)
    weights = (*packed, cell.warp.conv.weight)
    of_gate = (kernels, gate.conv, gru.gate_side == "hidden")
    inner: StepOfOneOp | StepOfGpu
    out = OutputGate(*of_gate)
    if DecodingOutputGate.fits(maps, gru.gate.kernel_size):
        out = DecodingOutputGate(active, *of_gate)
    if backends.runs_gpu_kernels(maps):
        inner = StepOfGpu(*settings, maps, encoder.conv, decoder.conv, *weights, decodes=not out.decodes)
    else:
        inner = StepOfOneOp(*settings, *weights)
    common = Step(kernels, dtype, encoder.conv, decoder.conv, inner, out)
    return common, Laid(*encoder.laid, *decoder.laid, *gate.laid, *inner.laid)


def _half(encoder: nn.Conv2d) -> tuple[int, ...]:
    """Return the padding by which an encoder halves an even map."""
    return tuple((size - 1) // 2 for size in encoder.kernel_size)


def _forward(
    common: Step, maps: Tensor, offset: Tensor, trend: Tensor, *rest: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """Return X, F' and D', and what backward reads."""
    laid, maps = Laid(*rest), maps.to(common.dtype)
    decoded, new_offset, new_trend, kept = common.inner.forward(maps, offset, trend, laid)
    x, decoded, blend = common.out.forward(maps, kept.warped, decoded, laid)
    return (x, new_offset, new_trend), (*kept, new_offset, decoded, blend)


class _Node(Function):
    @staticmethod
    def forward(ctx: Any, common: Step, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return cast("tuple[Tensor, Tensor, Tensor]", run_step(ctx, _forward, common, inputs))

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        common, saved = ctx.common, ctx.saved_tensors
        (*maps_kept, new_offset, decoded, blend), inputs = saved[:_KEPT], saved[_KEPT:]
        kept = Kept(*maps_kept)
        # X has the form of the blend's logits, D' that of F'.
        grad, grad_offset, grad_trend = present(incoming, (blend, new_offset, new_offset))
        if torch.is_grad_enabled():
            return None, *differentiable_gradients(
                lambda *given: _composed(common, *given), inputs, (grad, grad_offset, grad_trend)
            )
        needs = ctx.needs_input_grad[_BEFORE:]
        given, offset, _, *rest = inputs
        laid = Laid(*rest)
        maps = given.to(common.dtype)
        grad_maps, grad_decoded = common.out.backward(ctx, grad, maps, decoded, blend, laid, needs[4:6])
        common.decoder.leave(ctx, grad_decoded, kept.warped, laid.decoder_weight, needs[2:4])
        # The decoder, the warp, the gates and the encoder. The motion at rest of a first step needs no gradient.
        needed = Needs(any(ctx.needs_input_grad[2:_BEFORE]), needs[6:])
        grads = Gradients(grad_decoded, grad_maps, grad_offset, grad_trend)
        grad_maps, grad_old_offset, grad_old_trend, grad_features = common.inner.backward(
            ctx, grads, offset, new_offset, kept, laid, needed
        )
        common.encoder.leave(ctx, grad_features, maps, laid.encoder_weight, needs[:2])
        of_state = (grad_old_offset, grad_old_trend) if needed.motion else (None, None)
        return None, grad_maps.to(given.dtype), *of_state, *[None] * len(laid)


_apply = plain_apply(_Node)


def _composed(
    common: Step, maps: Tensor, offset: Tensor, trend: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return X, F' and D' by ops that autograd differentiates."""
    laid, maps = Laid(*rest), maps.to(common.dtype)
    padding = common.encoder.geometry.padding
    features = F.conv2d(maps, laid.encoder_weight, laid.encoder_bias, stride=2, padding=padding)
    numbers = common.inner.alpha, common.inner.max_offset
    offset, trend, mask = ops.motion_gates(features, offset, trend, *laid.gates, *numbers)
    warped = ops.offset_warp(features, offset, mask, laid.warp_weight)
    decoded = F.conv_transpose2d(warped, laid.decoder_weight, laid.decoder_bias, stride=2, padding=1)
    gate = common.out.gate
    both = torch.cat([decoded, maps], dim=1)
    blend = F.conv2d(both, gate.read(laid.gate_weight), laid.gate_bias, padding=gate.geometry.padding)
    return ops.gated_blend(blend, *common.out.sides(maps, decoded)), offset, trend
