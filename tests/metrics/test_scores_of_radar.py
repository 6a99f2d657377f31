"""Scores of events, ensembles and the balanced loss on real radar frames, against second computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("torchmetrics", reason="the training program's packages are not installed")
pytest.importorskip("h5py", reason="h5py is not installed")

from real_data import real
from scipy.ndimage import uniform_filter
from sklearn.metrics import cohen_kappa_score, jaccard_score, recall_score

from motionrnn_ext.data import open_clips
from motionrnn_ext.metrics import EnsembleMetrics, EventMetrics, Values
from motionrnn_ext.training import losses

DBZ = 52.5


@pytest.fixture(scope="module")
def frames() -> tuple[Tensor, Tensor]:
    """Return 4 clips of the last given frame, 4 times, and of the 4 that follow; (4, 4, 1, 64, 64) each."""
    clips = open_clips("shanghai_h5", "test", root=real("radar_trentino"), n_frames=5, image_size=(64, 64))
    found = torch.stack([clips[i] for i in (0, 20, 40, 59)])
    return found[:, :1].expand(-1, 4, -1, -1, -1), found[:, 1:]


def test_events_and_windows(frames: tuple[Tensor, Tensor]) -> None:
    metrics = EventMetrics(4, (15.0, 25.0), Values(DBZ), (3, 9))
    metrics.update(*frames)
    result = metrics.compute()["per_lead"]
    for threshold in (15, 25):
        for lead in range(4):
            guess, fact = (x[:, lead].double().numpy() * DBZ >= threshold for x in frames)
            assert result[f"observed_{threshold}"][lead] == fact.sum()
            assert result[f"csi_{threshold}"][lead] == pytest.approx(
                jaccard_score(fact.ravel(), guess.ravel())
            )
            assert result[f"pod_{threshold}"][lead] == pytest.approx(
                recall_score(fact.ravel(), guess.ravel())
            )
            wanted = cohen_kappa_score(fact.ravel(), guess.ravel())
            assert result[f"hss_{threshold}"][lead] == pytest.approx(wanted)
            f, o = (uniform_filter(x.astype(float), (0, 0, 9, 9), mode="constant") for x in (guess, fact))
            fss = 1 - ((f - o) ** 2).sum() / (f**2 + o**2).sum()
            assert result[f"fss_{threshold}_9px"][lead] == pytest.approx(fss, abs=1e-12)
    assert result["observed_15"][0] > 100, "the clips are dry"


def test_pixels_without_data_change_no_other(frames: tuple[Tensor, Tensor]) -> None:
    guess, fact = frames
    hidden = fact.clone()
    hidden[..., 40:] = torch.nan
    results = []
    for prediction, truth in ((guess, hidden), (guess[..., :40], fact[..., :40])):
        metrics = EventMetrics(4, (15.0,), Values(DBZ), (9,))
        metrics.update(prediction, truth)
        results.append(metrics.compute()["per_lead"])
    for name, values in results[0].items():
        assert values == pytest.approx(results[1][name], abs=1e-12), name


def test_crps_of_displaced_frames(frames: tuple[Tensor, Tensor]) -> None:
    guess, fact = frames
    members = torch.stack([guess.roll((i, -i), (-2, -1)) for i in range(4)], 1)
    metrics = EnsembleMetrics(4, 4)
    metrics.update(members, fact)
    x, y = members.double().numpy(), fact.double().numpy()
    pairs = np.abs(x[:, :, None] - x[:, None]).sum((1, 2))
    crps = np.abs(x - y[:, None]).mean(1) - pairs / 32
    assert metrics.compute()["per_lead"]["crps"] == pytest.approx(crps.sum((2, 3, 4)).mean(0).tolist())


def test_the_balanced_loss_counts_rain_by_its_rate(frames: tuple[Tensor, Tensor]) -> None:
    guess, fact = frames
    found = losses.balanced(guess, fact, losses.levels_of((0.0, DBZ), (200.0, 1.6)))
    error, rate = (
        (guess - fact).double().numpy(),
        (10 ** (fact.double().numpy() * DBZ / 10) / 200) ** (1 / 1.6),
    )
    weights = 1 + (rate >= 2) + 3 * (rate >= 5) + 5 * (rate >= 10) + 20 * (rate >= 30)
    wanted = (weights * (error**2 + np.abs(error))).mean()
    assert (found.total / found.number).item() == pytest.approx(wanted, rel=1e-5)
    assert weights.max() > 1, "no pixel has a weight of its own"
