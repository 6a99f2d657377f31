"""Frames of any size for a model whose patches and MotionGRUs divide them."""

from __future__ import annotations

from torch import Tensor

from ..models import MotionRNN, frame_sizes


def padded(model: MotionRNN, frames: Tensor) -> Tensor:
    """Return frames (B, T, C, H, W) padded to a size that the model takes, by their last row and column.

    Raises:
        ValueError: the model is for frames of one size, its image_size, and these are larger.
    """
    below, right = frame_sizes.missing_size(model, frames)
    if below < 0 or right < 0:
        height, width = frames.shape[-2:]
        raise ValueError(
            f"frames are {height}x{width}; they should be at most {height + below}x{width + right}, the model's "
            "image_size"
        )
    return frame_sizes.padded(frames.flatten(0, 1), below, right).unflatten(0, frames.shape[:2])
