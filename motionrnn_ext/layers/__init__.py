"""Layers: the MotionGRU, the recurrent cells around it, and the swap of official MotionGRUs for ours."""

from .cells import ConvLSTMCell, LSTMState, SpatioTemporalLSTMCell
from .convert import ConversionReport, convert, from_official, revert
from .motion_gru import MotionGRU, MotionGRUCell, MotionState, OffsetWarp

__all__ = [
    "ConvLSTMCell",
    "ConversionReport",
    "LSTMState",
    "MotionGRU",
    "MotionGRUCell",
    "MotionState",
    "OffsetWarp",
    "SpatioTemporalLSTMCell",
    "convert",
    "from_official",
    "revert",
]
