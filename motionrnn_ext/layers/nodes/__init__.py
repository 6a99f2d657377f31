"""A recurrent cell's time step as one autograd node, with a hand-written backward.

    common.py      what the nodes share: the weights' checks, gradients of higher order
    conv_lstm.py, st_lstm.py, conv_tt_lstm.py, motion_gru.py
                   a cell each: its weights as a rollout shares them, its step forward and backward
    motion_step.py, output_gate.py
                   the MotionGRU's step before its output gate, on the CPU and on CUDA; and the gate with the blend
    peephole_lstm.py, mim.py
                   a layer of MIM: MIM-N and MIM-S, and the rest

The cells' own `forward` is the specification, which runs wherever a node may not: `rollout` decides, and every cell
asks for its plain convolutions. Convolutions that read the same maps, or whose results are added up, are joined.
"""

from typing import TYPE_CHECKING

from ...lazy import imported_on_use

if TYPE_CHECKING:
    from . import conv_lstm, conv_tt_lstm, mim, motion_gru, peephole_lstm, st_lstm
else:
    __getattr__, __dir__ = imported_on_use(
        __name__,
        {
            "conv_lstm": "conv_lstm",
            "conv_tt_lstm": "conv_tt_lstm",
            "mim": "mim",
            "motion_gru": "motion_gru",
            "peephole_lstm": "peephole_lstm",
            "st_lstm": "st_lstm",
        },
    )

__all__ = ["conv_lstm", "conv_tt_lstm", "mim", "motion_gru", "peephole_lstm", "st_lstm"]
