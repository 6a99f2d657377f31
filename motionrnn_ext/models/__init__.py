"""Models: MotionRNN and its loader for public checkpoints."""

from .motion_rnn import MotionRNN, MotionRNNState
from .official import load_checkpoint, official_name

__all__ = ["MotionRNN", "MotionRNNState", "load_checkpoint", "official_name"]
