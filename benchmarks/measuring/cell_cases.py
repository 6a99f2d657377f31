"""Give the cells the form of ops: maps in, maps out.

A row of a ConvLSTM or ST-LSTM cell is one time step of the cell by itself, as in a loop of one's own, with kernels of
5x5, whose weights it lays out by itself on large maps alone. The steps of a `MotionRNN` share that work: rows of whole
models measure those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from motionrnn_ext import MotionGRUCell
from motionrnn_ext.layers import ConvLSTMCell, LSTMState, SpatioTemporalLSTMCell

from .plain_cell import PlainCell
from .plain_lstm import PlainConvLSTM, PlainSpatioTemporalLSTM
from .roofline import WITHOUT_HIGHWAY


class Cell(NamedTuple):
    """The functions that make our cell and its peer for a number of channels, and `(cell, *maps) -> maps` for ours."""

    ours: Callable[[int], nn.Module]
    plain: Callable[[int], nn.Module]
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


CONV_LSTM = Cell(lambda c: ConvLSTMCell(c, c), PlainConvLSTM, _conv_lstm)
ST_LSTM = Cell(lambda c: SpatioTemporalLSTMCell(c, c), PlainSpatioTemporalLSTM, _st_lstm)
CELLS = {
    "MotionGRUCell": Cell(MotionGRUCell, PlainCell, lambda cell, *maps: cell(*maps)),
    "ConvLSTMCell": CONV_LSTM,
    "SpatioTemporalLSTMCell": ST_LSTM,
    f"ConvLSTMCell{WITHOUT_HIGHWAY}": CONV_LSTM,
    f"SpatioTemporalLSTMCell{WITHOUT_HIGHWAY}": ST_LSTM,
}
LSTMS = tuple(name for name in CELLS if name != "MotionGRUCell")
