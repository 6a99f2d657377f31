"""Models: MotionRNN, its checkpoints, and those of public programs."""

from .checkpoints.loading import load_checkpoint, load_conv_tt_lstm_cell
from .checkpoints.names import official_name
from .checkpoints.saving import save_official
from .motion_rnn import MotionRNN, MotionRNNState

__all__ = [
    "MotionRNN",
    "MotionRNNState",
    "load_checkpoint",
    "load_conv_tt_lstm_cell",
    "official_name",
    "save_official",
]
