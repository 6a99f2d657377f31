"""The time step of a Conv-TT-LSTM as one node, see `ConvTTLSTMCell` for its equations.

    V_0 = A_0 * [h_0 ..];   V_l = [A_l, K_l] * [h_l .., V_{l-1}]
    [i, f, g, o] = [W_x, W_v] * [X, V_{m-1}];   C' = s(f).C + s(i).tanh(g);  H' = s(o).tanh(C') + (1 - s(o)).Y

Convolutions whose results are added up are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from ... import ops
from ...backends import kernels
from ...backends.convolution import same
from ...backends.registration.direct import run
from ..rollout import Rollout, SharedConvolution, SharedWeights, dtype_of_convolutions
from .common import (
    are_maps,
    differentiable_gradients,
    gradients_of_joined,
    joined,
    plain_convs,
    present,
    run_step,
    step_of_node,
    the_conv,
)

FORGET_BIAS = 0.0


class Step(NamedTuple):
    """The common part of all steps of a rollout, without a tensor of the graph."""

    kernels: Any
    dtype: torch.dtype
    # [h_l .., V_{l-1}] -> V_l for every level l;  [X, V] -> (i, f, g, o), 4C. All have a bias.
    convolutions: tuple[SharedConvolution, ...]
    lags: int

    @property
    def order(self) -> int:
        """Return the number of levels."""
        return len(self.convolutions) - 1


# The arguments of a node before the hidden maps h: X, C and the highway.
_BEFORE = 3


def step(
    active: Rollout, cell: Any, x: Tensor, ring: Sequence[Tensor], c: Tensor, highway: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Return H' and C' by one node, or None where the cell has to be composed. `ring` is h, oldest first."""
    dtype = dtype_of_convolutions(x)
    if not are_maps(cell, dtype, x, (*ring, highway), (c,)):
        return None
    return step_of_node((active, cell, x, dtype), _weights, _Node.apply, _forward, x, c, highway, *ring)


def _weights(
    active: Rollout, cell: Any, x: Tensor, dtype: torch.dtype
) -> tuple[Step, tuple[Tensor, ...]] | None:
    """Return the cell's weights for all steps of a rollout, or None if it has a part that has to be called."""
    chosen, c, rank = kernels(x), cell.hidden_channels, cell.rank
    convs = [
        *((conv, cell.lags * c, rank) for conv in cell.factors),
        *((conv, rank, rank) for conv in cell.cores),
        (cell.conv_x, cell.in_channels, 4 * c),
    ]
    biased = plain_convs(active, x, *convs, bias=True)
    unbiased = plain_convs(active, x, (cell.conv_v, rank, 4 * c))
    if chosen is None or biased is None or unbiased is None:
        return None
    if len({(w.shape[-1], w.dtype, w.device) for w in (*biased, *unbiased)}) > 1:
        return None
    biases = [the_conv(module).bias for module, *_ in convs]
    factors, cores, x_weight = biased[: cell.order], biased[cell.order : -1], biased[-1]
    of_factors, of_cores, x_bias = biases[: cell.order], biases[cell.order : -1], biases[-1]
    joins = [(factors[0], of_factors[0])]
    for factor, core, factor_bias, core_bias in zip(factors[1:], cores, of_factors[1:], of_cores):
        joins.append((torch.cat([factor, core], dim=1), factor_bias + core_bias))
    joins.append((torch.cat([x_weight, *unbiased], dim=1), x_bias))
    shared = [SharedWeights(same(weight), x, dtype, weight, bias) for weight, bias in joins]
    laid = tuple(t for s in shared for t in s.laid)
    return Step(chosen, dtype, tuple(s.conv for s in shared), cell.lags), laid


def _read(common: Step, ring: Sequence[Tensor], level: int, train: Tensor | None) -> Tensor:
    """Return what the convolution of a level reads: hidden maps, and V of the level below if there is one."""
    maps = [*ring[level : level + common.lags], *([] if train is None else [train])]
    return joined(common.dtype, *maps) if len(maps) > 1 else maps[0].to(common.dtype)


def _forward(
    common: Step, x: Tensor, c: Tensor, highway: Tensor | None, *rest: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """Return H' and C', and what backward reads."""
    *levels, to_gates = common.convolutions
    ring, laid = rest[: -2 * len(common.convolutions)], rest[-2 * len(common.convolutions) :]
    trains: list[Tensor] = []
    for level, conv in enumerate(levels):
        read = _read(common, ring, level, trains[-1] if trains else None)
        trains.append(conv.run(read, *laid[2 * level : 2 * level + 2]))
    gates = to_gates.run(joined(common.dtype, x, trains[-1]), *laid[-2:])
    highway = None if highway is None else highway.to(common.dtype)
    new_hidden, new_c = run(common.kernels.conv_lstm_update.default, (gates, c, highway, FORGET_BIAS))
    return (new_hidden, new_c), (gates, new_c, *trains)


class _Node(Function):
    @staticmethod
    def forward(ctx: Any, common: Step, *inputs: Any) -> tuple[Tensor, Tensor]:
        return cast("tuple[Tensor, Tensor]", run_step(ctx, _forward, common, inputs))

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        common: Step = ctx.common
        gates, new_c, *rest = ctx.saved_tensors
        trains, inputs = rest[: common.order], rest[common.order :]
        # H' has the form of any of the gates.
        grads = present(given, (gates[:, : new_c.shape[1]], new_c))
        if torch.is_grad_enabled():
            return None, *differentiable_gradients(lambda *t: _composed(common, *t), inputs, grads)
        x, c, highway, *rest = inputs
        count, needs = 2 * len(common.convolutions), ctx.needs_input_grad[1:]
        ring, laid = rest[:-count], rest[-count:]
        needs_weights, needs_ring = needs[-count:], needs[_BEFORE:-count]
        *levels, to_gates = common.convolutions

        highway_read = None if highway is None else highway.to(gates.dtype)
        grad_gates, grad_c, grad_highway = run(
            common.kernels.conv_lstm_update_backward.default,
            (*grads, gates, c, new_c, highway_read, FORGET_BIAS),
        )
        x_train, rank = joined(common.dtype, x, trains[-1]), trains[-1].shape[1]
        to_gates.leave(ctx, grad_gates, x_train, laid[-2], needs_weights[-2:])
        into_x, into_train = gradients_of_joined(
            to_gates, grad_gates, x_train, laid[-2], (x.shape[1], rank), (needs[0], True)
        )
        into_ring: list[Tensor | None] = [None] * len(ring)
        for level in range(common.order - 1, -1, -1):
            conv, weight, grad = levels[level], laid[2 * level], cast(Tensor, into_train)
            read = _read(common, ring, level, trains[level - 1] if level else None)
            conv.leave(ctx, grad, read, weight, needs_weights[2 * level : 2 * level + 2])
            lagged = range(level, level + common.lags)
            channels = [c.shape[1]] * common.lags + [rank] * bool(level)
            wanted = [needs_ring[i] for i in lagged] + [True] * bool(level)
            if not any(wanted):
                break
            parts = gradients_of_joined(conv, grad, read, weight, channels, wanted)
            for i, part in zip(lagged, parts):
                before = into_ring[i]
                into_ring[i] = part if before is None or part is None else before + part
            into_train = parts[-1]
        grad_highway = None if highway is None else grad_highway
        found = (into_x, grad_c, grad_highway, *into_ring)
        in_dtypes = [None if g is None else g.to(t.dtype) for g, t in zip(found, inputs)]
        return None, *in_dtypes, *[None] * count


def _composed(
    common: Step, x: Tensor, c: Tensor, highway: Tensor | None, *rest: Tensor
) -> tuple[Tensor, Tensor]:
    """Return H' and C' by ops that autograd differentiates."""

    def convolved(conv: SharedConvolution, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(maps, conv.read(weight), bias, padding=weight.shape[-1] // 2)

    *levels, to_gates = common.convolutions
    ring, laid = rest[: -2 * len(common.convolutions)], rest[-2 * len(common.convolutions) :]
    train = None
    for level in range(common.order):
        train = convolved(levels[level], _read(common, ring, level, train), *laid[2 * level : 2 * level + 2])
    assert train is not None
    convs = convolved(to_gates, joined(common.dtype, x, train), *laid[-2:])
    gates, output = convs.split((3 * c.shape[1], c.shape[1]), dim=1)
    new_c = ops.memory_update(gates, torch.zeros_like(gates), c, FORGET_BIAS)
    highway = None if highway is None else highway.to(output.dtype)
    return ops.highway_output(output, new_c.to(output.dtype), highway), new_c
