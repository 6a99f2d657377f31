"""What every recurrent cell of the package shares: its interface, its convolutions and its state."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.types import Device

from ..arguments import choice, flag, odd, pair, whole
from ..initial_values import Resettable
from ..states import detached, exportable


@exportable
class LSTMState(NamedTuple):
    """Temporal state of one layer: hidden H and memory cell C, (B, C, h, w) each."""

    hidden: Tensor
    cell: Tensor

    def detach(self) -> LSTMState:
        """Return the state cut from the graph, for truncated backpropagation."""
        return detached(self)


class RecurrentCell(Resettable):
    """One layer of a predictor: `cell(x, state, memory, highway=None) -> (h, state, memory)`.

    x (B, C_in, h, w) is the output of the layer below, `state` a named tuple whose field `hidden` is this
    layer's H of the previous time step, `memory` what travels up the stack and on to the next time step (None
    where `has_memory` is False), and `highway` the Motion Highway Y (B, C, h, w) or None. A cell that needs
    earlier inputs keeps them in its state. Where maps have a depth axis, all of these are (B, C, depth, h, w).

    Convolutions are odd, of stride 1, "same" and without bias. Layer norm is over all but the batch with an
    affine per position, so it fixes the map: `map_size` = (h, w). With compat="openstl" a cell computes what
    OpenSTL's does where that deviates from its paper. `device` and `dtype` are those of the parameters.

    A predictor of your own overrides `__init__` and `forward`, `initial_state` if its state is no `LSTMState`,
    and is made known by `register_predictor`. Its `__init__` hands the options on that every cell takes. A cell with
    parameters of its own, beside those of its parts, overrides `reset_parameters` as well.
    """

    has_memory = False
    needs_map_size = False  # whether it has parameters per position without layer norm, too
    keeps_state = False  # whether with compat="openstl" it keeps one from call to call, until `reset`
    depth = 1  # more than 1 where maps have a depth axis

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        filter_size: int,
        *,
        layer_norm: bool = False,
        map_size: tuple[int, int] | None = None,
        compat: str | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_channels = whole("in_channels", in_channels)
        hidden_channels = whole("hidden_channels", hidden_channels)
        filter_size, layer_norm = odd("filter_size", filter_size), flag("layer_norm", layer_norm)
        map_size = None if map_size is None else pair("map_size", map_size, "(h, w)")
        if (layer_norm or self.needs_map_size) and map_size is None:
            why = "with layer_norm" if layer_norm else f"for {type(self).__name__}"
            raise ValueError(f"map_size is None; {why} it should be (h, w), as parameters are per position")
        compat = choice("compat", compat, (None, "openstl"))
        self.in_channels, self.hidden_channels, self.filter_size = in_channels, hidden_channels, filter_size
        self.layer_norm, self.map_size, self.compat = layer_norm, map_size, compat

    @classmethod
    def of_layer(cls, level: int) -> type[RecurrentCell]:
        """The class of layer `level`, from 0."""
        return cls

    def hidden_shape(self, batch_size: int, height: int, width: int) -> tuple[int, ...]:
        """The shape of H for maps of height x width."""
        depth = () if self.depth == 1 else (self.depth,)
        return (batch_size, self.hidden_channels, *depth, height, width)

    def initial_state(self, hidden: Tensor) -> Any:
        """The state of a sequence's start, with `hidden` as both H and C."""
        return LSTMState(hidden, hidden)

    def initial_memory(self, memory: Tensor) -> Any:
        """What travels up the stack in a sequence's first step; asked of the first layer, if `has_memory`."""
        return memory

    def embed(self, x: Tensor, state: Any) -> Tensor:
        """What the first layer reads of a folded frame x (B, C_in, h, w): the frame, or a window of frames."""
        return x

    def reset(self) -> None:
        """Forget what a compat="openstl" cell keeps between sequences."""

    def convolution(
        self,
        in_channels: int,
        out_channels: int,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Sequential:
        """The convolution, then its layer norm if the cell has one; state-dict keys `0.*` and `1.*`."""
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        k = self.filter_size
        conv = nn.Conv2d(in_channels, out_channels, k, padding=k // 2, bias=False, **made)
        if not self.layer_norm:
            return nn.Sequential(conv)
        assert self.map_size is not None
        return nn.Sequential(conv, nn.LayerNorm([out_channels, *self.map_size], **made))
