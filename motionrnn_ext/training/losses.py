"""The loss of a training: a weighted sum of terms, each a mean over what is known.

The setting `loss` names the terms, such as "l2", "l1+l2" or "balanced+gdl". Y is a true value in [0, 1], P a predicted
one; the means go over pixels, channels and all predictions.

    l2         mean (Y - P)^2
    l1         mean |Y - P|, times l1_weight
    balanced   mean w(Y) (Y - P)^2 + mean w(Y) |Y - P|: the balanced MSE and MAE of radar, see `balanced`
    ssim       1 - mean SSIM, in windows of 7x7, times ssim_weight
    gdl        mean ||dY| - |dP||, d the difference of neighbours in a column and in a row, times gdl_weight: the
               gradient difference loss of Mathieu et al. (ICLR 2016) with exponent 1, against blur

A true value that is nan is missing: it contributes nothing to any term, and neither do the pairs of neighbours and the
windows that it touches. The means are over the known values, pairs or windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from ..pixels import filled

# The thresholds of rain rates in mm/h, and the weights from below the first to above the last.
RATES = (2.0, 5.0, 10.0, 30.0)
RATE_WEIGHTS = (1.0, 2.0, 5.0, 10.0, 30.0)
_WINDOW = 7
# SSIM's constants, for values from 0 to 1.
_SMALL = (0.01**2, 0.03**2)


class Mean(NamedTuple):
    """The sum of a term over what is known, and the number of what was summed."""

    total: Tensor
    number: Tensor


def l2(prediction: Tensor, truth: Tensor) -> Mean:
    """Return the squared error of the known values."""
    error, known = _error(prediction, truth)
    return Mean(error.square().sum(), known.sum())


def l1(prediction: Tensor, truth: Tensor) -> Mean:
    """Return the absolute error of the known values."""
    error, known = _error(prediction, truth)
    return Mean(error.abs().sum(), known.sum())


def balanced(prediction: Tensor, truth: Tensor, levels: Sequence[float]) -> Mean:
    """Return the balanced squared and absolute error of the known values.

    Heavy rain is rare, and a plain mean hardly counts it. Each pixel has a weight by its true rain rate R:

        w = 1 for R < 2 mm/h, 2 from 2, 5 from 5, 10 from 10, 30 from 30 mm/h on
        B-MSE + B-MAE = mean w (Y - P)^2 + mean w |Y - P|

    Source: Shi et al., "Deep Learning for Precipitation Nowcasting: A Benchmark and a New Model", NeurIPS 2017, section
    3.2 (TrajGRU, HKO-7), who sum over the pixels of a frame where this is a mean over all known ones.

    Args:
        prediction: (B, T, C, H, W).
        truth: of the same shape, nan where missing.
        levels: the pixel values of `RATES`, see `levels_of`.
    """
    error, known = _error(prediction, truth)
    steps = zip(levels, RATE_WEIGHTS, RATE_WEIGHTS[1:])
    # A comparison with nan is false.
    weights = 1 + sum((above - below) * (truth >= level).float() for level, below, above in steps)
    return Mean((weights * (error.square() + error.abs())).sum(), known.sum())


def levels_of(dbz: Sequence[float], zr: Sequence[float]) -> tuple[float, ...]:
    """Return the pixel values of the rain rates `RATES`, see `rain_to_dbz`.

    Args:
        dbz: the reflectivity of pixels 0 and 1, in dBZ.
        zr: a and b of the relation of reflectivity and rain rate.
    """
    # Not above: the settings are read by commands that need torch alone, and the metrics need torchmetrics.
    from ..metrics import rain_to_dbz

    (low, high), (a, b) = dbz, zr
    return tuple((rain_to_dbz(rate, (a, b)) - low) / (high - low) for rate in RATES)


def ssim(prediction: Tensor, truth: Tensor) -> Mean:
    """Return 1 - SSIM of the windows of 7x7 that lie in the frame and have no missing value.

    With means m, variances v and the covariance c in a window of P and of Y, each pixel with the same weight:

        SSIM = (2 m_P m_Y + a) (2 c + b) / ((m_P^2 + m_Y^2 + a) (v_P + v_Y + b)),  a = 0.01^2, b = 0.03^2

    Source: Wang et al., IEEE Transactions on Image Processing 13, 600 (2004).
    """
    known = ~truth.isnan()
    guess, fact = (frames.flatten(0, 1) for frames in (torch.where(known, prediction, 0), filled(truth)))
    # Pooling instead of torchmetrics' convolution of 7x7 ones: forward and backward of 36 frames of 64x64 take 20 ms of
    # CPU time instead of 164 (AMD EPYC, one thread), beside 100 ms for the rest of a small model's step.
    pooled = avg_pool2d(torch.stack([guess, fact, guess**2, fact**2, guess * fact]).flatten(1, 2), _WINDOW, 1)
    mean_guess, mean_fact, square_guess, square_fact, product = pooled
    variances = square_guess - mean_guess**2 + square_fact - mean_fact**2
    covariance = product - mean_guess * mean_fact
    alike = (2 * mean_guess * mean_fact + _SMALL[0]) * (2 * covariance + _SMALL[1])
    size = (mean_guess**2 + mean_fact**2 + _SMALL[0]) * (variances + _SMALL[1])
    touched = max_pool2d((~known).flatten(0, 2).float(), _WINDOW, stride=1) > 0
    return Mean(torch.where(touched, 0, 1 - alike / size).sum(), (~touched).sum())


def gdl(prediction: Tensor, truth: Tensor) -> Mean:
    """Return the gradient difference loss of the pairs of known neighbours."""
    known = ~truth.isnan()
    guess, fact = torch.where(known, prediction, 0), filled(truth)
    means = []
    for axis in (-2, -1):
        pairs = ~truth.diff(dim=axis).isnan()
        edges = (fact.diff(dim=axis).abs() - guess.diff(dim=axis).abs()).abs()
        means.append(Mean(torch.where(pairs, edges, 0).sum(), pairs.sum()))
    return Mean(means[0].total + means[1].total, means[0].number + means[1].number)


def _error(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the prediction minus the truth, 0 where it is missing, and where it is known."""
    known = ~truth.isnan()
    return torch.where(known, prediction - filled(truth), 0), known


TERMS: dict[str, Callable[..., Mean]] = {"l2": l2, "l1": l1, "balanced": balanced, "ssim": ssim, "gdl": gdl}
# The terms that compare values. The others leave the mean brightness free, and need one of these beside them.
_OF_VALUES = {"l2", "l1", "balanced"}


def terms_of(loss: str) -> tuple[str, ...]:
    """Return the terms that `loss` names.

    Raises:
        ValueError: it names another term, one twice, or none that compares values.
    """
    names = tuple(loss.split("+"))
    if not set(names) <= set(TERMS) or len(set(names)) < len(names) or not _OF_VALUES & set(names):
        raise ValueError(
            f"loss must be a sum of different terms of {', '.join(TERMS)}, with l2, l1 or balanced among them, such as "
            f"l2, l1+l2 or balanced+gdl; got {loss!r}"
        )
    return names
