"""The time step of a ConvLSTM as one node, see `ConvLSTMCell` for its equations.

    [i, f, g, o] = W * [X, H];   C' = s(f).C + s(i).tanh(g);   H' = s(o).tanh(C') + (1 - s(o)).Y

The convolutions of X and H are joined.
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
from ..rollout import Joined, Rollout, SharedConvolution, SharedWeights, dtype_of_convolutions
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

FORGET_BIAS = 0.0


class Step(NamedTuple):
    """The common part of all steps of a rollout, without a tensor of the graph."""

    kernels: Any
    dtype: torch.dtype
    to_gates: SharedConvolution


def step(
    active: Rollout, cell: Any, x: Tensor, hidden: Tensor, c: Tensor, highway: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Return H' and C' by one node, or None where the cell has to be composed."""
    dtype = dtype_of_convolutions(x)
    if not are_maps(cell, dtype, x, (hidden, highway), (c,)):
        return None
    return step_of_node((active, cell, x, dtype), _weights, _Node.apply, _forward, x, hidden, c, highway)


def _weights(
    active: Rollout, cell: Any, x: Tensor, dtype: torch.dtype
) -> tuple[Step, tuple[Tensor, ...]] | None:
    """Return the cell's weight for all steps of a rollout, or None if it has a part that has to be called."""
    chosen, c = kernels(x), cell.hidden_channels
    weights = plain_convs(active, x, (cell.conv_x, cell.in_channels, 4 * c), (cell.conv_h, c, 4 * c))
    if chosen is None or weights is None or weights[0].shape[-1] != weights[1].shape[-1]:
        return None
    shared = SharedWeights(same(weights[0]), x, dtype, Joined(side_by_side, tuple(weights)))
    return Step(chosen, dtype, shared.conv), shared.laid


def _forward(
    common: Step, x: Tensor, hidden: Tensor, c: Tensor, highway: Tensor | None, weight: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """Return H' and C', and what backward reads."""
    kernels, dtype, to_gates = common
    gates = to_gates.run(joined(dtype, x, hidden), weight)
    highway = None if highway is None else highway.to(dtype)
    new_hidden, new_c = run(kernels.conv_lstm_update.default, (gates, c, highway, FORGET_BIAS))
    return (new_hidden, new_c), (gates, new_c)


class _Node(Function):
    @staticmethod
    def forward(ctx: Any, common: Step, *inputs: Any) -> tuple[Tensor, Tensor]:
        return cast("tuple[Tensor, Tensor]", run_step(ctx, _forward, common, inputs))

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        gates, new_c, *inputs = ctx.saved_tensors
        # H' has the form of any of the gates.
        grads = present(given, (gates[:, : new_c.shape[1]], new_c))
        if torch.is_grad_enabled():
            return None, *differentiable_gradients(_composed, inputs, grads, (ctx.common.to_gates,))
        grad_hidden, grad_c = grads
        kernels, dtype, to_gates = ctx.common
        x, hidden, c, highway, weight = inputs
        highway_read = None if highway is None else highway.to(gates.dtype)
        grad_gates, grad_c, grad_highway = run(
            kernels.conv_lstm_update_backward.default,
            (grad_hidden, grad_c, gates, c, new_c, highway_read, FORGET_BIAS),
        )
        x_hidden = joined(dtype, x, hidden)
        needs, channels = ctx.needs_input_grad[1:], (x.shape[1], hidden.shape[1])
        to_gates.leave(ctx, grad_gates, x_hidden, weight, needs[4:])
        by_gates = gradients_of_joined(to_gates, grad_gates, x_hidden, weight, channels, needs[:2])
        into_x, into_hidden = (g if g is None else g.to(t.dtype) for g, t in zip(by_gates, (x, hidden)))
        grad_highway = None if highway is None else grad_highway.to(highway.dtype)
        return None, into_x, into_hidden, grad_c, grad_highway, None


def _composed(
    x: Tensor, hidden: Tensor, c: Tensor, highway: Tensor | None, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return H' and C' by ops that autograd differentiates."""
    convolved = F.conv2d(joined(weight.dtype, x, hidden), weight, padding=weight.shape[-1] // 2)
    gates, output = convolved.split((3 * hidden.shape[1], hidden.shape[1]), dim=1)
    new_c = ops.memory_update(gates, torch.zeros_like(gates), c, FORGET_BIAS)
    highway = None if highway is None else highway.to(output.dtype)
    return ops.highway_output(output, new_c.to(output.dtype), highway), new_c
