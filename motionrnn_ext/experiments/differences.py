"""Do two rows of a table differ? Intervals over clips, a test over seeds, and the verdict.

Two rows are compared in a metric by the difference of their means over seeds. It varies for two reasons, and each has
its own number:

    clips   The 95 % interval of a paired bootstrap: clips are drawn with replacement, the same ones for both rows, and
            the difference is computed anew (2000 draws, their percentiles 2.5 and 97.5). It says how far the scored
            clips decide about these trained models. Clips of one stored sequence overlap, or show the same; so whole
            sequences are drawn, each with its clips. (Source: Davison and Hinkley, Bootstrap Methods, 1997, 3.8.)
    seeds   The p-value of a paired t-test over the seeds, which both rows share. It says whether training again would
            show the same. With a single seed there is none.

The verdict is "no difference shown" where the interval holds 0, or a number is not finite. Otherwise it is "better" or
"worse" if p is below 0.05, and "better for these trainings" or "worse for these trainings" if not. With few seeds the
test shows large differences alone: with two, the mean of the differences has to be 13 times their standard error, with
three 4.3 times, with five 2.8 times.

A clip's score is its mean over lead times, and a row's the mean over clips. CSI is that of the counts of all drawn
clips at each lead time, averaged over lead times. A clip without any known true value is left out. If true values are
missing, the interval is of means over clips, and the table of means over lead times; these then differ a little.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_DIFFERENCE = "no difference shown"
_DRAWS, _LEVEL = 2000, 0.95

# (N, K): a clip's score, or the counts TP, FP and FN of all lead times, 3 L numbers.
Clips = NDArray[np.float64]


class Difference(NamedTuple):
    """The difference between two rows in a metric.

    Attributes:
        difference: the mean of a row minus the mean of the other.
        low: the lower end of the interval over clips; nan if it cannot be computed.
        high: the upper end.
        p: the p-value of the test over seeds; nan for a single seed.
        verdict: "better" or "worse", "... for these trainings", or NO_DIFFERENCE.
    """

    difference: float
    low: float
    high: float
    p: float
    verdict: str


def difference(
    values: Sequence[float],
    others: Sequence[float],
    clips: Sequence[Clips],
    other_clips: Sequence[Clips],
    lower_is_better: bool,
    sequences: Sequence[int] | None = None,
) -> Difference:
    """Compare two rows by the rule above.

    Args:
        values: a row's scores, one per seed.
        others: the other row's, of the same seeds.
        clips: the scores of the row's clips, one array per seed; empty if there are none.
        other_clips: the other row's, of the same clips.
        lower_is_better: whether lower scores are better.
        sequences: the stored sequence of each clip, as a number; None if each clip is one of its own.
    """
    gap = fmean(values) - fmean(others)
    low, high = _interval(clips, other_clips, sequences)
    p = _p_value(values, others)
    # Comparisons with nan are false.
    if not (math.isfinite(gap) and (low > 0 or high < 0)):
        return Difference(gap, low, high, p, NO_DIFFERENCE)
    verdict = "better" if (gap < 0) == lower_is_better else "worse"
    return Difference(gap, low, high, p, verdict if p < 1 - _LEVEL else f"{verdict} for these trainings")


def _interval(
    clips: Sequence[Clips], others: Sequence[Clips], sequences: Sequence[int] | None
) -> tuple[float, float]:
    """Return the interval over clips of the difference, or nan twice without two sequences to compare."""
    from scipy.stats import bootstrap

    if not clips or not others:
        return math.nan, math.nan
    # (2, S, K, N)
    columns = np.stack([np.stack([one.T for one in row]) for row in (clips, others)])
    n_columns = columns.shape[2]
    if n_columns == 1:
        # A mean over clips and seeds may be taken over seeds first.
        columns = columns.mean(1, keepdims=True)
    known = np.isfinite(columns).all((0, 1, 2))
    numbers = np.arange(len(known)) if sequences is None else np.asarray(sequences)
    drawn_from = [known & (numbers == number) for number in np.unique(numbers[known])]
    if len(drawn_from) < 2:
        return math.nan, math.nan
    # The sums of every sequence, and its number of clips: a mean over drawn sequences is the quotient of two sums.
    sums = np.stack([columns[..., of_one].sum(-1) for of_one in drawn_from], -1)
    counts = np.array([of_one.sum() for of_one in drawn_from], float)

    def gap(*drawn: NDArray[np.float64], axis: int = -1) -> Any:
        *parts, n_clips = (part.sum(axis) for part in drawn)
        means = np.stack([part / n_clips for part in parts]).reshape(*columns.shape[:3], -1)
        scores = (means[:, :, 0] if n_columns == 1 else _csi(means)).mean(1)
        found = scores[0] - scores[1]
        return found if drawn[0].ndim > 1 else found[0]

    samples = (*sums.reshape(-1, len(counts)), counts)
    if not math.isfinite(gap(*samples)):
        return math.nan, math.nan
    found = bootstrap(
        samples, gap, paired=True, vectorized=True, n_resamples=_DRAWS, batch=100, confidence_level=_LEVEL,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def _csi(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over lead times of CSI, of counts (..., 3 L, D); lead times without an event are left out."""
    tp, fp, fn = np.moveaxis(counts.reshape(*counts.shape[:-2], 3, -1, counts.shape[-1]), -3, 0)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(tp / (tp + fp + fn), axis=-2))


def _p_value(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the p-value of a paired t-test, or nan for a single seed or values that are not finite."""
    from scipy.stats import ttest_rel

    if len(values) < 2 or not np.isfinite([*values, *others]).all():
        return math.nan
    with np.errstate(all="ignore"), warnings.catch_warnings():
        # Differences that are all alike have a variance of 0, of which scipy warns.
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(ttest_rel(values, others).pvalue)


# ---- The scores of clips in the file of a training


def kept(per_clip: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Return the "per_clip" of a `Meter` for some metrics, each as one line of numbers, clip after clip."""
    return {
        name: " ".join(f"{value:.7g}" for value in np.ravel(per_clip[name]))
        for name in names
        if name in per_clip
    }


def read_kept(text: Any, n_clips: int) -> Clips:
    """Return the scores that `kept` has written, (N, K).

    Raises:
        ValueError: the text is damaged.
    """
    numbers = [float(word) for word in str(text).split()]
    if n_clips < 1 or not numbers or len(numbers) % n_clips:
        raise ValueError(f"{len(numbers)} numbers are not those of {n_clips} clips")
    return np.array(numbers).reshape(n_clips, -1)
