"""Frames of any size for a model whose patches and MotionGRUs divide them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..models import MotionRNN


def padded(model: MotionRNN, frames: Tensor) -> Tensor:
    """Return frames (B, T, C, H, W) padded to a size that the model takes, by their last row and column.

    Raises:
        ValueError: the model is for frames of one size, its image_size, and these are larger.
    """
    divisor = model.patch_size * (2 if model.interfaces else 1)
    height, width = frames.shape[-2:]
    wanted = model.image_size or tuple(-(-size // divisor) * divisor for size in (height, width))
    below, right = wanted[0] - height, wanted[1] - width
    if below < 0 or right < 0:
        raise ValueError(
            f"frames are {height}x{width}; they should be at most {wanted[0]}x{wanted[1]}, the model's image_size"
        )
    return F.pad(frames.flatten(0, 1), (0, right, 0, below), mode="replicate").unflatten(0, frames.shape[:2])
