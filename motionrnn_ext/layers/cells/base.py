"""What every recurrent cell of the package shares: its state, its convolutions and its interface."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class LSTMState(NamedTuple):
    """Temporal state of one layer: hidden H and memory cell C, (B, C, h, w) each."""

    hidden: Tensor
    cell: Tensor


class RecurrentCell(nn.Module):
    """One layer of a predictor: `cell(x, state, memory, highway=None) -> (h, state, memory)`.

    x (B, C_in, h, w) is the output of the layer below, `state` a named tuple whose field `hidden` is this
    layer's H of the previous time step, `memory` what travels up the stack and on to the next time step (None
    where `has_memory` is False), and `highway` the Motion Highway Y (B, C, h, w) or None. Convolutions are
    odd, of stride 1, "same" and without bias. Layer norm is over (channels, h, w) with an affine per
    position, so it fixes the map: `map_size` = (h, w).
    """

    has_memory = False

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        filter_size: int,
        *,
        layer_norm: bool,
        map_size: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        if filter_size % 2 == 0:
            raise ValueError(f"filter_size is {filter_size}; it should be odd")
        if layer_norm and map_size is None:
            raise ValueError(
                "map_size is None; with layer_norm it should be (h, w), as parameters are per position"
            )
        self.in_channels, self.hidden_channels = in_channels, hidden_channels
        self.filter_size, self.map_size = filter_size, map_size if layer_norm else None

    def initial_state(self, hidden: Tensor) -> LSTMState:
        """The state of a sequence's start, with `hidden` (B, C, h, w) as both H and C."""
        return LSTMState(hidden, hidden)

    def _convolution(self, in_channels: int, out_channels: int) -> nn.Sequential:
        """The convolution, then its layer norm if the cell has one; state-dict keys `0.*` and `1.*`."""
        conv = nn.Conv2d(
            in_channels, out_channels, self.filter_size, padding=self.filter_size // 2, bias=False
        )
        if self.map_size is None:
            return nn.Sequential(conv)
        return nn.Sequential(conv, nn.LayerNorm([out_channels, *self.map_size]))
