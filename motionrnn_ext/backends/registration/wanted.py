"""The gradients that the backward ops of the warp and of the gates are asked for."""

from __future__ import annotations

from enum import IntFlag


class Wanted(IntFlag):
    """The bits of a backward op's argument `wanted`. Gradients that are not wanted come back empty.

    The twin in C++ is the enum `Wanted` in csrc/layouts.h.
    """

    X = 1
    # The gradient of offset; of an op that includes motion_update, those of all its inputs.
    MOTION = 2
    MASK = 4
    # The gradients of weights and biases, which are summed over the batch.
    WEIGHTS = 8
