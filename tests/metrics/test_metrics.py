"""Metrics of frames against the formulas written out in NumPy, and against a second library."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import image_gradients

from motionrnn_ext.metrics import (
    CONVENTIONS,
    FrameMetrics,
    Values,
    event_counts,
    frame_gdl,
    frame_mae,
    frame_mse,
    frame_psnr,
    frame_snr,
    frame_ssim,
    heading,
    openstl_metrics,
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
        "gdl": sum(
            np.abs(np.abs(np.diff(y, axis=axis)) - np.abs(np.diff(p, axis=axis))).sum(pixels)
            for axis in (3, 4)
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
    metrics = FrameMetrics(shape[1], gdl=True)
    metrics.update(prediction, truth)
    result = metrics.compute()
    assert metrics.names == tuple(expected(prediction, truth))
    for name, values in expected(prediction, truth).items():
        assert result["per_lead"][name] == pytest.approx(values.tolist(), rel=1e-6), (
            name
        )  # psnr is float32 in places
        assert result[name] == pytest.approx(values.mean(), rel=1e-6)
    assert result["samples"] == shape[0]


@pytest.mark.parametrize("sizes", [(7,), (1, 6), (3, 3, 1), (1,) * 7])
def test_batch_sizes_do_not_matter(sizes: tuple[int, ...]) -> None:
    prediction, truth = clips(7, 2, 1, 12, 8)
    metrics = FrameMetrics(2, gdl=True)
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
    metrics = FrameMetrics(2, gdl=True)
    metrics.update(prediction, truth)
    for name, values in expected(prediction.double(), truth.double()).items():
        assert metrics.compute()["per_lead"][name] == pytest.approx(values.tolist(), rel=1e-5), name


def test_nan_is_not_hidden() -> None:
    prediction, truth = clips(1, 2, 1, 8, 8)
    prediction[0, 1, 0, 3, 3] = math.nan
    metrics = FrameMetrics(2, gdl=True)
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


def test_gdl_compares_the_sizes_of_edges() -> None:
    """A step of 1 along one column of 4 pixels' edges: 4 where it is missing, 0 where it is moved or turned round."""
    step = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 1, 4, 4)
    flat = torch.zeros_like(step)
    assert frame_gdl(flat, step).item() == 4
    assert frame_gdl(step.mT, step).item() == 8  # edges across instead of along
    assert frame_gdl(1 - step, step).item() == 0
    assert frame_gdl(step + 0.5, step).item() == 0


def test_gdl_agrees_with_another_librarys_gradients() -> None:
    prediction, truth = clips(2, 3, 2, 9, 7)
    edges = [image_gradients(frames.flatten(0, 1)) for frames in (prediction, truth)]
    wanted = sum((abs(a) - abs(b)).abs().sum((1, 2, 3)) for a, b in zip(*edges, strict=True))
    torch.testing.assert_close(frame_gdl(prediction, truth), wanted.view(2, 3))


def test_psnr_of_bytes() -> None:
    prediction, truth = clips(2, 3, 1, 9, 7)
    p, y = (np.floor(255 * np.clip(frames.numpy(), 0, 1)) for frames in (prediction, truth))
    wanted = 10 * np.log10(255**2 / ((y - p) ** 2).mean((2, 3, 4)))
    assert frame_psnr(prediction, truth, "uint8").numpy() == pytest.approx(wanted, rel=1e-6)
    # less than one byte apart, and equal after truncation
    assert frame_psnr(torch.full((1, 1, 1, 2, 2), 0.501), torch.full((1, 1, 1, 2, 2), 0.5), "uint8").isinf()


def test_conventions() -> None:
    """A convention's name gives the same as its parts."""
    prediction, truth = clips(2, 3, 1, 9, 8)
    clipped = prediction.clamp(0, 1)
    wanted = {
        "float": (clipped, "float", "float"),
        "official": (clipped, "uint8", "uint8"),
        "openstl": (prediction, "float", "range2"),
    }
    assert set(wanted) == set(CONVENTIONS)
    for name, (summed, psnr, ssim_convention) in wanted.items():
        metrics = FrameMetrics(3, **CONVENTIONS[name])
        metrics.update(prediction, truth)
        result = metrics.compute()
        assert result["mse"] == pytest.approx(frame_mse(summed, truth).mean().item(), rel=1e-12), name
        assert result["mae"] == pytest.approx(frame_mae(summed, truth).mean().item(), rel=1e-12), name
        assert result["psnr"] == pytest.approx(
            frame_psnr(clipped, truth, psnr).double().mean().item(), rel=1e-12
        )
        ssim_mean = frame_ssim(clipped, truth, ssim_convention).mean().item()
        assert result["ssim"] == pytest.approx(ssim_mean, rel=1e-12), name
        assert (result["psnr_convention"], result["ssim_convention"]) == (psnr, ssim_convention)
        assert result["clipped"] == (name != "openstl")


def test_openstl_report() -> None:
    prediction, truth = clips(2, 3, 2, 9, 8)
    p, y = prediction.numpy(), truth.numpy()
    report, normed = (openstl_metrics(prediction, truth, spatial_norm=on) for on in (False, True))
    assert report["mse"] == pytest.approx(((y - p) ** 2).mean((0, 1)).sum(), rel=1e-12)
    assert normed["mae"] == pytest.approx(np.abs(y - p).mean(), rel=1e-12)
    assert normed["rmse"] == pytest.approx(np.sqrt(((y - p) ** 2).mean()), rel=1e-12)
    noise = (y - p.clip(0, 1)) ** 2
    wanted = (10 * np.log10((y**2).sum((2, 3, 4)) / noise.sum((2, 3, 4)))).mean()
    assert report["snr"] == normed["snr"] == pytest.approx(wanted, rel=1e-9)
    assert frame_snr(prediction.clamp(0, 1), truth).mean().item() == report["snr"]


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
    rows = table_rows({"a": {"mse": math.nan, "mae": None, "psnr": math.inf}})
    assert rows[1] == ["a", "nan", "-", "inf"]
    headings = ["MSE \u2193", "SSIM \u2191", "CSI 20 \u2191", "FAR 0.5 \u2193", "parameters"]
    assert [heading(name) for name in ("mse", "ssim", "csi_20", "far_0.5", "parameters")] == headings
    rows = table_rows({"a": {"mse": 3.0, "n": 1234567}}, {"n": "parameters", "mse": "MSE"})
    assert plain_table(rows) == "model  parameters   MSE\n-----  ----------  ----\na       1,234,567  3.00"


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_bad_arguments_are_named() -> None:
    assert FrameMetrics(np.int64(3)).n_lead == 3
    with pytest.raises(ValueError, match="n_lead must be a positive integer; got True"):
        FrameMetrics(True)
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
    with pytest.raises(ValueError, match="psnr must be one of float, uint8; got 'byte'"):
        FrameMetrics(3, psnr="byte")
    with pytest.raises(ValueError, match="call update before compute"):
        FrameMetrics(3).compute()


MEASURES = {
    "mse": frame_mse,
    "mae": frame_mae,
    "psnr": frame_psnr,
    "snr": frame_snr,
    "ssim": frame_ssim,
    "gdl": frame_gdl,
    "openstl": openstl_metrics,
    "events": lambda prediction, truth: event_counts(prediction, truth, [0.5], Values(1.0)),
}


@pytest.mark.parametrize("name", MEASURES)
def test_frames_of_another_shape_are_named(name: str) -> None:
    """A truth of fewer clips or lead times would be spread over the others."""
    _, truth = clips(2, 3, 1, 8, 8)
    for prediction, fact in ((truth[0, 0], truth[0, 0]), (truth, truth[:1]), (truth, truth[:, :1])):
        with pytest.raises(ValueError) as error:
            MEASURES[name](prediction, fact)
        shapes = f"{tuple(prediction.shape)} and {tuple(fact.shape)}"
        assert str(error.value) == f"prediction and truth must both be (B, L, C, H, W); got {shapes}"
    with pytest.raises(TypeError, match="prediction is a ndarray; it should be a torch.Tensor"):
        MEASURES[name](truth.numpy(), truth)


@pytest.mark.parametrize("shape", [(0, 3, 1, 8, 8), (2, 0, 1, 8, 8)])
def test_no_frames_have_no_scores(shape: tuple[int, ...]) -> None:
    nothing = torch.rand(shape)
    for name, measure in MEASURES.items():
        if name == "openstl":
            with pytest.raises(
                ValueError, match=r"there is nothing to average: frames have shape \(\d, \d, 1"
            ):
                measure(nothing, nothing)
        else:
            assert measure(nothing, nothing).shape[-2:] == shape[:2], name
