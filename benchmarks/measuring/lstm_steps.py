"""The LSTM cells' joints as differentiable functions of maps: by the ops of a backend, and in plain PyTorch.

The ops have no gradients of their own, as a whole step of a cell is one node of autograd. Here a joint is a node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from motionrnn_ext.backends import reference
from motionrnn_ext.backends.registration.direct import run

from .roofline import WITHOUT_HIGHWAY

FORGET_BIAS = 1.0
# A function that takes an op's name and arguments.
Call = Callable[..., Any]


class _StLstm(torch.autograd.Function):
    """[C', M'] for each of its two convolutions, C', M' and o, of (i, f, g, o) and (i', f', g')."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, gates: Tensor, memory_gates: Tensor, *before: Tensor
    ) -> tuple[Tensor, ...]:
        channels = before[0].shape[1]
        cell_gates, output = gates.split((3 * channels, channels), dim=1)
        memories, *after = call("st_lstm_update", cell_gates, memory_gates, *before, FORGET_BIAS)
        ctx.call = call
        ctx.save_for_backward(cell_gates, memory_gates, *before)
        return memories, memories.view_as(memories), *after, output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.call("st_lstm_update_backward", *grads, *ctx.saved_tensors, FORGET_BIAS)


class _SummedOutput(torch.autograd.Function):
    """H'; the sum o is for backward alone."""

    @staticmethod
    def forward(ctx: Any, call: Call, a: Tensor, b: Tensor, content: Tensor, highway: Tensor) -> Tensor:
        hidden, output = call("summed_output", a, b, content, highway)
        ctx.call = call
        ctx.save_for_backward(output, content, highway)
        return hidden

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_output, *grads = ctx.call("highway_output_backward", grad, *ctx.saved_tensors)
        return None, grad_output, grad_output, *grads


class _ConvLstm(torch.autograd.Function):
    """H' and C'."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, gates: Tensor, cell: Tensor, highway: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        hidden, new_cell = call("conv_lstm_update", gates, cell, highway, FORGET_BIAS)
        ctx.call, ctx.has_highway = call, highway is not None
        ctx.save_for_backward(gates, cell, new_cell, highway)
        return hidden, new_cell

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *found, to_highway = ctx.call("conv_lstm_update_backward", *grads, *ctx.saved_tensors, FORGET_BIAS)
        return (None, *found, to_highway) if ctx.has_highway else (None, *found)


def _memory(gates: Tensor, before: Tensor) -> Tensor:
    dtype = reference.state_dtype(gates.dtype)
    i, f, g = gates.to(dtype).chunk(3, dim=1)
    return ((f + FORGET_BIAS).sigmoid() * before.to(dtype) + i.sigmoid() * g.tanh()).to(before.dtype)


def _plain_st_lstm(gates: Tensor, memory_gates: Tensor, cell: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
    channels = cell.shape[1]
    cell_gates, output = gates.split((3 * channels, channels), dim=1)
    after = _memory(cell_gates, cell), _memory(memory_gates, memory)
    memories = torch.cat(after, dim=1)
    return memories, memories, *after, output


def _plain_summed_output(a: Tensor, b: Tensor, content: Tensor, highway: Tensor) -> Tensor:
    return reference.highway_output(a + b, content, highway)


def _plain_conv_lstm(gates: Tensor, cell: Tensor, highway: Tensor | None = None) -> tuple[Tensor, ...]:
    channels = cell.shape[1]
    memory_gates, output = gates.split((3 * channels, channels), dim=1)
    new_cell = _memory(memory_gates, cell)
    return reference.highway_output(output, new_cell, highway), new_cell


# By op: the node of a backend's ops, and plain PyTorch.
JOINTS: dict[str, tuple[type[torch.autograd.Function], Callable[..., Any]]] = {
    "st_lstm_update": (_StLstm, _plain_st_lstm),
    "summed_output": (_SummedOutput, _plain_summed_output),
    "conv_lstm_update": (_ConvLstm, _plain_conv_lstm),
    f"conv_lstm_update{WITHOUT_HIGHWAY}": (_ConvLstm, _plain_conv_lstm),
}


def of_backend(op: str, namespace: str) -> Callable[..., Any]:
    """Return one of JOINTS by the ops of a backend, which PyTorch has in that namespace."""
    node, kernels = JOINTS[op][0], getattr(torch.ops, namespace)

    def call(name: str, *arguments: Any) -> Any:
        return run(getattr(kernels, name).default, arguments)

    return lambda *maps: node.apply(call, *maps)
