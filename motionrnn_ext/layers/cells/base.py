"""The base class of the recurrent cells: their interface, their convolutions and their usual state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.types import Device

from ...backends.convolution import gains
from ...backends.layouts import memory_format
from ...backends.torch_private import has_saved_tensor_hooks
from ..arguments import check_tensor, choice, flag, odd, pair, whole
from ..initial_values import Resettable
from ..rollout import current_rollout, dtype_of_convolutions, is_composed, rollout
from ..states import HALVES, check_fields, detached, exportable, under_autocast, without_halves

Forward = TypeVar("Forward", bound=Callable[..., Any])
# The pixels of a batch from which a call by itself gains by laying its weights out: on one core of an AMD EPYC, with 32
# to 128 channels, a ConvLSTM or an ST-LSTM is 1.3 to 1.7 times as fast at 1024, and 0.6 to 1.1 times at 256. In
# bfloat16 it is 1.1 to 1.25 times, as are the other cells.
_LEAST_PIXELS = 1024


def lays_weights_out(forward: Forward) -> Forward:
    """Run the forward of a cell in a rollout of its own, of one step, where none is in force and that is faster."""

    @functools.wraps(forward)
    def called(self: RecurrentCell, *args: Any, **named: Any) -> Any:
        if current_rollout() is not None or not _gains_alone(self, args[0] if args else named.get("x")):
            return forward(self, *args, **named)
        with rollout(self):
            return forward(self, *args, **named)

    return called  # type: ignore[return-value]


def _gains_alone(cell: RecurrentCell, x: object) -> bool:
    """Return whether one call of a cell with x is faster in a rollout of its own.

    Activation checkpointing and the like, which pack what autograd saves, see the ops of the composed cell.
    """
    if (
        is_composed()
        or not isinstance(x, Tensor)
        or x.dim() != 4 + (cell.depth > 1)
        or has_saved_tensor_hooks()
    ):
        return False
    k, c = cell.filter_size, cell.hidden_channels
    maps = x if x.dim() == 4 else x[:, :, 0]
    is_large = maps[:, :1].numel() >= _LEAST_PIXELS
    return is_large and gains((c, c, k, k), maps, dtype_of_convolutions(x))


@exportable
class LSTMState(NamedTuple):
    """The temporal state of one layer.

    Attributes:
        hidden: the hidden map H, (B, C, h, w).
        cell: the memory C, (B, C, h, w).
    """

    hidden: Tensor
    cell: Tensor

    def detach(self) -> LSTMState:
        """Return the state cut from the graph, for truncated backpropagation."""
        return detached(self)


class RecurrentCell(Resettable):
    """The base class of a predictor's layers: `cell(x, state=None, memory=None, highway=None) -> (h, state, memory)`.

    A cell's `forward` takes and returns:

    - x, (B, C_in, h, w): the output of the layer below, or the folded frame.
    - state: a named tuple, whose field `hidden` is this layer's H of the previous time step, (B, C, h, w). A cell that
      needs earlier inputs keeps them here. None is the state of zeros before the first step.
    - memory: the memory that travels up the stack and on to the next time step; None if `has_memory` is False. With
      `has_memory` None is a memory of zeros.
    - highway: the Motion Highway Y, (B, C, h, w), or None.
    - h: the new H, (B, C, h, w).

    If the maps have a depth axis, all of these are (B, C, depth, h, w).

    The convolutions of `convolution` have an odd kernel, stride 1, "same" padding and no bias. Layer norm is taken over
    all axes but the batch, with an affine per position, so it fixes the size of the map.

    A predictor of your own overrides `__init__` and `forward`, and `initial_state` if its state is no `LSTMState`; the
    decorator `register_predictor` gives it a name. Its `__init__` passes the options on that every cell takes. A cell
    with parameters of its own, beside those of its parts, overrides `reset_parameters` as well.

    Args:
        in_channels: C_in, the channels of x.
        hidden_channels: C, the width of the layer.
        filter_size: kernel size of the convolutions, odd.
        layer_norm: whether a layer norm follows every convolution.
        map_size: (h, w), the size of the maps; needed for parameters per position, such as those of layer norm.
        compat: "openstl" for a cell that computes what OpenSTL's does where that deviates from its paper; None for the
            paper's form.
        device: device of the parameters, as in `nn.Conv2d`.
        dtype: dtype of the parameters, as in `nn.Conv2d`.

    Attributes:
        has_memory: whether a memory travels through the stack.
        needs_map_size: whether the cell has parameters per position without layer norm as well.
        keeps_state: whether with compat="openstl" the cell keeps a state from call to call, until `reset`.
        depth: the size of the maps' depth axis, or 1 if they have none.

    Raises:
        ValueError: a size is below 1, filter_size is even, map_size is missing, or compat is unknown.
        TypeError: an argument has another type.
    """

    has_memory = False
    needs_map_size = False
    keeps_state = False
    depth = 1

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
        """Return the class of layer `level`, counted from 0."""
        return cls

    def hidden_shape(self, batch_size: int, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of H for maps of height x width."""
        depth = () if self.depth == 1 else (self.depth,)
        return (batch_size, self.hidden_channels, *depth, height, width)

    def initial_state(self, hidden: Tensor) -> Any:
        """Return the state at the start of a sequence, with `hidden` as H and a copy of it as C."""
        # Two tensors, because torch.export would take what it is given twice for one input.
        return LSTMState(hidden, hidden.clone())

    def initial_memory(self, memory: Tensor) -> Any:
        """Return the memory that travels up the stack in the first step; called on the first layer, if `has_memory`."""
        return memory

    def embed(self, x: Tensor, state: Any) -> Tensor:
        """Return the first layer's input for a folded frame x (B, C_in, h, w): the frame, or a window of frames."""
        return x

    def started(
        self, x: Tensor, state: Any, memory: Any = None, kind: type[Any] = LSTMState
    ) -> tuple[Any, Any]:
        """Return the state and memory that a call of `forward` begins with: those given, or zeros in place of None.

        Beside float32 features a state of half precision becomes float32; autocast may have left it.

        Raises:
            ValueError: x has another number of axes.
            TypeError: x is no tensor, or the state lacks a field of the named tuple `kind`.
        """
        check_tensor("x", x)
        if x.dim() != 4 + (self.depth > 1):
            wanted = f"(B, {self.in_channels}, {f'{self.depth}, ' if self.depth > 1 else ''}h, w)"
            raise ValueError(f"x has shape {tuple(x.shape)}; it should be {wanted}")
        needs_memory = memory is None and self.has_memory
        autocast = under_autocast(x)
        if state is None or needs_memory:
            # Memories are float32 under autocast.
            dtype = torch.float32 if autocast and x.dtype in HALVES else x.dtype
            zeros = x.new_zeros(self.hidden_shape(x.shape[0], *x.shape[-2:]), dtype=dtype)
            zeros = zeros if zeros.dim() > 4 else zeros.contiguous(memory_format=memory_format(x))
            state = self.initial_state(zeros) if state is None else state
            memory = self.initial_memory(zeros) if needs_memory else memory
        check_fields("state", state, kind)
        if x.dtype == torch.float32 and state.hidden.dtype in HALVES and not autocast:
            return without_halves((state, memory))
        return state, memory

    def reset(self) -> None:
        """Forget the state that a cell with compat="openstl" keeps between sequences."""

    def convolution(
        self,
        in_channels: int,
        out_channels: int,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Sequential:
        """Return a convolution, followed by a layer norm if the cell has one; state-dict keys are `0.*` and `1.*`."""
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        k = self.filter_size
        conv = nn.Conv2d(in_channels, out_channels, k, padding=k // 2, bias=False, **made)
        if not self.layer_norm:
            return nn.Sequential(conv)
        assert self.map_size is not None
        return nn.Sequential(conv, nn.LayerNorm([out_channels, *self.map_size], **made))
