"""MIM, memory in memory (Wang et al., 2019): the forget gate of C becomes a cascade of two recurrent units.

The first layer is an ST-LSTM, the layers above are `MIMCell`s. The notation is that of `motionrnn_ext.ops`; D is the
difference signal, and N and S are the memories of the two units, MIM-N and MIM-S.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.types import Device

from ... import ops
from .. import nodes
from ..initial_values import Resettable, sets
from ..rollout import convolve, current_rollout
from ..states import check_fields, detached, exportable
from .base import LSTMState, RecurrentCell, lays_weights_out
from .st_lstm import SpatioTemporalLSTMCell


@exportable
class MIMState(NamedTuple):
    """The temporal state of a layer above the first; all maps are (B, C, h, w).

    Attributes:
        hidden: the hidden map H.
        cell: the memory C.
        stationary: S, the memory of MIM-S.
        difference: D, the output of MIM-N.
        nonstationary: N, the memory of MIM-N.
        input: x of the previous step; None at the start of a sequence.
    """

    hidden: Tensor
    cell: Tensor
    stationary: Tensor
    difference: Tensor
    nonstationary: Tensor
    input: Tensor | None

    def detach(self) -> MIMState:
        """Return the state cut from the graph, for truncated backpropagation."""
        return detached(self)


@exportable
class MIMMemory(NamedTuple):
    """The maps that travel up the stack; M goes on to the next step, D does not.

    Attributes:
        memory: M, (B, C, h, w).
        difference: D of the layer below, (B, C, h, w); None from the first layer.
    """

    memory: Tensor
    difference: Tensor | None

    def detach(self) -> MIMMemory:
        """Return the memory cut from the graph, for truncated backpropagation."""
        return detached(self)


class PeepholeLSTM(Resettable):
    """A convolutional LSTM with peepholes per position, which is MIM-N as well as MIM-S.

        [i, f, g, o] = W_a * a + W_x * x;   i += p_i . b;   f += p_f . b
        b' = s(f + 1).b + s(i).tanh(g);     a' = s(o + q . b').tanh(b')

    The call is `(x, a, b) -> (a', b')`, with maps (B, C, h, w). `peephole` (2C, h, w) holds p_i and p_f, and
    `output_peephole` (C, h, w) is q; both start at 0. Sizes are those of the `cell` that it is a part of. Source:
    OpenSTL's MIMN.
    """

    def __init__(self, cell: RecurrentCell, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        c, map_size = cell.hidden_channels, cell.map_size
        assert map_size is not None
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv_a = cell.convolution(c, 4 * c, **made)
        self.conv_x = cell.convolution(c, 4 * c, **made)
        self.peephole = nn.Parameter(torch.empty(2 * c, *map_size, **made))
        self.output_peephole = nn.Parameter(torch.empty(c, *map_size, **made))
        self._reset_peepholes()

    @sets("peephole", "output_peephole")
    def reset_parameters(self) -> None:
        """Give all parameters new initial values; the peepholes are set to 0."""
        super().reset_parameters()
        self._reset_peepholes()

    def _reset_peepholes(self) -> None:
        nn.init.zeros_(self.peephole)
        nn.init.zeros_(self.output_peephole)

    @property
    def hidden_channels(self) -> int:
        """Return C, the channels of a, b and x."""
        return self.output_peephole.shape[0]

    @property
    def in_channels(self) -> int:
        """Return C, the channels of a, b and x."""
        return self.hidden_channels

    def forward(self, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return a' and b', (B, C, h, w) each."""
        active = current_rollout()
        if active is not None:
            stepped = nodes.peephole_lstm.step(active, self, x, a, b)
            if stepped is not None:
                return stepped
        c = b.shape[1]
        input_forget_a, candidate_a, output_a = convolve(self.conv_a, a).split((2 * c, c, c), dim=1)
        gates_x, output_x = convolve(self.conv_x, x).split((3 * c, c), dim=1)
        seen = input_forget_a + self.peephole * torch.cat([b, b], dim=1)  # (B, 2C, h, w)
        b = ops.memory_update(gates_x, torch.cat([seen, candidate_a], dim=1), b)
        logits = torch.addcmul(output_x + output_a, self.output_peephole, b)
        return ops.highway_output(logits, b), b


class _FirstCell(SpatioTemporalLSTMCell):
    """The ST-LSTM of the first layer, which passes on M alone; layer 2 takes the difference of its own inputs."""

    def initial_memory(self, memory: Tensor) -> MIMMemory:
        """Return the memory of a sequence's first step, with `memory` as M."""
        return MIMMemory(memory, None)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        state: LSTMState | None = None,
        memory: MIMMemory | None = None,
        highway: Tensor | None = None,
    ) -> tuple[Tensor, LSTMState, MIMMemory]:
        """Take one time step, see `RecurrentCell`."""
        state, memory = self.started(x, state, memory)
        check_fields("memory", memory, MIMMemory)
        hidden, state, carried = super().forward(x, state, memory.memory, highway)
        return hidden, state, MIMMemory(carried, None)


class MIMCell(RecurrentCell):
    """A layer of MIM above the first, with the Motion Highway Y; x is (B, C, h, w), as wide as H.

        D'  = MIM-N(d, D, N),   T = MIM-S(D', C, S)            T replaces the forgotten part of C
        C'  = T + s(i_x + i_h).tanh(g_x + g_h)
        M'  = s(f_x + f_m + 1).M + s(i_x + i_m).tanh(g_x + g_m)
        H'  = s(o).tanh(W_1 * [C', M']) + (1 - s(o)).Y,   o = o_x + o_h + o_m

    d is D' of the layer below; in layer 2 it is the change of x since the last step. In the first step of a sequence
    there is no difference: D' = D, and MIM-N does not run. `conv_x` and `conv_m` give 4C channels (i, f, g, o),
    `conv_h` 3C (i, g, o). Peepholes are per position, so `map_size` is needed. Every sequence starts fresh,
    and gradients flow through all of its steps.

    With compat="openstl" the module keeps S and cuts it from the graph at every step. S then goes from one sequence to
    the next, whatever `state` holds, until `reset()`, so that equal calls give unequal results.

    Arguments and errors are those of `RecurrentCell`; in_channels should be hidden_channels.

    Source: Wang et al., 2019, in the form of the released programs (OpenSTL's MIMBlock).
    """

    has_memory = True
    needs_map_size = True
    keeps_state = True

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
        if in_channels != c:
            raise ValueError(f"in_channels is {in_channels}; it should be hidden_channels, {c}")
        self.conv_x = self.convolution(c, 4 * c, **made)
        self.conv_h = self.convolution(c, 3 * c, **made)
        self.conv_m = self.convolution(c, 4 * c, **made)
        self.conv_last = nn.Conv2d(2 * c, c, 1, bias=False, **made)
        self.nonstationary = PeepholeLSTM(self, **made)  # MIM-N
        self.stationary = PeepholeLSTM(self, **made)  # MIM-S
        self.carried: Tensor | None = None  # S between calls, with compat="openstl"

    @classmethod
    def of_layer(cls, level: int) -> type[RecurrentCell]:
        """Return the class of layer `level`, counted from 0: an ST-LSTM for the first layer."""
        return cls if level else _FirstCell

    def initial_state(self, hidden: Tensor) -> MIMState:
        """Return the state at the start of a sequence, with `hidden` as H, a copy as C, and zeros as S, D and N."""
        # Tensors of their own, because torch.export would take what it is given twice for one input.
        stationary, difference, nonstationary = (torch.zeros_like(hidden) for _ in range(3))
        return MIMState(hidden, hidden.clone(), stationary, difference, nonstationary, None)

    def initial_memory(self, memory: Tensor) -> MIMMemory:
        """Return the memory of the first step of a stack without a first layer, with `memory` as M."""
        return MIMMemory(memory, None)

    def reset(self) -> None:
        """Forget S, which a cell with compat="openstl" keeps between sequences."""
        self.carried = None

    @sets()
    def reset_parameters(self) -> None:
        """Give all parameters new initial values, and forget S, which the old ones have computed."""
        super().reset_parameters()
        self.reset()

    @lays_weights_out
    def forward(
        self,
        x: Tensor,
        state: MIMState | None = None,
        memory: MIMMemory | None = None,
        highway: Tensor | None = None,
    ) -> tuple[Tensor, MIMState, MIMMemory]:
        """Take one time step, see `RecurrentCell`."""
        state, memory = self.started(x, state, memory, MIMState)
        check_fields("memory", memory, MIMMemory)
        c = self.hidden_channels
        difference, nonstationary = state.difference, state.nonstationary
        if state.input is not None:
            change = x - state.input if memory.difference is None else memory.difference
            difference, nonstationary = self.nonstationary(change, difference, nonstationary)
        kept, stationary = self.stationary(difference, state.cell, self._stationary(state))
        if self.compat:
            self.carried = stationary.detach()

        # Memories are float32 under autocast.
        kept = kept.to(state.cell.dtype)
        active = current_rollout()
        if active is not None:
            stepped = nodes.mim.step(active, self, x, state.hidden, kept, memory.memory, highway)
            if stepped is not None:
                hidden, cell, travelling = stepped
                after = MIMState(hidden, cell, stationary, difference, nonstationary, x)
                return hidden, after, MIMMemory(travelling, difference)
        gates_x, output_x = convolve(self.conv_x, x).split((3 * c, c), dim=1)
        input_h, candidate_h, output_h = convolve(self.conv_h, state.hidden).split(c, dim=1)
        gates_m, output_m = convolve(self.conv_m, memory.memory).split((3 * c, c), dim=1)
        input_x, _, candidate_x = gates_x.split(c, dim=1)
        written = torch.sigmoid(input_x + input_h) * torch.tanh(candidate_x + candidate_h)
        cell = kept + written
        travelling = ops.memory_update(gates_x, gates_m, memory.memory)
        content = convolve(self.conv_last, torch.cat([cell, travelling], dim=1))
        hidden = ops.highway_output(output_x + output_h + output_m, content, highway)
        after = MIMState(hidden, cell, stationary, difference, nonstationary, x)
        return hidden, after, MIMMemory(travelling, difference)

    def _stationary(self, state: MIMState) -> Tensor:
        """Return S: that of the state or, with compat, that which the module keeps."""
        # A kept S on the device "meta" has no values, and `to_empty` does not move it.
        if not self.compat or self.carried is None or self.carried.is_meta:
            return state.stationary
        if self.carried.shape != state.stationary.shape:
            found, wanted = tuple(self.carried.shape), tuple(state.stationary.shape)
            raise ValueError(
                f"the state kept from the last sequence has shape {found}; it should be {wanted}: with "
                "compat='openstl', call reset() before sequences of another size"
            )
        # A copy, because the kept S may come from inference mode.
        return self.carried.detach().to(state.stationary, copy=True)
