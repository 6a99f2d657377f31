"""The time step of a MIM layer after MIM-N and MIM-S as one node, see `MIMCell` for its equations.

    C' = T + s(i_x + i_h).tanh(g_x + g_h)
    M' = s(f_x + f_m + 1).M + s(i_x + i_m).tanh(g_x + g_m)
    H' = s(o).tanh(W_1 * [C', M']) + (1 - s(o)).Y,   o = o_x + o_h + o_m

It is an ST-LSTM's step, with T in the place of C, whose forget gate is held open: `OPEN` stands for f + 1, and s(OPEN)
is 1 in every dtype. Gates of maps are summed in the results of the convolutions.
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
from ..rollout import Rollout, SharedConvolution, SharedWeights, add_in_place, dtype_of_convolutions
from .common import (
    are_maps,
    differentiable_gradients,
    joined,
    plain_convs,
    present,
    run_step,
    step_of_node,
)

FORGET_BIAS = 1.0
OPEN = 100.0


class Step(NamedTuple):
    """The common part of all steps of a rollout, without a tensor of the graph."""

    kernels: Any
    dtype: torch.dtype
    # X -> (i, f, g, o);  H -> (i, g, o);  M -> (i, f, g, o);  [C', M'] -> content, C
    convolutions: tuple[SharedConvolution, ...]


def step(
    active: Rollout, cell: Any, x: Tensor, hidden: Tensor, kept: Tensor, m: Tensor, highway: Tensor | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return H', C' and M' by one node, or None where the cell has to be composed. `kept` is T."""
    dtype = dtype_of_convolutions(x)
    if not are_maps(cell, dtype, x, (hidden, highway), (kept, m)):
        return None
    return step_of_node(
        (active, cell, x, dtype), _weights, _Node.apply, _forward, x, hidden, kept, m, highway
    )


def _weights(
    active: Rollout, cell: Any, x: Tensor, dtype: torch.dtype
) -> tuple[Step, tuple[Tensor, ...]] | None:
    """Return the cell's weights for all steps of a rollout, or None if it has a part that has to be called."""
    chosen, c = kernels(x), cell.hidden_channels
    weights = plain_convs(
        active,
        x,
        (cell.conv_x, c, 4 * c),
        (cell.conv_h, c, 3 * c),
        (cell.conv_m, c, 4 * c),
        (cell.conv_last, 2 * c, c),
    )
    if chosen is None or weights is None:
        return None
    shared = [SharedWeights(same(w), x, dtype, w) for w in weights]
    return Step(chosen, dtype, tuple(s.conv for s in shared)), tuple(s.laid[0] for s in shared)


def _forward(
    common: Step,
    x: Tensor,
    hidden: Tensor,
    kept: Tensor,
    m: Tensor,
    highway: Tensor | None,
    *laid: Tensor,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor | None, ...]]:
    """Return H', C' and M', and what backward reads."""
    kernels, dtype, convolutions = common
    c = m.shape[1]
    highway = None if highway is None else highway.to(dtype)
    maps = (t.to(dtype) for t in (x, hidden, m))
    gates, gates_h, memory_gates = (conv.run(t, w) for conv, t, w in zip(convolutions, maps, laid))
    memory_gates[:, : 3 * c].add_(gates[:, : 3 * c])
    add_in_place((gates[:, :c], gates[:, 2 * c :]), (gates_h[:, :c], gates_h[:, c:]))
    gates[:, c : 2 * c].fill_(OPEN - FORGET_BIAS)
    memories, new_c, new_m = run(
        kernels.st_lstm_update.default, (gates[:, : 3 * c], memory_gates[:, : 3 * c], kept, m, FORGET_BIAS)
    )
    content = convolutions[3].run(memories, laid[3])
    new_hidden, output = run(
        kernels.summed_output.default, (gates[:, 3 * c :], memory_gates[:, 3 * c :], content, highway)
    )
    return (new_hidden, new_c, new_m), (gates, memory_gates, new_c, new_m, output, content)


class _Node(Function):
    @staticmethod
    def forward(ctx: Any, common: Step, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return cast("tuple[Tensor, Tensor, Tensor]", run_step(ctx, _forward, common, inputs))

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        (gates, memory_gates, new_c, new_m, output, content), inputs = saved[:6], saved[6:]
        # H' has the form of o, C' and M' are kept.
        grads = present(given, (output, new_c, new_m))
        if torch.is_grad_enabled():
            return None, *differentiable_gradients(_composed, inputs, grads, ctx.common.convolutions)
        kernels, dtype, (from_x, from_hidden, from_m, to_content) = ctx.common
        x, hidden, kept, m, highway, x_weight, hidden_weight, m_weight, content_weight = inputs
        needs, c = ctx.needs_input_grad[1:], m.shape[1]
        grad_hidden, grad_c, grad_m = grads

        # The layer's output.
        memories = joined(dtype, new_c, new_m)
        highway = None if highway is None else highway.to(dtype)
        grad_output, grad_content, grad_highway = run(
            kernels.highway_output_backward.default, (grad_hidden, output, content, highway)
        )
        to_content.leave(ctx, grad_content, memories, content_weight, needs[8:9])
        # The memories.
        by_content = to_content.data_gradient(grad_content, memories, content_weight)
        grad_gates, grad_memory_gates, grad_kept, grad_m = run(
            kernels.st_lstm_update_backward.default,
            (
                by_content,
                torch.zeros_like(by_content),
                grad_c,
                grad_m,
                grad_output,
                gates[:, : 3 * c],
                memory_gates[:, : 3 * c],
                kept,
                m,
                FORGET_BIAS,
            ),
        )
        # The gates: that of f, held open, has a gradient of 0.
        of_hidden = torch.cat([grad_gates[:, :c], grad_gates[:, 2 * c :]], dim=1)
        of_m = torch.cat([grad_memory_gates, grad_output], dim=1)
        of_x = grad_gates
        of_x[:, : 3 * c].add_(grad_memory_gates)
        # The inputs.
        from_x.leave(ctx, of_x, x_read := x.to(dtype), x_weight, needs[5:6])
        from_hidden.leave(ctx, of_hidden, hidden_read := hidden.to(dtype), hidden_weight, needs[6:7])
        from_m.leave(ctx, of_m, m_read := m.to(dtype), m_weight, needs[7:8])
        into_x = from_x.data_gradient(of_x, x_read, x_weight) if needs[0] else None
        into_hidden = from_hidden.data_gradient(of_hidden, hidden_read, hidden_weight) if needs[1] else None
        if needs[3]:
            add_in_place([grad_m], [from_m.data_gradient(of_m, m_read, m_weight).to(grad_m.dtype)])
        found = (into_x, into_hidden, grad_kept, grad_m, None if highway is None else grad_highway)
        in_dtypes = [None if g is None else g.to(t.dtype) for g, t in zip(found, inputs)]
        return None, *in_dtypes, None, None, None, None


def _composed(
    x: Tensor,
    hidden: Tensor,
    kept: Tensor,
    m: Tensor,
    highway: Tensor | None,
    *weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return H', C' and M' by ops that autograd differentiates."""

    def convolved(maps: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(maps.to(weight.dtype), weight, padding=weight.shape[-1] // 2)

    c = m.shape[1]
    from_x, from_hidden, from_m = (convolved(t, w) for t, w in zip((x, hidden, m), weights))
    new_m = ops.memory_update(from_x[:, : 3 * c], from_m[:, : 3 * c], m, FORGET_BIAS)
    written = (from_x[:, :c] + from_hidden[:, :c]).sigmoid() * (
        from_x[:, 2 * c : 3 * c] + from_hidden[:, c : 2 * c]
    ).tanh()
    new_c = kept + written
    content = convolved(torch.cat([new_c, new_m], dim=1), weights[3])
    output = from_x[:, 3 * c :] + from_hidden[:, 2 * c :] + from_m[:, 3 * c :]
    highway = None if highway is None else highway.to(output.dtype)
    return ops.highway_output(output, content, highway), new_c, new_m
