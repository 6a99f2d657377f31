"""Importing this defines the ops of `motionrnn_ext_triton` and tells torch their shapes and gradients."""

from __future__ import annotations

from ..registration import register
from . import NAMESPACE, motion_gru, offset_warp, offset_warp_backward, recurrent_gates

register(NAMESPACE, is_native=False)

__all__ = ["motion_gru", "offset_warp", "offset_warp_backward", "recurrent_gates"]
