"""The registration of the LSTM cells' joints: the shapes of their results alone.

An `autograd.Function` of a whole step calls them, below autograd, so that they have no gradients, no second gradients
and no `torch.vmap` of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..layouts import format_after
from . import shapes


class Joint:
    """The op `<namespace>::<name>`, and `<name>_backward` if there is a `fake_backward`."""

    name: ClassVar[str]
    fake: Callable[..., Any]
    fake_backward: ClassVar[Callable[..., Any] | None] = None

    def __init__(self, namespace: str) -> None:
        self.name_in_torch = f"{namespace}::{self.name}"

    def register(self) -> None:
        """Tell torch the shapes of the ops' results."""
        shapes.register(self.name_in_torch, self.fake)
        if self.fake_backward is not None:
            shapes.register(f"{self.name_in_torch}_backward", self.fake_backward)


class StLstmUpdate(Joint):
    """The spatiotemporal LSTM's two memories; backward follows the memory format of the gates."""

    name = "st_lstm_update"

    @staticmethod
    def fake(
        cell_gates: Tensor, memory_gates: Tensor, cell: Tensor, memory: Tensor, bias: float
    ) -> tuple[Tensor, ...]:
        states = [new_maps(1, cell, cell_gates, t.dtype) for t in (cell, memory)]
        return (new_maps(2, cell, cell_gates), *states)

    @staticmethod
    def fake_backward(
        grad_memories: Tensor,
        grad_content: Tensor,
        grad_cell: Tensor,
        grad_memory: Tensor,
        grad_output: Tensor,
        cell_gates: Tensor,
        memory_gates: Tensor,
        cell: Tensor,
        memory: Tensor,
        bias: float,
    ) -> tuple[Tensor, ...]:
        states = [new_maps(1, cell, cell_gates, t.dtype) for t in (cell, memory)]
        return (*[new_maps(maps, cell, cell_gates) for maps in (4, 3)], *states)


class SummedOutput(Joint):
    """`highway_output` of the sum of two addends, and the sum; its backward is `highway_output_backward`."""

    name = "summed_output"

    @staticmethod
    def fake(
        output_o: Tensor, output_x: Tensor, content: Tensor, highway: Tensor | None
    ) -> tuple[Tensor, ...]:
        return new_maps(1, output_o, output_o), new_maps(1, output_o, output_o)


class ConvLstmUpdate(Joint):
    """ConvLSTM's whole step; `highway` may be None, and has an empty gradient then."""

    name = "conv_lstm_update"

    @staticmethod
    def fake(gates: Tensor, cell: Tensor, highway: Tensor | None, bias: float) -> tuple[Tensor, ...]:
        return new_maps(1, cell, gates), new_maps(1, cell, gates, cell.dtype)

    @staticmethod
    def fake_backward(
        grad_hidden: Tensor,
        grad_cell: Tensor,
        gates: Tensor,
        cell: Tensor,
        new_cell: Tensor,
        highway: Tensor | None,
        bias: float,
    ) -> tuple[Tensor, ...]:
        grad_highway = gates.new_empty(0) if highway is None else new_maps(1, cell, gates)
        return new_maps(4, cell, gates), new_maps(1, cell, gates, cell.dtype), grad_highway


def new_maps(maps: int, one: Tensor, layout: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty tensor of so many maps of the shape of `one`, in the memory format and the dtype of `layout`.

    dtype: another dtype.
    """
    shape = (one.shape[0], maps * one.shape[1], *one.shape[2:])
    return torch.empty(
        shape, dtype=dtype or layout.dtype, device=one.device, memory_format=format_after(layout)
    )
