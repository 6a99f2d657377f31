"""Models: MotionRNN and its checkpoints, public ones included."""

from .motion_rnn import MotionRNN, MotionRNNState
from .official import load_checkpoint, load_conv_tt_lstm_cell
from .official_names import official_name
from .saving import save_official

__all__ = [
    "MotionRNN",
    "MotionRNNState",
    "load_checkpoint",
    "load_conv_tt_lstm_cell",
    "official_name",
    "save_official",
]
