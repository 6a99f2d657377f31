"""Layers: the MotionGRU, the recurrent cells around it, and the conversion of other programs' layers."""

from typing import TYPE_CHECKING

from ..lazy import imported_on_use
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
from .motion import MotionState
from .motion_gru import MotionGRU
from .motion_gru_cell import MotionGRUCell
from .sequence import MotionGRULayer
from .warp import OffsetWarp

if TYPE_CHECKING:
    from .conversion import ConversionReport, convert, from_official, revert
    from .official_forward import OfficialMotionGRU
else:
    __getattr__, __dir__ = imported_on_use(
        __name__,
        {
            "ConversionReport": "conversion",
            "OfficialMotionGRU": "official_forward",
            "convert": "conversion",
            "from_official": "conversion",
            "revert": "conversion",
        },
    )

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
