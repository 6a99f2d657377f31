"""Models: MotionRNN and its loader for public checkpoints."""

from .motion_rnn import MotionRNN, MotionRNNState
from .official import load_checkpoint, load_conv_tt_lstm_cell
from .official_names import official_name

__all__ = ["MotionRNN", "MotionRNNState", "load_checkpoint", "load_conv_tt_lstm_cell", "official_name"]
