"""ConvLSTM (Shi et al., 2015), without peepholes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.types import Device

from ... import ops
from .. import nodes
from ..rollout import convolve, current_rollout
from .base import LSTMState, RecurrentCell, lays_weights_out


class ConvLSTMCell(RecurrentCell):
    """A layer of ConvLSTM with the Motion Highway Y.

        [i, f, g, o] = W_x * X + W_h * H
        C' = s(f).C + s(i).tanh(g);  H' = s(o).tanh(C') + (1 - s(o)).Y

    `conv_x` and `conv_h` give 4C channels in the order (i, f, g, o). There is no forget bias: OpenSTL's cell,
    the common reference, declares one and never adds it. Arguments and errors are those of `RecurrentCell`.
    """

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
        self.conv_x = self.convolution(in_channels, 4 * c, **made)
        self.conv_h = self.convolution(c, 4 * c, **made)

    @lays_weights_out
    def forward(
        self,
        x: Tensor,
        state: LSTMState | None = None,
        memory: Tensor | None = None,
        highway: Tensor | None = None,
    ) -> tuple[Tensor, LSTMState, Tensor | None]:
        """Take one time step, see `RecurrentCell`; `memory` is returned as it came."""
        state, memory = self.started(x, state, memory)
        active = current_rollout()
        if active is not None:
            stepped = nodes.conv_lstm.step(active, self, x, state.hidden, state.cell, highway)
            if stepped is not None:
                return stepped[0], LSTMState(*stepped), memory
        channels = (3 * self.hidden_channels, self.hidden_channels)
        gates_x, output_x = convolve(self.conv_x, x).split(channels, dim=1)  # (B, 3C, h, w), (B, C, h, w)
        gates_h, output_h = convolve(self.conv_h, state.hidden).split(channels, dim=1)
        cell = ops.memory_update(gates_x, gates_h, state.cell, forget_bias=0.0)
        hidden = ops.highway_output(output_x + output_h, cell, highway)
        return hidden, LSTMState(hidden, cell), memory
