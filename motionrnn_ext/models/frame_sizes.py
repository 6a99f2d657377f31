"""The frame sizes that a model takes: patches and MotionGRUs divide height and width."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .motion_rnn import MotionRNN


def size_divisor(model: MotionRNN) -> int:
    """Return the number that divides height and width of a model's frames."""
    return model.patch_size * (2 if model.interfaces else 1)


def missing_size(model: MotionRNN, frames: Tensor) -> tuple[int, int]:
    """Return the rows and columns that frames (..., H, W) lack of a size that the model takes.

    They are negative where the frames are larger than the model's image_size.
    """
    divisor = size_divisor(model)
    height, width = frames.shape[-2:]
    wanted = model.image_size or tuple(-(-size // divisor) * divisor for size in (height, width))
    return wanted[0] - height, wanted[1] - width


def padded(frames: Tensor, below: int, right: int) -> Tensor:
    """Return frames (T, C, H, W) with so many more rows and columns, which repeat the last ones."""
    return F.pad(frames, (0, right, 0, below), mode="replicate")
