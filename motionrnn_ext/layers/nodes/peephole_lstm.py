"""The time step of MIM-N or MIM-S as one node, see `PeepholeLSTM` for its equations.

    [i, f, g, o] = W * [x, a];   i += p_i . b;   f += p_f . b
    b' = s(f + 1).b + s(i).tanh(g);   a' = s(o + q . b').tanh(b')

The convolutions of x and a are joined, and peepholes are added in their result.
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
from ..rollout import (
    Rollout,
    SharedConvolution,
    SharedWeights,
    SummedGradients,
    dtype_of_convolutions,
    shared_tensors,
)
from .common import (
    are_maps,
    differentiable_gradients,
    gradients_of_joined,
    joined,
    plain_convs,
    present,
    run_step,
    step_of_node,
)

FORGET_BIAS = 1.0


class Step(NamedTuple):
    """The common part of all steps of a rollout, without a tensor of the graph."""

    kernels: Any
    dtype: torch.dtype
    to_gates: SharedConvolution
    # The gradients of the peepholes.
    sums: SummedGradients


def step(active: Rollout, unit: Any, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return a' and b' by one node, or None where the unit has to be composed."""
    dtype = dtype_of_convolutions(x)
    if not are_maps(unit, dtype, x, (a,), (b,)):
        return None
    return step_of_node((active, unit, x, dtype), _weights, _Node.apply, _forward, x, a, b)


def _weights(
    active: Rollout, unit: Any, x: Tensor, dtype: torch.dtype
) -> tuple[Step, tuple[Tensor, ...]] | None:
    """Return the unit's weights for all steps of a rollout, or None if it has a part that has to be called."""
    chosen, c = kernels(x), unit.hidden_channels
    weights = plain_convs(active, x, (unit.conv_x, c, 4 * c), (unit.conv_a, c, 4 * c))
    if chosen is None or weights is None or weights[0].shape[-1] != weights[1].shape[-1]:
        return None
    if not (active.has(unit) and {"peephole", "output_peephole"} <= unit._parameters.keys()):
        return None
    peepholes = unit.peephole, unit.output_peephole
    if any(p.device != x.device or p.shape[1:] != x.shape[2:] for p in peepholes):
        return None
    shared = SharedWeights(same(weights[0]), x, dtype, torch.cat(weights, dim=1))
    sums = SummedGradients()
    laid = shared_tensors(sums, weights[0].dtype, *peepholes)
    return Step(chosen, dtype, shared.conv, sums), (*shared.laid, *laid)


def _pairs(gates: Tensor, channels: int) -> Tensor:
    """Return the gates i and f as (B, 2, C, h, w), or their peepholes as (1, 2, C, h, w)."""
    gates = gates if gates.dim() == 4 else gates[None]
    return gates[:, : 2 * channels].view(gates.shape[0], 2, channels, *gates.shape[2:])


def _forward(
    common: Step, x: Tensor, a: Tensor, b: Tensor, weight: Tensor, peephole: Tensor, output_peephole: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """Return a' and b', and what backward reads."""
    kernels, dtype, to_gates, _ = common
    c = b.shape[1]
    gates = to_gates.run(joined(dtype, x, a), weight)
    output = gates[:, 3 * c :]
    _pairs(gates, c).addcmul_(_pairs(peephole, c), b[:, None])
    _, new_b = run(kernels.conv_lstm_update.default, (gates, b, None, FORGET_BIAS))
    output.addcmul_(output_peephole, new_b)
    new_a = run(kernels.highway_output.default, (output, new_b.to(dtype), None))
    return (new_a, new_b), (gates, new_b)


class _Node(Function):
    @staticmethod
    def forward(ctx: Any, common: Step, *inputs: Any) -> tuple[Tensor, Tensor]:
        return cast("tuple[Tensor, Tensor]", run_step(ctx, _forward, common, inputs))

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        gates, new_b, *inputs = ctx.saved_tensors
        x, a, b, weight, peephole, output_peephole = inputs
        c = b.shape[1]
        # a' has the form of any of the gates.
        grad_a, grad_b = present(given, (gates[:, :c], new_b))
        if torch.is_grad_enabled():
            return None, *differentiable_gradients(
                lambda *given: _composed(ctx.common, *given), inputs, (grad_a, grad_b)
            )
        kernels, dtype, to_gates, sums = ctx.common
        needs = ctx.needs_input_grad[1:]

        grad_output, *_ = run(
            kernels.highway_output_backward.default, (grad_a, gates[:, 3 * c :], new_b.to(dtype), None)
        )
        grad_b = grad_b.addcmul(output_peephole, grad_output)
        grad_gates, grad_b, _ = run(
            kernels.conv_lstm_update_backward.default, (grad_a, grad_b, gates, b, new_b, None, FORGET_BIAS)
        )
        of_pairs = _pairs(grad_gates, c)
        if any(needs[4:]):
            by_peephole = (of_pairs * b[:, None]).sum(0).reshape(peephole.shape)
            sums.add(ctx, [by_peephole, (grad_output * new_b).sum(0)], needs[4:])
        for i in range(2):
            grad_b.addcmul_(_pairs(peephole, c)[:, i], of_pairs[:, i])
        x_a = joined(dtype, x, a)
        to_gates.leave(ctx, grad_gates, x_a, weight, needs[3:4])
        by_gates = gradients_of_joined(to_gates, grad_gates, x_a, weight, (c, c), needs[:2])
        into_x, into_a = (g if g is None else g.to(t.dtype) for g, t in zip(by_gates, (x, a)))
        return None, into_x, into_a, grad_b, None, None, None


def _composed(
    common: Step, x: Tensor, a: Tensor, b: Tensor, weight: Tensor, peephole: Tensor, output_peephole: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a' and b' by ops that autograd differentiates."""
    c, weight = b.shape[1], common.to_gates.read(weight)
    convolved = F.conv2d(joined(weight.dtype, x, a), weight, padding=weight.shape[-1] // 2)
    pairs, candidate, output = convolved.split((2 * c, c, c), dim=1)
    seen = pairs + (peephole * torch.cat([b, b], dim=1)).to(pairs.dtype)
    gates = torch.cat([seen, candidate], dim=1)
    b = ops.memory_update(gates, torch.zeros_like(gates), b, FORGET_BIAS)
    output = output + (output_peephole * b).to(output.dtype)
    return ops.highway_output(output, b.to(output.dtype)), b
