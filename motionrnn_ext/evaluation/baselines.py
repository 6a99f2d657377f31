"""Baselines: predictions without learning, scored beside every model.

    repeat last frame    no change
    mean of the inputs   the mean of a pixel over the given frames: no motion, and no noise either
    optical flow         the last frame carried on by the motion between the last two ("Lagrangian persistence")

Optical flow needs scikit-image; without it this row is left out, and the tables say so.

Missing values: a pixel's mean is that of its known values; the others read 0 where a value is missing, as models do.
"""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import luma
from ..metrics import repeat_last_frame
from ..pixels import filled

BASELINE = "repeat last frame"
MEAN = "mean of the inputs"
FLOW = "optical flow"


def names(n_input: int) -> tuple[str, ...]:
    """Return the labels of the baselines that can be computed from so many given frames, in the order of tables."""
    has_flow = n_input > 1 and importlib.util.find_spec("skimage") is not None
    return (BASELINE, MEAN, FLOW) if has_flow else (BASELINE, MEAN)


def about(n_input: int) -> str:
    """Return a sentence on the baselines, and on why one is left out."""
    text = f"baselines: {BASELINE}; {MEAN}, pixel by pixel"
    if FLOW in names(n_input):
        motion = "scikit-image's TV-L1 flow between the last two given ones, semi-Lagrangian, one motion for all times"
        return f"{text}; {FLOW}, the last frame carried on by {motion}"
    why = (
        "it needs two given frames"
        if n_input < 2
        else "scikit-image is not installed: pip install scikit-image"
    )
    return f"{text}; {FLOW} is left out, because {why}"


def predictions(frames: Tensor, n_input: int) -> dict[str, Tensor]:
    """Return the predictions of all baselines by label, (B, T - n_input, C, H, W) each.

    Args:
        frames: (B, T, C, H, W), inputs and targets, floats in [0, 1]; nan where missing. Targets are not read.
        n_input: the number of given frames, from 1 to T - 1.
    """
    n_future, given = frames.shape[1] - n_input, frames[:, :n_input]
    found = {BASELINE: repeat_last_frame(frames, n_input)}
    found[MEAN] = filled(given.nanmean(1, keepdim=True)).expand(-1, n_future, -1, -1, -1)
    if FLOW in names(n_input):
        found[FLOW] = torch.stack([carried_on(clip, n_future) for clip in given])
    return found


def carried_on(given: Tensor, n_future: int) -> Tensor:
    """Return the last frame carried on by the motion between the last two given frames, of luma in colour.

    The motion, in pixels per frame, is scikit-image's optical flow by TV-L1. It stays where it is, and what is seen
    moves through it, see `backward_paths`.

    Args:
        given: (T, C, H, W) with T > 1, floats in [0, 1]; nan where missing.
        n_future: the number of frames to predict.

    Returns:
        (n_future, C, H, W).
    """
    from skimage.registration import optical_flow_tvl1

    given = filled(given)[-2:]
    grey = (luma(given.float()) if given.shape[1] == 3 else given)[:, 0].float().cpu().numpy()
    before, after = grey
    # The flow of a frame leads back to where the frame before shows the same.
    back = torch.from_numpy(optical_flow_tvl1(after, before, dtype="float32"))
    return carried(given[-1], -back, n_future)


def carried(frame: Tensor, motion: Tensor, n_future: int) -> Tensor:
    """Return a frame (C, H, W) carried 1 to n_future steps by a motion (2, H, W), see `backward_paths`.

    Values between pixels are interpolated bilinearly, always from the first frame, so that it is blurred only once.
    What comes from outside of the frame has the value of its nearest pixel.
    """
    frames = frame.expand(n_future, -1, -1, -1)
    return _read(frames, backward_paths(motion, n_future)).to(frame)


def backward_paths(motion: Tensor, n_steps: int) -> Tensor:
    """Return where the air of every pixel was 1 to n_steps steps before, in a motion that does not change.

    The semi-Lagrangian scheme: with x_0 = x, a step back is x_(k+1) = x_k - v(m), m = x_k - v(m)/2, whose midpoint m is
    found by three iterations. (Source: Germann and Zawadzki, Monthly Weather Review 130, 2859, 2002.)

    Args:
        motion: v (2, H, W), rows (down) then columns (right), in pixels per step.
        n_steps: the number of steps.

    Returns:
        float32 (n_steps, 2, H, W): positions in pixels, rows then columns.
    """
    motion = motion.float()[None]
    height, width = motion.shape[-2:]
    place = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).float()[
        None
    ]
    places, step = [], motion
    for _ in range(n_steps):
        for _ in range(3):
            step = _read(motion, place - step / 2)
        place = place - step
        places.append(place)
    return torch.cat(places)


def _read(fields: Tensor, places: Tensor) -> Tensor:
    """Return fields (N, C, H, W) at positions (N, 2, H, W) in pixels, bilinearly, at the edge if they are outside."""
    size = torch.tensor(fields.shape[-2:]).view(2, 1, 1)
    rows, columns = ((2 * places + 1) / size - 1).unbind(1)
    grid = torch.stack([columns, rows], dim=-1)
    return F.grid_sample(fields.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
