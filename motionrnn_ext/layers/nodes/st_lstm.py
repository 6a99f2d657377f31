"""The time step of an ST-LSTM as one node, see `SpatioTemporalLSTMCell` for its equations.

    [i, f, g, o_1] = W_c * [H, X],   [i', f', g'] = W_m * [X, M]
    C', M' = both memories;   o = o_1 + W_o * [C', M'];   H' = s(o).tanh(W_1 * [C', M']) + (1 - s(o)).Y

Convolutions that read the same maps, or whose results are added up, are joined.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from ... import ops
from ...backends import kernels
from ...backends.convolution import same
from ...backends.registration.direct import run
from ..rollout import Joined, Rollout, SharedConvolution, SharedWeights, add_in_place, dtype_of_convolutions
from .common import (
    are_maps,
    differentiable_gradients,
    gradients_of_joined,
    joined,
    plain_convs,
    present,
    run_step,
    side_by_side,
    step_of_node,
)

FORGET_BIAS = 1.0


class Step(NamedTuple):
    """The common part of all steps of a rollout, without a tensor of the graph."""

    kernels: Any
    dtype: torch.dtype
    # [H, X] -> (i, f, g, o), 4C;  [X, M] -> (i', f', g'), 3C;  [C', M'] -> o, C;  [C', M'] -> content, C
    convolutions: tuple[SharedConvolution, ...]


def step(
    active: Rollout, cell: Any, x: Tensor, hidden: Tensor, c: Tensor, m: Tensor, highway: Tensor | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return H', C' and M' by one node, or None where the cell has to be composed."""
    dtype = dtype_of_convolutions(x)
    if not are_maps(cell, dtype, x, (hidden, highway), (c, m)):
        return None
    return step_of_node((active, cell, x, dtype), _weights, _Node.apply, _forward, x, hidden, c, m, highway)


def _weights(
    active: Rollout, cell: Any, x: Tensor, dtype: torch.dtype
) -> tuple[Step, tuple[Tensor, ...]] | None:
    """Return the cell's weights for all steps of a rollout, or None if it has a part that has to be called."""
    chosen, cin, c = kernels(x), cell.in_channels, cell.hidden_channels
    weights = plain_convs(
        active,
        x,
        (cell.conv_x, cin, 7 * c),
        (cell.conv_h, c, 4 * c),
        (cell.conv_m, c, 3 * c),
        (cell.conv_o, 2 * c, c),
        (cell.conv_last, 2 * c, c),
    )
    if chosen is None or weights is None or len({w.shape[-1] for w in weights[:3]}) > 1:
        return None
    x_weight, h_weight, m_weight, o_weight, last_weight = weights
    cell_x, memory_x, output_x = x_weight.split((3 * c, 3 * c, c))
    together = (
        (x_weight, Joined(_of_cell, (h_weight, cell_x, output_x))),
        (x_weight, Joined(side_by_side, (memory_x, m_weight))),
        (o_weight, o_weight),
        (last_weight, last_weight),
    )
    shared = [SharedWeights(same(like), x, dtype, w) for like, w in together]
    return Step(chosen, dtype, tuple(s.conv for s in shared)), tuple(s.laid[0] for s in shared)


def _of_cell(h_weight: Tensor, x_to_gates: Tensor, x_to_output: Tensor) -> Tensor:
    """Return the weight by which H and X come to i, f, g and o."""
    return side_by_side(h_weight, torch.cat([x_to_gates, x_to_output]))


def _joined(common: Step, x: Tensor, hidden: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Return [H, X] and [X, M], as parts of [H, X, M] if the convolutions by them read parts as they lie."""
    if not all(conv.is_packed for conv in common.convolutions[:2]):
        return joined(common.dtype, hidden, x), joined(common.dtype, x, m)
    maps, channels = joined(common.dtype, hidden, x, m), hidden.shape[1]
    return maps[:, :-channels], maps[:, channels:]


def _forward(
    common: Step,
    x: Tensor,
    hidden: Tensor,
    c: Tensor,
    m: Tensor,
    highway: Tensor | None,
    *laid: Tensor,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor | None, ...]]:
    """Return H', C' and M', and what backward reads."""
    kernels, dtype, (to_cell, to_memory, to_output, to_content) = common
    channels = c.shape[1]
    highway = None if highway is None else highway.to(dtype)
    hidden_x, x_memory = _joined(common, x, hidden, m)
    cell_gates, memory_gates = to_cell.run(hidden_x, laid[0]), to_memory.run(x_memory, laid[1])
    gates, output_x = cell_gates.split((3 * channels, channels), dim=1)
    memories, new_c, new_m = run(kernels.st_lstm_update.default, (gates, memory_gates, c, m, FORGET_BIAS))
    content = to_content.run(memories, laid[3])
    new_hidden, output = run(
        kernels.summed_output.default, (to_output.run(memories, laid[2]), output_x, content, highway)
    )
    # The joined maps are not kept: their parts are, and joining them again takes 1% of a convolution's time.
    kept = (gates, memory_gates, new_c, new_m, output, content)
    return (new_hidden, new_c, new_m), kept


class _Node(Function):
    @staticmethod
    def forward(ctx: Any, common: Step, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return cast("tuple[Tensor, Tensor, Tensor]", run_step(ctx, _forward, common, inputs))

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        # H' has the form of o, C' and M' are kept.
        grads = present(given, (saved[4], saved[2], saved[3]))
        if torch.is_grad_enabled():
            return None, *differentiable_gradients(_composed, saved[6:], grads, ctx.common.convolutions)
        kernels, dtype, (to_cell, to_memory, to_output, to_content) = ctx.common
        (gates, memory_gates, new_c, new_m, output, content), inputs = saved[:6], saved[6:]
        x, hidden, c, m, highway, cell_weight, memory_weight, output_weight, content_weight = inputs
        needs, channels = ctx.needs_input_grad[1:], c.shape[1]
        grad_hidden, grad_c, grad_m = grads

        # The cell's output.
        memories = joined(dtype, new_c, new_m)
        highway = None if highway is None else highway.to(dtype)
        grad_output, grad_content, grad_highway = run(
            kernels.highway_output_backward.default, (grad_hidden, output, content, highway)
        )
        to_content.leave(ctx, grad_content, memories, content_weight, needs[8:9])
        # The memories.
        grad_gates, grad_memory_gates, grad_c, grad_m = run(
            kernels.st_lstm_update_backward.default,
            (
                to_output.data_gradient(grad_output, memories, output_weight),
                to_content.data_gradient(grad_content, memories, content_weight),
                grad_c,
                grad_m,
                grad_output,
                gates,
                memory_gates,
                c,
                m,
                FORGET_BIAS,
            ),
        )
        # The gradient of o is a part of the gates', so that it is left without memory of its own.
        to_output.leave(ctx, grad_gates[:, 3 * channels :], memories, output_weight, needs[7:8])
        hidden_x, x_memory = _joined(ctx.common, x, hidden, m)
        to_cell.leave(ctx, grad_gates, hidden_x, cell_weight, needs[5:6])
        to_memory.leave(ctx, grad_memory_gates, x_memory, memory_weight, needs[6:7])
        # The inputs.
        into_hidden, by_cell = gradients_of_joined(
            to_cell, grad_gates, hidden_x, cell_weight, (channels, x.shape[1]), (needs[1], needs[0])
        )
        by_memory, into_m = gradients_of_joined(
            to_memory,
            grad_memory_gates,
            x_memory,
            memory_weight,
            (x.shape[1], channels),
            (needs[0], needs[3]),
        )
        pairs = [(by_cell, by_memory), (grad_m, None if into_m is None else into_m.to(grad_m.dtype))]
        if both := [(a, b) for a, b in pairs if a is not None and b is not None]:
            add_in_place(*zip(*both))
        found = (by_cell, into_hidden, grad_c, grad_m, None if highway is None else grad_highway)
        in_dtypes = [None if g is None else g.to(t.dtype) for g, t in zip(found, inputs)]
        return None, *in_dtypes, None, None, None, None


def _composed(
    x: Tensor,
    hidden: Tensor,
    c: Tensor,
    m: Tensor,
    highway: Tensor | None,
    cell_weight: Tensor,
    memory_weight: Tensor,
    output_weight: Tensor,
    content_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return H', C' and M' by ops that autograd differentiates."""

    def convolved(maps: tuple[Tensor, ...], weight: Tensor) -> Tensor:
        return F.conv2d(joined(weight.dtype, *maps), weight, padding=weight.shape[-1] // 2)

    channels = c.shape[1]
    gates, output = convolved((hidden, x), cell_weight).split((3 * channels, channels), dim=1)
    memory_gates = convolved((x, m), memory_weight)
    new_c = ops.memory_update(gates, torch.zeros_like(gates), c, FORGET_BIAS)
    new_m = ops.memory_update(memory_gates, torch.zeros_like(memory_gates), m, FORGET_BIAS)
    content, output = (
        convolved((new_c, new_m), content_weight),
        output + convolved((new_c, new_m), output_weight),
    )
    highway = None if highway is None else highway.to(output.dtype)
    return ops.highway_output(output, content, highway), new_c, new_m
