"""The spatiotemporal LSTM of PredRNN (Wang et al., 2017), with MotionRNN's highway."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from ... import ops
from .. import nodes
from ..rollout import convolve, current_rollout
from ..tensors import add_to
from .base import LSTMState, RecurrentCell, lays_weights_out


class SpatioTemporalLSTMCell(RecurrentCell):
    """A layer of PredRNN with the Motion Highway Y: the memory C stays in the layer, M travels through the stack.

        [i, f, g] = W_x * X + W_h * H;         C' = s(f + 1).C + s(i).tanh(g)
        [i', f', g'] = W'_x * X + W_m * M;     M' = s(f' + 1).M + s(i').tanh(g')
        o = o_x + o_h + W_o * [C', M'];        H' = s(o).tanh(W_1 * [C', M']) + (1 - s(o)).Y

    `conv_x` gives 7C channels (i, f, g of C; i, f, g of M; o), `conv_h` 4C (i, f, g, o), `conv_m` 3C (i, f,
    g), `conv_o` C, and `conv_last` is the 1x1 W_1. Names, orders and the forget bias of 1 on both memories
    are those of the released PredRNN and MotionRNN, so their weights load as they are. Arguments and errors are those
    of `RecurrentCell`.
    """

    has_memory = True

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        filter_size: int = 5,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(in_channels, hidden_channels, filter_size, **made, **options)
        in_channels, c = self.in_channels, self.hidden_channels
        self.conv_x = self.convolution(in_channels, 7 * c, **made)
        self.conv_h = self.convolution(c, 4 * c, **made)
        self.conv_m = self.convolution(c, 3 * c, **made)
        self.conv_o = self.convolution(2 * c, c, **made)
        self.conv_last = nn.Conv2d(2 * c, c, 1, bias=False, **made)

    @lays_weights_out
    def forward(
        self,
        x: Tensor,
        state: LSTMState | None = None,
        memory: Tensor | None = None,
        highway: Tensor | None = None,
    ) -> tuple[Tensor, LSTMState, Tensor]:
        """Take one time step, see `RecurrentCell`; `memory` is M, (B, C, h, w)."""
        state, memory = self.started(x, state, memory)
        active = current_rollout()
        if active is not None:
            stepped = nodes.st_lstm.step(active, self, x, state.hidden, state.cell, memory, highway)
            if stepped is not None:
                hidden, cell, memory = stepped
                return hidden, LSTMState(hidden, cell), memory
        c = self.hidden_channels
        cell_x, memory_x, output_x = convolve(self.conv_x, x).split((3 * c, 3 * c, c), dim=1)
        cell_h, output_h = convolve(self.conv_h, state.hidden).split((3 * c, c), dim=1)
        cell = ops.memory_update(cell_x, cell_h, state.cell)
        memory = ops.memory_update(memory_x, convolve(self.conv_m, memory), memory)
        memories = torch.cat([cell, memory], dim=1)  # (B, 2C, h, w)
        # The sum is taken in the fresh convolution, so that of three addends only one is kept.
        output = add_to(add_to(convolve(self.conv_o, memories), output_x, self.conv_o), output_h)
        hidden = ops.highway_output(output, convolve(self.conv_last, memories), highway)
        return hidden, LSTMState(hidden, cell), memory
