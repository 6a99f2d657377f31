"""Layers: the MotionGRU, the recurrent cells around it, and the swap of official MotionGRUs for ours."""

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
from .motion_gru import MotionGRU, MotionGRUCell, MotionState, OffsetWarp
from .sequence import MotionGRULayer

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
    "OffsetWarp",
    "RecurrentCell",
    "SpatioTemporalLSTMCell",
    "convert",
    "from_official",
    "register_predictor",
    "revert",
]
