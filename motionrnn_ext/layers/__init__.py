"""Layers: the MotionGRU, the recurrent cells around it, and the conversion of other programs' layers."""

from .cells import (
    ConvLSTMCell,
    ConvTTLSTMCell,
    E3DLSTMCell,
    LSTMState,
    MIMCell,
    RecurrentCell,
    SpatioTemporalLSTMCell,
    register_predictor,
)
from .convert import ConversionReport, convert, from_official, revert
from .motion import MotionState
from .motion_gru import MotionGRU
from .motion_gru_cell import MotionGRUCell
from .official_forward import OfficialMotionGRU
from .sequence import MotionGRULayer
from .warp import OffsetWarp

__all__ = [
    "ConvLSTMCell",
    "ConvTTLSTMCell",
    "ConversionReport",
    "E3DLSTMCell",
    "LSTMState",
    "MIMCell",
    "MotionGRU",
    "MotionGRUCell",
    "MotionGRULayer",
    "MotionState",
    "OfficialMotionGRU",
    "OffsetWarp",
    "RecurrentCell",
    "SpatioTemporalLSTMCell",
    "convert",
    "from_official",
    "register_predictor",
    "revert",
]
