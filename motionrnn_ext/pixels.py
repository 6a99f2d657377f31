"""The values of pixels: their range, their units and the missing ones.

    floats in [0, 1]    the form used everywhere in this package
    uint8               0 to 255, which stand for 0 to 1
    nan                 a missing value: a pixel without data, such as one that a radar does not see

The frames of a data set and the true frames of a metric are checked: any other value in them is an error. A network's
predictions are not checked, because they may leave [0, 1]; each metric states whether it clips them.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from .caller import stacklevel_of_user

# The error of half precision: by so much may values leave [0, 1].
ROUNDING = 1e-3
# Predictions larger than this are most likely in other units than the true frames, for example 0 to 255.
_FAR_OUT = 10.0


def as_floats(frames: Tensor, name: str = "frames") -> Tensor:
    """Return frames as floats of 32 bits or more: uint8 divided by 255, bool as 0 and 1, floats as they are.

    Raises:
        ValueError: another dtype. The message calls the frames `name`.
    """
    if frames.dtype == torch.uint8:
        return frames.float() / 255
    if frames.dtype != torch.bool and not frames.is_floating_point():
        raise ValueError(f"{name} are {frames.dtype}; they should be floats in [0, 1], or uint8")
    return frames if frames.dtype == torch.float64 else frames.float()


def check_range(frames: Tensor, name: str = "frames") -> None:
    """Check that frames, as floats, lie in [0, 1] up to rounding; missing values pass.

    Raises:
        ValueError: values outside of [0, 1], infinite values, or another dtype. The message calls the frames `name`
            and gives the range found.
    """
    if frames.dtype in (torch.uint8, torch.bool) or not frames.numel():
        return
    lowest, highest = value_range(as_floats(frames, name).detach())
    if lowest < -ROUNDING or highest > 1 + ROUNDING:
        raise ValueError(f"{name} go from {lowest:.7g} to {highest:.7g}; they should be in [0, 1], or uint8")


def in_unit_range(frames: Tensor, name: str = "frames") -> Tensor:
    """Check frames by `check_range` and return them as floats by `as_floats`."""
    check_range(frames, name)
    return as_floats(frames, name)


def value_range(frames: Tensor) -> tuple[float, float]:
    """Return the lowest and the highest value of floats, missing ones left out; nan twice if all are missing."""
    lowest, highest = (end.item() for end in frames.aminmax())
    if math.isnan(lowest):
        known = frames[~frames.isnan()]
        if known.numel():
            lowest, highest = (end.item() for end in known.aminmax())
    return lowest, highest


def share_outside(frames: Tensor) -> float:
    """Return the share of values that lie outside of [0, 1] by more than rounding, from 0 to 1; missing ones do not."""
    return ((frames < -ROUNDING) | (frames > 1 + ROUNDING)).float().mean().item()


def check_units(frames: Tensor, name: str = "predictions") -> None:
    """Warn of frames so far outside of [0, 1] that they are probably in other units.

    The text leaves out the range found: Python shows equal texts once, and different ones for every batch.
    """
    if frames.is_floating_point() and frames.numel():
        lowest, highest = value_range(frames.detach())
        if max(abs(lowest), abs(highest)) > _FAR_OUT:
            warnings.warn(
                f"{name} leave [{-_FAR_OUT:g}, {_FAR_OUT:g}], true frames lie in [0, 1]: are these in other units?",
                stacklevel=stacklevel_of_user(),
            )


def filled(frames: Tensor) -> Tensor:
    """Return frames with missing values replaced by 0, the form that models read."""
    return frames.nan_to_num(0.0, math.inf, -math.inf)


def marked(frames: Tensor, stored: Tensor, code: float | None) -> Tensor:
    """Return frames with nan wherever the stored values equal the no-data `code`; None marks nothing.

    A pixel in colour has no data if all of its channels have this value.

    Args:
        frames: floats (..., C, H, W), made of `stored`.
        stored: the values as they stand in the file, of the same shape.
        code: the stored value of pixels without data.
    """
    # The code is made a float: PyTorch compares uint8 with the integer -1 as if that were 255.
    return (
        frames
        if code is None
        else frames.masked_fill((stored == float(code)).all(-3, keepdim=True), math.nan)
    )


def undeclared(stored: Tensor, code: float | None) -> int:
    """Return the number of stored values that are nan although nan is not the no-data `code`, which is an error."""
    return 0 if code is not None and math.isnan(code) else int(stored.isnan().sum())


def how_to_declare(code: float | None) -> str:
    """Return the advice that an error about undeclared nan ends with."""
    if code is None:
        return "if these have no data, declare it: missing='nan' (--missing nan)"
    return f"no data is declared as {code:g} (--missing): store {code:g} there too, or nan everywhere"


def missing_share(frames: Tensor) -> float:
    """Return the share of values that are missing, from 0 to 1; 0 for an empty tensor."""
    return float(frames.isnan().double().mean()) if frames.numel() else 0.0
