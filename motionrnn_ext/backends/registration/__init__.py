"""Registration of the kernels' ops with torch, whoever compiles them: shapes, gradients, second gradients, vmap, FLOPs.

    base.py        the registration of one op: `Pointwise`, and `Weighted` for ops with weights
    motion_gru.py, recurrent_gates.py, lstm_steps.py, offset_warp.py, motion_warp.py, motion_gates.py
                   a stem each: the classes of its ops
    direct.py      the short way to an op in eager mode
    winograd.py, motion_step.py, gated_warp.py, decode_blend.py
                   the ops that one kind of device has, and which have no gradients of their own
    wanted.py      the gradients that a backward op is asked for
    second.py      second derivatives, by the reference
    shapes.py      shapes of results
    vmap.py        `torch.vmap`
    flops.py       FLOPs of `torch.utils.flop_counter`

An op saves its inputs for backward, and a new offset; an op that joins others saves what these hand on as well. Its
backward is an op of its own, `<op>_backward`. Second derivatives go through the reference's formulas, and so do
tangents that reach a backward. The ops of lstm_steps.py have shapes alone, because they are called below autograd.
"""

from __future__ import annotations

from . import decode_blend, gated_warp, motion_step, winograd
from .lstm_steps import ConvLstmUpdate, StLstmUpdate, SummedOutput
from .motion_gates import MotionGates
from .motion_gru import MotionReset, MotionUpdate
from .motion_warp import MotionWarp
from .offset_warp import OffsetWarp
from .recurrent_gates import GatedBlend, HighwayOutput, MemoryUpdate

_OF_ALL_KERNELS = (
    MotionReset,
    MotionUpdate,
    MemoryUpdate,
    HighwayOutput,
    GatedBlend,
    StLstmUpdate,
    SummedOutput,
    ConvLstmUpdate,
    OffsetWarp,
    MotionGates,
)
_OF_NATIVE_KERNELS = (MotionWarp,)


def register(namespace: str, *, is_native: bool = True) -> None:
    """Register a namespace's ops with torch, forward and backward; the native ones have one more."""
    for op in _OF_ALL_KERNELS + _OF_NATIVE_KERNELS if is_native else _OF_ALL_KERNELS:
        op(namespace).register()
    gated_warp.register(namespace, is_native=is_native)
    decode_blend.register(namespace, is_native=is_native)


def register_on_cpu(namespace: str) -> None:
    """Register the ops that only the CPU has."""
    winograd.register(namespace)
    motion_step.register(namespace)
