"""Folding of image patches into channels, in the order of the public MotionRNN and PredRNN programs."""

from __future__ import annotations

from torch import Tensor


def fold_patches(frames: Tensor, patch_size: int) -> Tensor:
    """Fold patches of P x P pixels into channels, (..., C, H, W) -> (..., P*P*C, H/P, W/P).

    Pixel (a, b) and colour c of a patch become channel (a*P + b)*C + c. PyTorch's `pixel_unshuffle` has another order,
    with the colour outermost.
    """
    if patch_size == 1:
        return frames
    *lead, channels, height, width = frames.shape
    p, n = patch_size, len(lead)
    split = frames.reshape(*lead, channels, height // p, p, width // p, p)  # (..., C, h, a, w, b)
    order = (*range(n), n + 2, n + 4, n, n + 1, n + 3)
    return split.permute(order).reshape(*lead, p * p * channels, height // p, width // p)


def unfold_patches(folded: Tensor, patch_size: int) -> Tensor:
    """Undo `fold_patches`, (..., P*P*C, h, w) -> (..., C, P*h, P*w)."""
    if patch_size == 1:
        return folded
    *lead, channels, height, width = folded.shape
    p, n = patch_size, len(lead)
    split = folded.reshape(*lead, p, p, channels // (p * p), height, width)  # (..., a, b, C, h, w)
    order = (*range(n), n + 2, n + 3, n, n + 4, n + 1)
    return split.permute(order).reshape(*lead, channels // (p * p), height * p, width * p)


def fold_mask(mask: Tensor, frames: Tensor, patch_size: int) -> Tensor:
    """Return a sampling mask broadcast to frames (B, T, C, H, W) and folded like them, (B, T, P*P*C, h, w).

    A mask that is constant over each frame is returned as (B, T, 1, 1, 1).

    Raises:
        ValueError: the mask does not broadcast to the frames.
        TypeError: the mask is complex.
    """
    full = expanded_mask(mask, frames)
    constant = all(size == 1 for size in mask.shape[-3:])
    return full[..., :1, :1, :1] if constant else fold_patches(full, patch_size)


def expanded_mask(mask: Tensor, frames: Tensor) -> Tensor:
    """Return a sampling mask broadcast to frames, in their dtype.

    Raises:
        ValueError: the mask does not broadcast to the frames.
        TypeError: the mask is complex.
    """
    if mask.is_complex():
        raise TypeError(f"sampling_mask has dtype {mask.dtype}; it should be floating point")
    try:
        return mask.to(frames.dtype).expand(frames.shape)
    except RuntimeError:
        wanted = tuple(frames.shape)
        raise ValueError(
            f"sampling_mask has shape {tuple(mask.shape)}; it should broadcast to {wanted}"
        ) from None
