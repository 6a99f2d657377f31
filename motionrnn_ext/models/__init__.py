"""Models: MotionRNN, its checkpoints, and those of public programs."""

from typing import TYPE_CHECKING

from ..lazy import imported_on_use
from .motion_rnn import MotionRNN, MotionRNNState

if TYPE_CHECKING:
    from .checkpoints.loading import load_checkpoint, load_conv_tt_lstm_cell
    from .checkpoints.names import official_name
    from .checkpoints.saving import save_official
else:
    __getattr__, __dir__ = imported_on_use(
        __name__,
        {
            "load_checkpoint": "checkpoints.loading",
            "load_conv_tt_lstm_cell": "checkpoints.loading",
            "official_name": "checkpoints.names",
            "save_official": "checkpoints.saving",
        },
    )

__all__ = [
    "MotionRNN",
    "MotionRNNState",
    "load_checkpoint",
    "load_conv_tt_lstm_cell",
    "official_name",
    "save_official",
]
