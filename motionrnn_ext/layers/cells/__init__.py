"""The recurrent cells that MotionRNN can be built on, one file each."""

from .base import LSTMState, RecurrentCell
from .conv_lstm import ConvLSTMCell
from .conv_tt_lstm import ConvTTLSTMCell, ConvTTLSTMState
from .e3d_lstm import E3DLSTMCell, E3DLSTMState
from .mim import MIMCell, MIMMemory, MIMState, PeepholeLSTM
from .registry import CELLS, cell_class, cell_options, make_cell, register_predictor
from .st_lstm import SpatioTemporalLSTMCell

__all__ = [
    "CELLS",
    "ConvLSTMCell",
    "ConvTTLSTMCell",
    "ConvTTLSTMState",
    "E3DLSTMCell",
    "E3DLSTMState",
    "LSTMState",
    "MIMCell",
    "MIMMemory",
    "MIMState",
    "PeepholeLSTM",
    "RecurrentCell",
    "SpatioTemporalLSTMCell",
    "cell_class",
    "cell_options",
    "make_cell",
    "register_predictor",
]
