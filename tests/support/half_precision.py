"""Shared by the tests of autocast on the CPU and on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from motionrnn_ext import MotionRNN

HALF = (torch.bfloat16, torch.float16)
STATE_OUTPUTS = {
    "motion_update": (0, 1),
    "motion_gates": (0, 1),
    "motion_warp": (1, 2),
    "memory_update": (0,),
}  # float32 beside half features


def flat(value: object) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for part in value for t in flat(part)]


def small(predictor: str, variant: str = "paper") -> MotionRNN:
    torch.manual_seed(0)
    return MotionRNN(predictor, 1, (8, 8), 2, variant, filter_size=3, image_size=(16, 12), zero_init=False)
