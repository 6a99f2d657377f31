"""Scores of events against hand-made maps, second libraries, and both conventions' definitions."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("torchmetrics", reason="the training program's packages are not installed")

import numpy as np
from scipy.ndimage import uniform_filter
from sklearn.metrics import cohen_kappa_score, jaccard_score, precision_score, recall_score

from motionrnn_ext.metrics import (
    PRESET_THRESHOLDS,
    PRESETS,
    EventMetrics,
    FrameMetrics,
    Values,
    csi,
    event_counts,
    event_fractions,
    far,
    frequency_bias,
    fss,
    hss,
    pod,
)

UNIT = Values(1.0)


def maps(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(shape, generator=generator)
    return (truth + 0.3 * torch.randn(shape, generator=generator)), truth


def test_hand_made_map() -> None:
    truth = torch.tensor([[0.9, 0.9, 0.9], [0.1, 0.1, 0.1]]).view(1, 1, 1, 2, 3)
    prediction = torch.tensor([[0.5, 0.9, 0.4], [0.9, 0.1, 0.6]]).view(1, 1, 1, 2, 3)
    counts = event_counts(prediction, truth, (0.5, 0.8), UNIT)  # 0.5 itself reaches 0.5
    assert counts[..., 0, 0].T.tolist() == [[2, 2, 1, 1], [1, 1, 2, 2]]
    assert csi(counts).flatten().tolist() == [2 / 5, 1 / 4]
    assert far(counts).flatten().tolist() == [2 / 4, 1 / 2]
    assert pod(counts).flatten().tolist() == [2 / 3, 1 / 3]
    assert frequency_bias(counts).flatten().tolist() == [4 / 3, 2 / 3]
    assert hss(counts).flatten().tolist() == [0, 0]  # 2 * 1 = 2 * 1, and 1 * 2 = 1 * 2: as good as chance


def test_second_library() -> None:
    prediction, truth = maps(3, 2, 1, 9, 8)
    thresholds = (0.1, 0.5, 0.9)
    metrics = EventMetrics(2, thresholds, UNIT)
    metrics.update(prediction, truth)
    result = metrics.compute()
    for threshold in thresholds:
        for lead in range(2):
            fact, guess = ((x[:, lead].double() >= threshold).flatten().numpy() for x in (truth, prediction))
            assert result["per_lead"][f"csi_{threshold}"][lead] == pytest.approx(jaccard_score(fact, guess))
            wanted = 1 - precision_score(fact, guess)
            assert result["per_lead"][f"far_{threshold}"][lead] == pytest.approx(wanted)
            assert result["per_lead"][f"pod_{threshold}"][lead] == pytest.approx(recall_score(fact, guess))
            assert result["per_lead"][f"hss_{threshold}"][lead] == pytest.approx(
                cohen_kappa_score(fact, guess)
            )
            assert result["per_lead"][f"bias_{threshold}"][lead] == pytest.approx(guess.sum() / fact.sum())
            assert result["per_lead"][f"observed_{threshold}"][lead] == fact.sum()


@pytest.mark.parametrize("sizes", [(7,), (1, 6), (3, 3, 1), (1,) * 7])
def test_batch_sizes_matter_per_batch_only(sizes: tuple[int, ...]) -> None:
    prediction, truth = maps(7, 3, 1, 6, 5)
    whole, parts = (EventMetrics(3, (0.4, 0.95), UNIT) for _ in range(2))
    whole.update(prediction, truth)
    for p, y in zip(prediction.split(sizes), truth.split(sizes), strict=True):
        parts.update(p, y)
    one, other = whole.compute(), parts.compute()
    assert other["batches"] == len(sizes)
    for name in ("csi_0.4", "far_0.4", "csi_0.95", "far_0.95"):
        assert other[name] == pytest.approx(one[name], rel=1e-12), name
        assert one["per_batch"][name] == pytest.approx(one[name], rel=1e-12), (
            name
        )  # one batch is the test set
        assert (other["per_batch"][name] != pytest.approx(one[name], rel=1e-6)) == (len(sizes) > 1), name
    assert other["counts"] == one["counts"]
    # by its definition: the mean of each batch's own number
    means = []
    for p, y in zip(prediction.split(sizes), truth.split(sizes), strict=True):
        guess, fact = (np.asarray(x.double()) >= 0.4 for x in (p, y))
        axes = (0, 2, 3, 4)
        means.append((guess & fact).sum(axes) / (guess | fact).sum(axes))
    assert other["per_batch"]["per_lead"]["csi_0.4"] == pytest.approx(np.mean(means, 0).tolist(), rel=1e-12)


def test_where_nothing_happens() -> None:
    """Pooled leaves out the lead times without events; per batch counts them as 0."""
    truth, prediction = torch.zeros(2, 3, 1, 2, 2), torch.zeros(2, 3, 1, 2, 2)
    truth[0, 0], prediction[0, 0, 0, 0] = 1, 1  # lead 0: 2 hits and 2 misses, in the first sample alone
    truth[1, 1] = 1  # lead 1: 4 misses, nothing predicted; lead 2: nothing at all
    metrics = EventMetrics(3, [1], UNIT)
    for i in range(2):
        metrics.update(prediction[i : i + 1], truth[i : i + 1])
    result = metrics.compute()
    assert result["per_lead"]["csi_1"][:2] == [0.5, 0] and math.isnan(result["per_lead"]["csi_1"][2])
    assert result["csi_1"] == 0.25
    assert result["per_lead"]["far_1"][0] == 0 and all(map(math.isnan, result["per_lead"]["far_1"][1:]))
    assert result["far_1"] == 0
    assert result["per_batch"]["per_lead"]["csi_1"] == [0.25, 0, 0]
    assert result["per_batch"]["per_lead"]["far_1"] == [0, 0, 0]
    assert result["counts"] == {"1": {"tp": [2, 0, 0], "fp": [0, 0, 0], "fn": [2, 4, 0], "tn": [4, 4, 8]}}
    assert result["per_lead"]["observed_1"] == [4, 4, 0]
    assert result["per_lead"]["pod_1"][:2] == [0.5, 0] and result["per_lead"]["bias_1"][:2] == [0.5, 0]
    for name in ("pod_1", "bias_1", "hss_1"):
        assert math.isnan(result["per_lead"][name][2]), name
    assert result["bias_1"] == 0.25
    metrics.reset()
    metrics.update(torch.zeros(1, 3, 1, 2, 2), torch.zeros(1, 3, 1, 2, 2))
    assert math.isnan(metrics.compute()["csi_1"]) and metrics.compute()["per_batch"]["csi_1"] == 0


def test_values_of_the_presets() -> None:
    byte = torch.arange(256, dtype=torch.uint8)
    for frames in (
        byte,
        byte.double() / 255,
        byte.float() / 255 + 1e-3,
    ):  # truncation takes a part of a byte off
        torch.testing.assert_close(
            PRESETS["echo"](frames), (byte.double() + 30) / 2, rtol=0, atol=0, equal_nan=False
        )
    for level, first in zip(PRESET_THRESHOLDS["echo"], (10, 30, 50, 70), strict=True):
        assert (PRESETS["echo"](byte) >= level).nonzero()[0].item() == first
    unit = torch.tensor([-1.0, 0.0, 0.25, 1.0, 2.0])
    assert PRESETS["shanghai"](unit).tolist() == [0, 0, 22.5, 90, 90]
    assert PRESETS["hko7"](unit).tolist() == [-10, -10, 7.5, 60, 60]
    assert PRESETS["hko7"](byte)[[0, 51, 255]].tolist() == pytest.approx([-10, 4, 60])


def test_bytes_are_truncated_only_if_asked() -> None:
    frames = torch.full((1, 1, 1, 2, 2), 100.9 / 255)
    counts = [
        event_counts(frames, frames, [100.5], Values(255.0, bytes=is_bytes)) for is_bytes in (False, True)
    ]
    assert [count[0].item() for count in counts] == [4, 0]


@pytest.mark.parametrize("values", [UNIT, Values(1.0, bytes=True)])
def test_nan_is_no_event(values: Values) -> None:
    truth = torch.ones(1, 1, 1, 2, 2)
    counts = event_counts(truth * math.nan, truth, [0.5], values)
    assert counts.flatten().tolist() == [0, 0, 4, 0]


def test_results_are_plain_numbers() -> None:
    metrics = EventMetrics(2, (0.2, 0.5), UNIT, (1, 3), per_clip=True)
    metrics.update(*maps(2, 2, 1, 4, 4))
    result = metrics.compute()
    assert json.loads(json.dumps(result)) == result
    kinds = ["pod_{}", "far_{}", "csi_{}", "hss_{}", "bias_{}", "fss_{}_1px", "fss_{}_3px"]
    names = {kind.format(threshold) for kind in kinds for threshold in (0.2, 0.5)}
    assert set(result) == names | {"per_lead", "per_batch", "counts", "batches", "missing", "per_clip"}
    assert set(result["per_lead"]) == names | {"observed_0.2", "observed_0.5"}
    assert set(result["per_batch"]) == {"csi_0.2", "csi_0.5", "far_0.2", "far_0.5", "per_lead"}


# ---- FSS


def fss_by_hand(guess: np.ndarray, fact: np.ndarray, scale: int) -> float:
    """FSS of clips (N, H, W) by another library's windows."""
    shares = [uniform_filter(x.astype(float), (0, scale, scale), mode="constant") for x in (guess, fact)]
    return 1 - ((shares[0] - shares[1]) ** 2).sum() / (shares[0] ** 2 + shares[1] ** 2).sum()


@pytest.mark.parametrize("sizes", [(5,), (2, 3)])
def test_fss_by_another_librarys_windows(sizes: tuple[int, ...]) -> None:
    prediction, truth = maps(5, 2, 1, 12, 9, seed=1)
    scales = (1, 3, 5, 31)
    metrics = EventMetrics(2, (0.5, 0.9), UNIT, scales)
    for p, y in zip(prediction.split(sizes), truth.split(sizes), strict=True):
        metrics.update(p, y)
    result = metrics.compute()
    for threshold in (0.5, 0.9):
        for scale in scales:
            name = f"fss_{threshold}_{scale}px"
            wanted = [
                fss_by_hand(
                    *(np.asarray(x[:, lead, 0].double()) >= threshold for x in (prediction, truth)), scale
                )
                for lead in range(2)
            ]
            assert result["per_lead"][name] == pytest.approx(wanted, abs=1e-12), name
            assert result[name] == pytest.approx(np.mean(wanted), abs=1e-12)
    csi_one = np.array(result["per_lead"]["csi_0.9"])
    assert result["per_lead"]["fss_0.9_1px"] == pytest.approx((2 * csi_one / (1 + csi_one)).tolist())


def test_fss_of_pysteps() -> None:
    spatial = pytest.importorskip("pysteps.verification.spatialscores", reason="pysteps is not installed")
    prediction, truth = maps(1, 1, 1, 24, 20, seed=2)
    metrics = EventMetrics(1, (0.7,), UNIT, (1, 3, 9))
    metrics.update(prediction, truth)
    result = metrics.compute()
    for scale in (1, 3, 9):
        wanted = spatial.fss(
            prediction[0, 0, 0].double().numpy(), truth[0, 0, 0].double().numpy(), 0.7, scale
        )
        assert result[f"fss_0.7_{scale}px"] == pytest.approx(wanted, abs=1e-9)


def test_a_displaced_event_is_found_in_a_wider_window() -> None:
    truth, prediction = torch.zeros(1, 1, 1, 9, 9), torch.zeros(1, 1, 1, 9, 9)
    truth[..., 4, 4], prediction[..., 4, 6] = 1, 1
    events = (prediction > 0, truth > 0, torch.ones_like(truth, dtype=torch.bool))
    scores = fss(event_fractions(*events, (1, 3, 5))).flatten().tolist()
    # windows of 3x3 share a column of 3 pixels of 9, windows of 5x5 three columns of 5
    assert scores == pytest.approx([0, 3 / 9, 15 / 25])


def test_missing_values_change_no_score_of_events_elsewhere() -> None:
    """What is predicted at missing pixels does not matter, and half a map without data is a map of half the size."""
    prediction, truth = maps(2, 2, 1, 9, 12, seed=3)
    hidden = truth.clone()
    hidden[..., 5:] = torch.nan
    other = prediction.clone()
    other[..., 5:] = 1 - other[..., 5:]
    results = []
    pairs = [(prediction, hidden), (other, hidden), (prediction[..., :5], truth[..., :5])]
    for guess, fact in pairs:
        metrics = EventMetrics(2, (0.5,), UNIT, (1, 3, 9), per_clip=True)
        metrics.update(guess, fact)
        results.append(metrics.compute())
        results[-1].pop("missing")
    assert results[0] == results[1]
    for name in ("pod", "far", "csi", "hss", "bias", "fss", "observed"):
        for key, values in results[2]["per_lead"].items():
            if key.startswith(name):
                assert results[0]["per_lead"][key] == pytest.approx(values, abs=1e-12), key
    assert results[0]["per_clip"] == results[2]["per_clip"]


def test_counts_of_every_clip_add_up() -> None:
    prediction, truth = maps(5, 3, 1, 6, 5)
    metrics = EventMetrics(3, (0.4, 0.9), UNIT, per_clip=True)
    for p, y in zip(prediction.split(2), truth.split(2), strict=True):
        metrics.update(p, y)
    result = metrics.compute()
    for threshold in (0.4, 0.9):
        clips = np.array(result["per_clip"][f"csi_{threshold}"])  # (5, 3, 3)
        wanted = [result["counts"][f"{threshold}"][kind] for kind in ("tp", "fp", "fn")]
        assert clips.sum(0).tolist() == wanted
        one = event_counts(prediction[3:4], truth[3:4], (threshold,), UNIT)[:3, 0, 0]
        assert clips[3].tolist() == one.tolist()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_bad_arguments_are_named() -> None:
    for scale in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="scale must be a positive number; got"):
            Values(scale)
    with pytest.raises(ValueError, match="offset must be a finite number; got nan"):
        Values(1.0, math.nan)
    for thresholds in ((), (1, 1.0), (math.nan,), "20", 20, None, ("a",)):
        with pytest.raises(ValueError, match="thresholds must be one or more different, finite numbers; got"):
            EventMetrics(2, thresholds, UNIT)
    with pytest.raises(ValueError, match="n_lead must be a positive integer; got 0"):
        EventMetrics(0, (1,), UNIT)
    with pytest.raises(
        TypeError, match=r"values is 90.0; it should be a Values, such as PRESETS\['shanghai'\]"
    ):
        EventMetrics(2, (1,), 90.0)  # type: ignore[arg-type]
    for scales in ((2,), (3, 3), (0,), (-1,), (3.0,), "3", 3):
        with pytest.raises(ValueError, match="scales of FSS must be different, odd numbers of pixels; got"):
            EventMetrics(2, (1,), UNIT, scales)  # type: ignore[arg-type]
    metrics, (prediction, truth) = EventMetrics(2, (1,), UNIT), maps(2, 2, 1, 4, 4)
    with pytest.raises(TypeError, match="truth is a ndarray; it should be a torch.Tensor"):
        metrics.update(prediction, truth.numpy())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(B, 2, C, H, W\); got \(2, 1, 1, 4, 4\)"):
        metrics.update(prediction[:, :1], truth[:, :1])
    with pytest.raises(ValueError, match="call update before compute"):
        metrics.compute()


@pytest.mark.parametrize("scale", [50, 55, 60, 70, 90, 95, 100])
def test_a_pixel_at_the_threshold_reaches_it(scale: int) -> None:
    stored = torch.arange(scale + 1).view(1, 1, 1, 1, -1)
    frames = stored.float() / scale
    thresholds = range(5, scale, 5)
    tp, _, fn, _ = event_counts(frames, frames, thresholds, Values(scale))
    assert (tp + fn)[:, 0, 0].tolist() == [int((stored >= threshold).sum()) for threshold in thresholds]


@pytest.mark.parametrize(
    ("metrics", "options"),
    [(FrameMetrics, {"ssim": None}), (EventMetrics, {"thresholds": (0.5,), "values": UNIT})],
)
def test_clips_of_several_processes_follow_each_other(metrics: Any, options: dict[str, Any]) -> None:
    # Two processes with the same clips.
    twice = {"distributed_available_fn": lambda: True, "dist_sync_fn": lambda values, group: [values, values]}
    alone, joined = (metrics(2, per_clip=True, **options, **how) for how in ({}, twice))
    for n in (2, 1):
        frames = torch.rand(2, n, 2, 1, 8, 8)
        alone.update(*frames)
        joined.update(*frames)
    wanted = {name: 2 * clips for name, clips in alone.compute()["per_clip"].items()}
    assert joined.compute()["per_clip"] == wanted
