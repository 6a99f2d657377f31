"""Give the cells the form of ops: maps in, maps out.

A row of a ConvLSTM or ST-LSTM cell is one time step of the cell by itself, as in a loop of one's own, with kernels of
5x5, whose weights it lays out by itself on large maps alone. The steps of a `MotionRNN` share that work: rows of whole
models measure those. A row of a MotionGRU is one step within a rollout, as models call it. Its shape is that of what
the encoder puts out; the maps have four times the channels and twice the size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from motionrnn_ext import MotionGRU, MotionGRUCell
from motionrnn_ext.layers import ConvLSTMCell, LSTMState, MotionState, SpatioTemporalLSTMCell
from motionrnn_ext.layers.rollout import rollout

from ..cases import VARIANTS
from .plain_cell import PlainCell
from .plain_lstm import PlainConvLSTM, PlainSpatioTemporalLSTM
from .roofline import MOTION_GRU, WITHOUT_HIGHWAY


class Cell(NamedTuple):
    """The functions that make our cell and its peer, if it has one, for a number of channels, and `(cell, *maps) ->
    maps` for ours."""

    ours: Callable[[int], nn.Module]
    plain: Callable[[int], nn.Module] | None
    step: Callable[..., Any]


def _conv_lstm(
    cell: nn.Module, x: Tensor, hidden: Tensor, c: Tensor, highway: Tensor | None = None
) -> tuple[Tensor, ...]:
    hidden, state, _ = cell(x, LSTMState(hidden, c), None, highway)
    return hidden, state.cell


def _st_lstm(
    cell: nn.Module, x: Tensor, hidden: Tensor, c: Tensor, memory: Tensor, highway: Tensor | None = None
) -> tuple[Tensor, ...]:
    hidden, state, memory = cell(x, LSTMState(hidden, c), memory, highway)
    return hidden, state.cell, memory


def _made_motion_gru(options: dict[str, Any], encoded: int) -> nn.Module:
    return MotionGRU(4 * encoded, **options)


def _motion_gru(gru: Any, x: Tensor, offset: Tensor, trend: Tensor) -> tuple[Tensor, ...]:
    with rollout(gru, steps=2, pixels=x.shape[0] * x.shape[2] * x.shape[3]):
        out, state = gru(x, MotionState(offset, trend), gru.pack_ahead())
    return out, *state


CONV_LSTM = Cell(lambda c: ConvLSTMCell(c, c), PlainConvLSTM, _conv_lstm)
ST_LSTM = Cell(lambda c: SpatioTemporalLSTMCell(c, c), PlainSpatioTemporalLSTM, _st_lstm)
CELLS = {
    "MotionGRUCell": Cell(MotionGRUCell, PlainCell, lambda cell, *maps: cell(*maps)),
    "ConvLSTMCell": CONV_LSTM,
    "SpatioTemporalLSTMCell": ST_LSTM,
    **{
        MOTION_GRU + name: Cell(partial(_made_motion_gru, options), None, _motion_gru)
        for name, options in VARIANTS.items()
    },
    f"ConvLSTMCell{WITHOUT_HIGHWAY}": CONV_LSTM,
    f"SpatioTemporalLSTMCell{WITHOUT_HIGHWAY}": ST_LSTM,
}
LSTMS = tuple(name for name in CELLS if "LSTM" in name)
