"""Conv-TT-LSTM, the convolutional tensor-train LSTM (Su et al., 2020): gates from several past hidden states."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.types import Device

from ... import ops
from .. import nodes
from ..arguments import is_whole, shown
from ..rollout import convolve, current_rollout
from ..states import detached, exportable
from ..tensors import add_to
from .base import RecurrentCell, lays_weights_out


@exportable
class ConvTTLSTMState(NamedTuple):
    """The temporal state of one layer; all maps are (B, C, h, w).

    Attributes:
        hidden: H of the last step.
        cell: the memory C.
        older: H of the steps - 1 steps before the last, oldest first.
    """

    hidden: Tensor
    cell: Tensor
    older: tuple[Tensor, ...]

    def detach(self) -> ConvTTLSTMState:
        """Return the state cut from the graph, for truncated backpropagation."""
        return detached(self)


class ConvTTLSTMCell(RecurrentCell):
    """A layer of Conv-TT-LSTM of order m, with the Motion Highway Y.

        P_l = A_l * [h_l .. h_{l+lags-1}],  l = 0..m-1;   V_0 = P_0,  V_l = P_l + K_l * V_{l-1}
        [i, f, g, o] = W_x * X + W_v * V_{m-1}
        C' = s(f).C + s(i).tanh(g);  H' = s(o).tanh(C') + (1 - s(o)).Y

    Here h_0 (oldest) to h_{steps-1} (newest) are the last hidden maps that the layer carried, and lags = steps - m + 1.
    All convolutions are filter_size x filter_size with bias (W_v shares that of W_x). A_l maps lags * C channels to
    `rank`, and K_l `rank` to `rank`; `conv_x` and `conv_v` give 4C channels (i, f, g, o). There is no layer norm.

    Source: Su et al., 2020 (NVlabs' ConvTTLSTMCell).

    Args:
        order: m, the order of the tensor train, at least 1.
        steps: the number of hidden maps that are read, at least `order`.
        rank: the rank of the tensor train, at least 1.

    The other arguments are those of `RecurrentCell`.

    Raises:
        ValueError: order, steps or rank is out of range, or layer_norm is True; otherwise as `RecurrentCell`.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        filter_size: int = 5,
        *,
        order: int = 3,
        steps: int = 3,
        rank: int = 8,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(in_channels, hidden_channels, filter_size, **made, **options)
        in_channels, c, k = self.in_channels, self.hidden_channels, self.filter_size
        if self.layer_norm:
            raise ValueError("layer_norm is True; it should be False, Conv-TT-LSTM has none")
        whole = all(is_whole(number) for number in (order, steps, rank))
        if not (whole and 1 <= order <= steps and rank >= 1):
            given = "order is {}, steps {}, rank {}".format(*map(shown, (order, steps, rank)))
            raise ValueError(f"{given}; they should be whole, 1 <= order <= steps and 1 <= rank")
        order, steps, rank = int(order), int(steps), int(rank)
        self.order, self.steps, self.rank, self.lags = order, steps, rank, steps - order + 1

        def conv(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, k, padding=k // 2, bias=bias, **made)

        self.factors = nn.ModuleList(conv(self.lags * c, rank) for _ in range(order))  # A
        self.cores = nn.ModuleList(conv(rank, rank) for _ in range(order - 1))  # K
        self.conv_x = conv(in_channels, 4 * c)
        self.conv_v = conv(rank, 4 * c, bias=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "rank" not in state:  # pickled by an older version
            self.rank = cast(nn.Conv2d, self.factors[0]).out_channels

    def initial_state(self, hidden: Tensor) -> ConvTTLSTMState:
        """Return the state at the start of a sequence, with `hidden` as H, and copies as C and as every older H."""
        # Clones, because torch.export would take what it is given twice for one input.
        return ConvTTLSTMState(hidden, hidden.clone(), tuple(hidden.clone() for _ in range(self.steps - 1)))

    @lays_weights_out
    def forward(
        self,
        x: Tensor,
        state: ConvTTLSTMState | None = None,
        memory: None = None,
        highway: Tensor | None = None,
    ) -> tuple[Tensor, ConvTTLSTMState, None]:
        """Take one time step, see `RecurrentCell`."""
        state, memory = self.started(x, state, memory, ConvTTLSTMState)
        if len(state.older) != self.steps - 1:
            raise ValueError(
                f"state has {len(state.older)} older maps; it should have {self.steps - 1}, one less than steps"
            )
        ring = (*state.older, state.hidden)
        active = current_rollout()
        if active is not None:
            stepped = nodes.conv_tt_lstm.step(active, self, x, ring, state.cell, highway)
            if stepped is not None:
                return stepped[0], ConvTTLSTMState(*stepped, ring[1:]), memory
        train = convolve(self.factors[0], self._lagged(ring, 0))  # (B, rank, h, w)
        for level, core in enumerate(self.cores, start=1):
            factor = self.factors[level]
            # The sum is taken in the fresh convolution, which nothing keeps.
            train = add_to(convolve(factor, self._lagged(ring, level)), convolve(core, train), factor)
        channels = (3 * self.hidden_channels, self.hidden_channels)
        gates_x, output_x = convolve(self.conv_x, x).split(channels, dim=1)
        gates_v, output_v = convolve(self.conv_v, train).split(channels, dim=1)
        cell = ops.memory_update(gates_x, gates_v, state.cell, forget_bias=0.0)
        hidden = ops.highway_output(output_x + output_v, cell, highway)
        return hidden, ConvTTLSTMState(hidden, cell, ring[1:]), memory

    def _lagged(self, ring: tuple[Tensor, ...], level: int) -> Tensor:
        """Return the hidden maps that A_l reads, l = `level`, as one tensor (B, lags * C, h, w)."""
        hidden = ring[level : level + self.lags]
        return hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=1)
