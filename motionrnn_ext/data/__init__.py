"""Moving digits, generated on the fly.

from motionrnn_ext.data import VariedMovingMNIST

train = VariedMovingMNIST("train", seed=0, length=10000)       # items: float32 (T, 1, H, W) in [0, 1]
val = VariedMovingMNIST("val", seed=0, length=1000)            # other digits, other motions
test = VariedMovingMNIST("test", seed=0, length=1000, digits="path/to/idx", rotation=(-15, 15))
plain = VariedMovingMNIST("test", plain=True)                  # Moving MNIST: no rotation, no scaling
"""

from __future__ import annotations

from .digits import SPLITS, load_digits
from .moving_mnist import Motion, MotionRanges, VariedMovingMNIST, render

__all__ = ["SPLITS", "Motion", "MotionRanges", "VariedMovingMNIST", "load_digits", "render"]
