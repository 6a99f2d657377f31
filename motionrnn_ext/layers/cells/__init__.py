"""The recurrent cells MotionRNN can stand on, by name."""

from .base import LSTMState, RecurrentCell
from .conv_lstm import ConvLSTMCell
from .st_lstm import SpatioTemporalLSTMCell

CELLS: dict[str, type[RecurrentCell]] = {
    "convlstm": ConvLSTMCell,
    "predrnn": SpatioTemporalLSTMCell,
}


def cell_class(predictor: str) -> type[RecurrentCell]:
    """The cell of the predictor of that name; an unknown name is a ValueError that lists the known ones."""
    if predictor not in CELLS:
        raise ValueError(f"unknown predictor {predictor!r}; known: {', '.join(CELLS)}")
    return CELLS[predictor]


__all__ = ["CELLS", "ConvLSTMCell", "LSTMState", "RecurrentCell", "SpatioTemporalLSTMCell", "cell_class"]
