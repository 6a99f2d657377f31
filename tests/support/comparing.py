"""How two tensors are compared: the largest difference relative to the largest reference value."""

from __future__ import annotations

import torch
from torch import Tensor

# Relative to max|reference| of a float64 reference on the same inputs.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """max|actual - expected| / max|expected|, both in float64; absolute where expected is 0; nan must meet nan."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    if expected.numel() == 0:
        return 0.0
    same = (actual == expected) | (actual.isnan() & expected.isnan())  # infinities as well
    difference = (actual - expected).abs().where(~same, 0)
    scale = expected[expected.isfinite()].abs().max().item() if expected.isfinite().any() else 0.0
    worst = difference.nan_to_num(nan=float("inf")).max().item()
    return worst / scale if scale > 0 else worst


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "value") -> None:
    error = relative_error(actual, expected)
    if error <= tolerance:
        return
    difference = (actual.cpu().double() - expected.cpu().double()).abs().nan_to_num(nan=float("inf"))
    at = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    raise AssertionError(
        f"{what}: relative error {error:.3g} exceeds {tolerance:.3g}; worst at {at}: "
        f"{actual[at].item()!r} instead of {expected[at].item()!r}"
    )
