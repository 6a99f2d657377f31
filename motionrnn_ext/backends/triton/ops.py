"""The ops of `motionrnn_ext_triton`: an import of this module defines and registers them."""

from __future__ import annotations

from ..registration import register
from . import (
    NAMESPACE,
    decode_blend,
    gated_warp,
    lstm_steps,
    motion_gates,
    motion_gru,
    offset_warp,
    offset_warp_backward,
    recurrent_gates,
)

register(NAMESPACE, is_native=False)

__all__ = [
    "decode_blend",
    "gated_warp",
    "lstm_steps",
    "motion_gates",
    "motion_gru",
    "offset_warp",
    "offset_warp_backward",
    "recurrent_gates",
]
