"""What the pixels of frames hold.

    floats in [0, 1]    as everywhere in this package
    uint8               0 to 255, which stand for 0 to 1
    nan                 a missing value: a pixel that has no data, as where a radar does not see

The frames of a data set and the true ones of a metric are checked: anything else in them is an error. A network's
predictions are not, as they may leave [0, 1]; the metrics say which of them are clipped.
"""

from __future__ import annotations

import math
import sys
import warnings

import torch
from torch import Tensor

# What arithmetic in half precision may add to 1 or take from 0.
ROUNDING = 1e-3
# Predictions beyond this are most likely in other units than the true frames, as 0 to 255 are.
_FAR_OUT = 10.0
_LIBRARIES = ("motionrnn_ext", "torchmetrics", "torch")


def as_floats(frames: Tensor, name: str = "frames") -> Tensor:
    """Return frames as floats of 32 bits or more: uint8 divided by 255, bool as 0 and 1, floats as they are.

    Raises:
        ValueError: another dtype; `name` is what the message calls the frames.
    """
    if frames.dtype == torch.uint8:
        return frames.float() / 255
    if frames.dtype != torch.bool and not frames.is_floating_point():
        raise ValueError(f"{name} are {frames.dtype}; they should be floats in [0, 1], or uint8")
    return frames if frames.dtype == torch.float64 else frames.float()


def check_range(frames: Tensor, name: str = "frames") -> None:
    """Do nothing where `as_floats` of frames lie in [0, 1], but for rounding and missing values.

    Raises:
        ValueError: values outside of [0, 1], infinite ones, or another dtype. The message has the range found.
    """
    if frames.dtype in (torch.uint8, torch.bool) or not frames.numel():
        return
    lowest, highest = value_range(as_floats(frames, name).detach())
    if lowest < -ROUNDING or highest > 1 + ROUNDING:
        raise ValueError(f"{name} go from {lowest:.7g} to {highest:.7g}; they should be in [0, 1], or uint8")


def in_unit_range(frames: Tensor, name: str = "frames") -> Tensor:
    """Return `as_floats` of frames that `check_range` has let pass."""
    check_range(frames, name)
    return as_floats(frames, name)


def value_range(frames: Tensor) -> tuple[float, float]:
    """Return the lowest and the highest value of floats that are not missing; nan twice where all are."""
    lowest, highest = (end.item() for end in frames.aminmax())
    if math.isnan(lowest):
        known = frames[~frames.isnan()]
        if known.numel():
            lowest, highest = (end.item() for end in known.aminmax())
    return lowest, highest


def check_units(frames: Tensor, name: str = "predictions") -> None:
    """Warn of frames so far out of [0, 1] that they are rather in other units than predicted badly.

    The text has no range: of equal texts Python shows the first alone, not one for every batch.
    """
    if frames.is_floating_point() and frames.numel():
        lowest, highest = value_range(frames.detach())
        if max(abs(lowest), abs(highest)) > _FAR_OUT:
            warnings.warn(
                f"{name} leave [{-_FAR_OUT:g}, {_FAR_OUT:g}], true frames lie in [0, 1]: are these in other units?",
                stacklevel=_levels_to_caller(),
            )


def _levels_to_caller() -> int:
    """Return the stacklevel of a warning of the function that calls this, that names the line of the user's program.

    Metrics are called through torchmetrics and torch.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    return level


def filled(frames: Tensor) -> Tensor:
    """Return frames with 0 where a value is missing, as models read them."""
    return frames.nan_to_num(0.0, math.inf, -math.inf)


def marked(frames: Tensor, stored: Tensor, code: float | None) -> Tensor:
    """Return frames with nan where the values that they were made of are the no-data `code`; None marks nothing."""
    # A float, as PyTorch compares uint8 with the integer -1 as if that were 255.
    return frames if code is None else frames.masked_fill(stored == float(code), math.nan)


def undeclared(stored: Tensor, code: float | None) -> int:
    """Return how many stored values are nan, 0 where nan is the no-data code: beside another code nan is an error."""
    return 0 if code is not None and math.isnan(code) else int(stored.isnan().sum())


def how_to_declare(code: float | None) -> str:
    """Return what to do about undeclared nan, for a message."""
    if code is None:
        return "if these have no data, declare it: missing='nan' (--missing nan)"
    return f"no data is declared as {code:g} (--missing): store {code:g} there too, or nan everywhere"


def missing_share(frames: Tensor) -> float:
    """Return the share of values that are missing, from 0 to 1."""
    return float(frames.isnan().double().mean()) if frames.numel() else 0.0
