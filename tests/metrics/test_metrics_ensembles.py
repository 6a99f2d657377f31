"""Scores of ensembles against naive formulas, second libraries, and ensembles whose scores are known."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

pytest.importorskip("torchmetrics", reason="the training program's packages are not installed")

import numpy as np
from torchmetrics.functional.regression import continuous_ranked_probability_score

from motionrnn_ext.metrics import EnsembleMetrics, FrameMetrics, pixel_crps


def drawn(*shape: int, seed: int = 0, ties: bool = True) -> tuple[Tensor, Tensor]:
    """Return an ensemble (B, N, *S) and true values (B, *S) in float64; with ties, multiples of 0.1, many of them 0."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(shape[0], shape[1] + 1, *shape[2:], generator=generator, dtype=torch.float64)
    if ties:
        values = ((values * 14).floor() / 10 - 0.4).clamp(min=0)
    return values[:, 1:], values[:, 0]


def by_hand(members: np.ndarray, y: float) -> tuple[float, float]:
    """CRPS of the empirical distribution, as the integral of the squared difference of distributions; and fair CRPS."""
    n, points = len(members), np.sort(np.append(members, y))
    integral = 0.0
    for left, right in pairwise(points):
        integral += (right - left) * (np.mean(members <= left) - (y <= left)) ** 2
    pairs = np.abs(members[:, None] - members[None, :]).sum()
    return integral, np.abs(members - y).mean() - pairs / (2 * n * (n - 1))


@pytest.mark.parametrize("ties", [False, True])
def test_crps_is_the_integral_over_the_distributions(ties: bool) -> None:
    members, truth = drawn(40, 6, ties=ties)
    plain, fair = pixel_crps(members, truth)
    wanted = np.array([by_hand(x, y) for x, y in zip(members.numpy(), truth.numpy(), strict=True)])
    assert np.abs(plain.numpy() - wanted[:, 0]).max() < 1e-12
    assert np.abs(fair.numpy() - wanted[:, 1]).max() < 1e-12


def test_crps_of_torchmetrics() -> None:
    members, truth = drawn(50, 5)
    found = continuous_ranked_probability_score(members, truth)
    assert pixel_crps(members, truth)[0].mean().item() == pytest.approx(found.item(), rel=1e-6)


def test_crps_of_properscoring() -> None:
    properscoring = pytest.importorskip("properscoring", reason="properscoring is not installed")
    members, truth = drawn(50, 5)
    wanted = properscoring.crps_ensemble(truth.numpy(), members.numpy())
    assert np.abs(pixel_crps(members, truth)[0].numpy() - wanted).max() < 1e-12


def test_scores_by_hand_over_batches() -> None:
    members, truth = drawn(5, 4, 3, 1, 6, 5)
    metrics = EnsembleMetrics(3, 4)
    for part, fact in zip(members.split(2), truth.split(2), strict=True):
        metrics.update(part, fact)
    result = metrics.compute()
    assert json.loads(json.dumps(result)) == result
    x, y = members.numpy(), truth.numpy()
    for lead in range(3):
        each, fact = x[:, :, lead].swapaxes(0, 1).reshape(4, -1), y[:, lead].ravel()
        wanted = np.array([by_hand(each[:, i], fact[i]) for i in range(len(fact))]).mean(0) * 30
        assert result["per_lead"]["crps"][lead] == pytest.approx(wanted[0])
        assert result["per_lead"]["faircrps"][lead] == pytest.approx(wanted[1])
        spread = np.sqrt(each.var(0, ddof=1).mean())
        rmse = np.sqrt(((each.mean(0) - fact) ** 2).mean())
        assert result["per_lead"]["spread"][lead] == pytest.approx(spread)
        assert result["per_lead"]["rmse"][lead] == pytest.approx(rmse)
        assert result["per_lead"]["ratio"][lead] == pytest.approx(math.sqrt(5 / 4) * spread / rmse)
        ranks = np.zeros(5)
        for i, value in enumerate(fact):
            lowest, ties = (each[:, i] < value).sum(), (each[:, i] == value).sum()
            ranks[lowest : lowest + ties + 1] += 1 / (ties + 1)
        assert result["ranks_per_lead"][lead] == pytest.approx((ranks / ranks.sum()).tolist())
    for name in ("crps", "faircrps", "spread", "rmse", "ratio"):
        assert result[name] == pytest.approx(np.mean(result["per_lead"][name]))
    assert result["ranks"] == pytest.approx(np.mean(result["ranks_per_lead"], 0).tolist())
    assert result["members"] == 4


def test_ranks_of_pysteps() -> None:
    scores = pytest.importorskip("pysteps.verification.ensscores", reason="pysteps is not installed")
    members, truth = drawn(1, 5, 1, 1, 20, 20, ties=False)
    metrics = EnsembleMetrics(1, 5)
    metrics.update(members, truth)
    histogram = scores.rankhist_init(5, 0.0)
    scores.rankhist_accum(histogram, members[0].flatten(1).T.numpy(), truth.flatten().numpy())
    assert metrics.compute()["ranks"] == pytest.approx(scores.rankhist_compute(histogram).tolist())


def test_a_single_member_has_its_absolute_error() -> None:
    members, truth = drawn(3, 1, 2, 1, 8, 7)
    truth[0, 0, :, :3] = torch.nan
    truth[1, 1] = torch.nan
    metrics, frames = EnsembleMetrics(2, 1), FrameMetrics(2, None)
    metrics.update(members, truth)
    frames.update(members[:, 0], truth)
    result = metrics.compute()
    assert result["per_lead"]["crps"] == pytest.approx(frames.compute()["per_lead"]["mae"], rel=1e-5)
    assert set(result) == {"crps", "rmse", "per_lead", "ranks", "ranks_per_lead", "members"}


def test_members_like_the_truth_are_reliable() -> None:
    """Members and truth are drawn alike: ratio 1, flat ranks, and a fair CRPS that does not depend on the number."""
    ratios, fair, plain = [], [], []
    for n in (3, 12):
        members, truth = drawn(8, n, 1, 1, 64, 64, seed=n, ties=False)
        metrics = EnsembleMetrics(1, n)
        metrics.update(members, truth)
        result = metrics.compute()
        ratios.append(result["ratio"])
        fair.append(result["faircrps"] / 64**2)
        plain.append(result["crps"] / 64**2)
        # Four standard deviations of the share of 8 x 64 x 64 draws.
        tolerance = 4 * math.sqrt(n / (n + 1) ** 2 / (8 * 64**2))
        assert result["ranks"] == pytest.approx([1 / (n + 1)] * (n + 1), abs=tolerance)
    # A uniform truth and as uniform a distribution have a CRPS of 1/6.
    assert ratios == pytest.approx([1, 1], abs=0.01) and fair == pytest.approx([1 / 6] * 2, rel=0.02)
    assert plain[0] > 1.2 * plain[1]


def test_members_too_sure_have_a_u() -> None:
    members, truth = drawn(4, 6, 1, 1, 32, 32, ties=False)
    metrics = EnsembleMetrics(1, 6)
    metrics.update(0.5 + 0.1 * (members - 0.5), truth)
    result = metrics.compute()
    assert result["ratio"] < 0.15
    assert min(result["ranks"][0], result["ranks"][-1]) > 4 * max(result["ranks"][1:-1])


def test_missing_values_change_no_score_elsewhere() -> None:
    members, truth = drawn(2, 3, 2, 1, 6, 10)
    hidden, other = truth.clone(), members.clone()
    hidden[..., 6:] = torch.nan
    other[..., 6:] = torch.nan
    results = []
    for ensemble, fact in ((members, hidden), (other, hidden), (members[..., :6], truth[..., :6])):
        metrics = EnsembleMetrics(2, 3)
        metrics.update(ensemble, fact)
        results.append(metrics.compute())
    assert results[0] == results[1]
    for name, values in results[2]["per_lead"].items():
        # A sum over a frame has the size of the whole frame.
        size = 60 / 36 if "crps" in name else 1
        assert results[0]["per_lead"][name] == pytest.approx([size * value for value in values]), name
    assert results[0]["ranks_per_lead"] == [pytest.approx(row) for row in results[2]["ranks_per_lead"]]


def test_a_prediction_that_is_nan_has_no_score() -> None:
    members, truth = drawn(2, 3, 2, 1, 4, 4)
    members[0, 1, 1, 0, 0, 0] = torch.nan
    metrics = EnsembleMetrics(2, 3)
    metrics.update(members, truth)
    for name, (first, second) in metrics.compute()["per_lead"].items():
        assert math.isfinite(first) and math.isnan(second), name


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="members must be a positive integer; got 0"):
        EnsembleMetrics(2, 0)
    metrics, (members, truth) = EnsembleMetrics(2, 3), drawn(2, 3, 2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"ensemble must be \(B, 3, L, C, H, W\); got \(2, 2, 2, 1, 4, 4\)"):
        metrics.update(members[:, :2], truth)
    with pytest.raises(ValueError, match="true frames go from"):
        metrics.update(members, truth + 5)
    with pytest.raises(ValueError, match="call update before compute"):
        metrics.compute()


def test_ranks_among_members_that_are_nan_are_nan() -> None:
    metrics = EnsembleMetrics(n_lead=2, members=4)
    ensemble, truth = torch.rand(3, 4, 2, 1, 4, 4), torch.rand(3, 2, 1, 4, 4)
    ensemble[1, 2, 0, 0, 1, 1] = torch.nan
    metrics.update(ensemble, truth)
    first, second = metrics.compute()["ranks_per_lead"]
    assert all(math.isnan(share) for share in first)
    assert sum(second) == pytest.approx(1)
