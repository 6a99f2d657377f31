"""Metrics against the formulas written out in NumPy, and against numbers of the public programs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import GoldenCase, golden_cases
from torch import Tensor

from motionrnn_ext.metrics import (
    FrameMetrics,
    frame_mae,
    frame_mse,
    frame_psnr,
    frame_ssim,
    plain_table,
    repeat_last_frame,
    table_rows,
)


def clips(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A prediction that leaves [0, 1] in places, and the truth, float64."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(shape, generator=generator, dtype=torch.float64)
    return truth + 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64), truth


def expected(prediction: Tensor, truth: Tensor) -> dict[str, np.ndarray]:
    """The module's formulas, per lead time."""
    p, y = np.clip(prediction.numpy(), 0, 1), truth.numpy()
    pixels = (2, 3, 4)
    return {
        "mse": ((y - p) ** 2).sum(pixels).mean(0),
        "mae": np.abs(y - p).sum(pixels).mean(0),
        "psnr": (10 * np.log10(1 / ((y - p) ** 2).mean(pixels))).mean(0),
        "ssim": np.array(
            [
                [np.mean([ssim(a, b) for a, b in zip(*f, strict=True)]) for f in zip(*c, strict=True)]
                for c in zip(y, p, strict=True)
            ]
        ).mean(0),
    }


def ssim(x: np.ndarray, y: np.ndarray, size: int = 7, data_range: float = 1.0) -> float:
    """Mean SSIM of two (H, W) images over all whole windows, with sample (co)variances."""
    a, b = (np.lib.stride_tricks.sliding_window_view(image, (size, size)) for image in (x, y))
    axes, n = (2, 3), size * size
    mean_a, mean_b = a.mean(axes), b.mean(axes)
    var_a, var_b = a.var(axes, ddof=1), b.var(axes, ddof=1)
    cov = ((a * b).mean(axes) - mean_a * mean_b) * n / (n - 1)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    value = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return float((value / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


@pytest.mark.parametrize("shape", [(3, 4, 1, 16, 20), (2, 3, 3, 9, 7)])
def test_formulas(shape: tuple[int, ...]) -> None:
    prediction, truth = clips(*shape)
    metrics = FrameMetrics(shape[1])
    metrics.update(prediction, truth)
    result = metrics.compute()
    for name, values in expected(prediction, truth).items():
        assert result["per_lead"][name] == pytest.approx(values.tolist(), rel=1e-6), (
            name
        )  # psnr is float32 in places
        assert result[name] == pytest.approx(values.mean(), rel=1e-6)
    assert result["samples"] == shape[0]


@pytest.mark.parametrize("sizes", [(7,), (1, 6), (3, 3, 1), (1,) * 7])
def test_batch_sizes_do_not_matter(sizes: tuple[int, ...]) -> None:
    prediction, truth = clips(7, 2, 1, 12, 8)
    metrics = FrameMetrics(2)
    for p, y in zip(prediction.split(sizes), truth.split(sizes), strict=True):
        metrics.update(p, y)
    for name, values in expected(prediction, truth).items():
        assert metrics.compute()["per_lead"][name] == pytest.approx(values.tolist(), rel=1e-6), name
    metrics.reset()
    metrics.update(prediction[:1], truth[:1])
    assert metrics.compute()["samples"] == 1
    assert metrics.compute()["mse"] == pytest.approx(expected(prediction[:1], truth[:1])["mse"].mean())


def test_known_values() -> None:
    """Half-grey against black over 64x64: a square error of 1/4 a pixel."""
    truth = torch.zeros(1, 1, 1, 64, 64)
    metrics = FrameMetrics(1)
    metrics.update(truth + 0.5, truth)
    result = metrics.compute()
    assert result["mse"] == 1024
    assert result["mae"] == 2048
    assert result["psnr"] == pytest.approx(20 * math.log10(2), rel=1e-6)
    assert result["ssim"] == pytest.approx(1e-4 / (0.25 + 1e-4), rel=1e-9)


def test_predictions_are_clipped() -> None:
    truth = torch.tensor([0.0, 1.0]).repeat(1, 1, 1, 8, 4)
    beyond = FrameMetrics(1)
    beyond.update(truth * 9 - 4, truth)  # -4 and 5
    result = beyond.compute()
    assert (result["mse"], result["mae"], result["psnr"]) == (0, 0, math.inf)
    assert result["ssim"] == pytest.approx(1)


def test_lead_times_stay_apart() -> None:
    truth = torch.zeros(2, 3, 1, 8, 8)
    prediction = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1, 1) + truth
    metrics = FrameMetrics(3, ssim=None)
    metrics.update(prediction, truth)
    result = metrics.compute()
    assert result["per_lead"]["mse"] == [0, 16, 64]
    assert result["mse"] == pytest.approx(80 / 3)
    assert "ssim" not in result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_measured_in_float32(dtype: torch.dtype) -> None:
    prediction, truth = (x.to(dtype) for x in clips(2, 2, 1, 8, 8))
    metrics = FrameMetrics(2)
    metrics.update(prediction, truth)
    for name, values in expected(prediction.double(), truth.double()).items():
        assert metrics.compute()["per_lead"][name] == pytest.approx(values.tolist(), rel=1e-5), name


def test_nan_is_not_hidden() -> None:
    prediction, truth = clips(1, 2, 1, 8, 8)
    prediction[0, 1, 0, 3, 3] = math.nan
    metrics = FrameMetrics(2)
    metrics.update(prediction, truth)
    for name, (first, second) in metrics.compute()["per_lead"].items():
        assert math.isfinite(first), name
        assert math.isnan(second), name


def test_ssim_conventions_differ_as_stated() -> None:
    prediction, truth = clips(1, 2, 1, 16, 16)
    prediction.clamp_(0, 1)
    bytes_ = [np.floor(255 * x.float().numpy()).astype(np.float64)[0, :, 0] for x in (truth, prediction)]
    by_hand = [ssim(y, p, data_range=255) for y, p in zip(*bytes_, strict=True)]
    assert frame_ssim(prediction, truth, "uint8")[0].tolist() == pytest.approx(by_hand, rel=1e-9)
    pairs = list(zip(truth[0, :, 0].numpy(), prediction[0, :, 0].numpy(), strict=True))
    by_hand = [ssim(y, p, data_range=2.0) for y, p in pairs]
    assert frame_ssim(prediction, truth, "range2")[0].tolist() == pytest.approx(by_hand, rel=1e-9)
    assert (frame_ssim(prediction, truth, "range2") > frame_ssim(prediction, truth, "float")).all()
    assert frame_ssim(truth, truth, "gaussian")[0].tolist() == pytest.approx([1, 1])
    assert not torch.allclose(
        frame_ssim(prediction, truth, "gaussian"), frame_ssim(prediction, truth, "float")
    )


def test_baseline_repeats_the_last_input() -> None:
    frames = torch.rand(2, 5, 1, 4, 4)
    repeated = repeat_last_frame(frames, 3)
    assert repeated.shape == (2, 2, 1, 4, 4)
    assert all(torch.equal(repeated[:, i], frames[:, 2]) for i in range(2))
    for n_input in (0, 5):
        with pytest.raises(ValueError, match=f"1 <= n_input < T; got .*n_input {n_input}"):
            repeat_last_frame(frames, n_input)


def test_results_are_plain_numbers_and_tables() -> None:
    prediction, truth = clips(2, 3, 1, 8, 8)
    metrics = FrameMetrics(3)
    metrics.update(prediction, truth)
    result = metrics.compute()
    assert json.loads(json.dumps(result)) == result
    rows = table_rows(
        {"ours": {**result, "mse": 12.345, "ssim": 0.98765}, "other": {"mae": 1.0, "parameters": 1234}}
    )
    assert rows[0] == ["model", "MSE", "MAE", "PSNR", "SSIM"]
    assert (rows[1][1], rows[1][4]) == ("12.35", "0.9877")
    assert rows[2] == ["other", "-", "1.00", "-", "-"]
    rows = table_rows({"a": {"mse": 3.0, "n": 1234567}}, {"n": "parameters", "mse": "MSE"})
    assert plain_table(rows) == "model  parameters   MSE\n-----  ----------  ----\na       1,234,567  3.00"


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="n_lead must be a positive integer; got 0"):
        FrameMetrics(0)
    with pytest.raises(
        ValueError, match="ssim must be None or one of float, uint8, range2, gaussian; got 'byte'"
    ):
        FrameMetrics(3, ssim="byte")
    metrics, (prediction, truth) = FrameMetrics(3), clips(2, 3, 1, 8, 8)
    with pytest.raises(ValueError, match=r"\(B, 3, C, H, W\); got \(2, 3, 1, 8, 8\) and \(1, 3, 1, 8, 8\)"):
        metrics.update(prediction, truth[:1])
    with pytest.raises(ValueError, match=r"\(B, 3, C, H, W\); got \(2, 2, 1, 8, 8\)"):
        metrics.update(prediction[:, :2], truth[:, :2])
    with pytest.raises(ValueError, match=r"SSIM 'float' needs frames of at least 7x7; got \(6, 8\)"):
        metrics.update(prediction[..., :6, :], truth[..., :6, :])
    with pytest.raises(ValueError, match="call update before compute"):
        FrameMetrics(3).compute()


# Numbers of the public programs


@pytest.mark.parametrize("path", golden_cases("metrics_openstl_*.npz"))
def test_openstl_numbers(path: Path) -> None:
    """Its MSE and MAE are ours before clipping; its PSNR is ours; its SSIM is the convention "range2"."""
    case = GoldenCase(path)
    prediction, truth = case.group("in")["pred"], case.group("in")["true"]
    out = case.group("out")
    clipped = prediction.clamp(0, 1)
    assert frame_mse(prediction, truth).mean().item() == pytest.approx(
        out["metric_sn0/mse"].item(), rel=1e-12
    )
    assert frame_mae(prediction, truth).mean().item() == pytest.approx(
        out["metric_sn0/mae"].item(), rel=1e-12
    )
    # theirs is computed in float32; measured 6.3e-8
    assert frame_psnr(clipped, truth).mean().item() == pytest.approx(out["metric_sn0/psnr"].item(), rel=3e-7)
    assert frame_ssim(clipped, truth, "range2").mean().item() == pytest.approx(
        out["metric_sn0/ssim"].item(), rel=1e-12
    )
    metrics = FrameMetrics(truth.shape[1], ssim="range2")
    metrics.update(prediction, truth)
    assert metrics.compute()["psnr"] == pytest.approx(out["metric_sn0/psnr"].item(), rel=3e-7)
    assert metrics.compute()["ssim"] == pytest.approx(out["metric_sn0/ssim"].item(), rel=1e-12)


@pytest.mark.parametrize("path", golden_cases("metrics_trainer_*.npz"))
def test_official_trainers_numbers(path: Path) -> None:
    """Their MSE per frame is ours; their SSIM is the convention "uint8"."""
    case = GoldenCase(path)
    frames, out = case.group("in"), case.group("out")
    n_lead = len(out["mse_per_seq_frames"])
    metrics = FrameMetrics(n_lead, ssim="uint8")
    for truth, prediction in zip(frames["ims"], frames["gen"], strict=True):  # (B, T, H, W, C)
        metrics.update(*(clip[:, -n_lead:].movedim(-1, 2) for clip in (prediction, truth)))
    result = metrics.compute()
    assert result["per_lead"]["mse"] == pytest.approx(out["mse_per_seq_frames"].tolist(), rel=1e-12)
    assert result["mse"] * n_lead == pytest.approx(out["mse_per_seq"].item(), rel=1e-12)
    # printed with eight digits; measured 2.5e-8
    assert result["per_lead"]["ssim"] == pytest.approx(out["ssim_per_frame_frames"].tolist(), rel=1e-7)
    assert result["ssim"] == pytest.approx(out["ssim_per_frame"].item(), rel=1e-7)
