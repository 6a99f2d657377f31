"""Our metrics give the numbers that the public programs gave: every recorded one, by the convention named for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden import GoldenCase, golden_cases
from torch import Tensor

pytest.importorskip("torchmetrics", reason="the training program's packages are not installed")

from motionrnn_ext.metrics import (
    CONVENTIONS,
    PRESET_THRESHOLDS,
    PRESETS,
    EventMetrics,
    FrameMetrics,
    csi,
    event_counts,
    far,
    frame_psnr,
    frame_ssim,
    openstl_metrics,
)

# The programs compute PSNR, and OpenSTL's report of float32 frames, in float32; the trainers print eight
# digits of float32 means (measured 1.1e-7).
PRINTED = 5e-7
TOLERANCE = {"psnr": 3e-7, "PSNR_255": 3e-7, "PSNR_minmax": 3e-7}


@pytest.mark.parametrize("path", golden_cases("metrics_openstl_*.npz"))
def test_openstl(path: Path) -> None:
    case = GoldenCase(path)
    prediction, truth = case.group("in")["pred"], case.group("in")["true"]
    out, found = case.group("out"), openstl_numbers(case, prediction, truth)
    assert set(found) == set(out)
    for name, value in found.items():
        tolerance = 2e-6 if "f32" in name else TOLERANCE.get(name.split("/")[-1], 1e-12)
        torch.testing.assert_close(
            value, out[name], rtol=tolerance, atol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def openstl_numbers(case: GoldenCase, prediction: Tensor, truth: Tensor) -> dict[str, Tensor]:
    mean, std = case.meta["mean"], case.meta["std"]
    normalised = [(frames - mean) / std for frames in (prediction, truth)]
    reports = {
        "metric_sn0": openstl_metrics(prediction, truth),
        "metric_sn1": openstl_metrics(prediction, truth, spatial_norm=True),
        "metric_denorm": openstl_metrics(*(frames * std + mean for frames in normalised)),
        "metric_f32": openstl_metrics(prediction.float(), truth.float()),
    }
    found = {f"{report}/{name}": value for report, names in reports.items() for name, value in names.items()}
    found = {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
    for name in ("metric_f32/rmse", "metric_f32/snr"):  # not recorded
        del found[name]
    # OpenSTL's other two functions, on what is not clipped: SSIM of each channel by itself, PSNR of all frames as one
    channels = [frames.flatten(1, 2)[:, :, None] for frames in (prediction, truth)]  # (B, T*C, 1, H, W)
    found["SSIM_cv2_255"] = frame_ssim(*channels, "gaussian").view(prediction.shape[:3])
    whole = [frames.flatten(0, 2)[None, None] for frames in (prediction, truth)]  # (1, 1, B*T*C, H, W)
    found["PSNR_255"] = found["PSNR_minmax"] = frame_psnr(*whole)[0, 0]
    return found


@pytest.mark.parametrize("path", golden_cases("metrics_openstl_*.npz"))
def test_openstl_convention(path: Path) -> None:
    """The accumulating metric by the convention's name gives the report's numbers, in batches of any size."""
    case = GoldenCase(path)
    prediction, truth = case.group("in")["pred"], case.group("in")["true"]
    metrics = FrameMetrics(truth.shape[1], **CONVENTIONS["openstl"])
    for i in range(len(truth)):
        metrics.update(prediction[i : i + 1], truth[i : i + 1])
    result, out = metrics.compute(), case.group("out")
    for name in ("mse", "mae", "psnr", "ssim"):
        wanted = out[f"metric_sn0/{name}"].item()
        assert result[name] == pytest.approx(wanted, rel=TOLERANCE.get(name, 1e-12)), name


@pytest.mark.parametrize("path", golden_cases("metrics_trainer_*.npz"))
def test_official_trainers(path: Path) -> None:
    """Return what the trainers' test loops print: per frame, over batches, and the mean of that."""
    case = GoldenCase(path)
    out = case.group("out")
    found = trainer_numbers(case, n_lead=len(out["mse_per_seq_frames"]))
    stubs = {"lpips_per_frame", "lpips_per_frame_frames"}  # recorded without a network
    assert set(out) - stubs <= set(found)
    for name in set(out) - stubs:
        tolerance = 1e-12 if name.startswith("mse") or name in ("csi", "far") else PRINTED
        torch.testing.assert_close(found[name], out[name], rtol=tolerance, atol=0)


def trainer_numbers(case: GoldenCase, n_lead: int) -> dict[str, Tensor]:
    inputs = case.group("in")
    metrics = FrameMetrics(n_lead, **CONVENTIONS["official"])
    events = EventMetrics(n_lead, PRESET_THRESHOLDS["echo"], PRESETS["echo"])
    last = []
    for truth, prediction in zip(inputs["ims"], inputs["gen"], strict=True):  # (B, T, H, W, C)
        frames = [clip[:, -n_lead:].movedim(-1, 2) for clip in (prediction, truth)]
        metrics.update(*frames)
        events.update(*frames)
        last.append(frame_psnr(*frames, "uint8")[:, -1].double().mean())
    result, scores = metrics.compute(), events.compute()["per_batch"]
    printed = {"ssim": result, "psnr": result, **{name: scores for name in scores if name.startswith("csi")}}
    found = {"mse_per_seq": result["mse"] * n_lead, "mse_per_seq_frames": result["per_lead"]["mse"]}
    for name, numbers in printed.items():
        theirs = name.replace("_", "") + "_per_frame"  # csi_20 -> csi20_per_frame
        found |= {theirs: numbers[name], f"{theirs}_frames": numbers["per_lead"][name]}
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
    return {**tensors, "batch_psnr_lastframe": torch.stack(last), **counted(inputs)}


def counted(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """CSI and FAR of bytes at other levels, each first index a batch: 0 where nothing happens."""
    if "csi_levels" not in inputs:
        return {}
    maps = (inputs[f"csi_{which}_u8"].to(torch.uint8).movedim(-1, 2) for which in ("pred", "true"))
    levels = inputs["csi_levels"].tolist()
    counts = event_counts(*maps, levels, PRESETS["echo"]).sum(3).mT  # (3, batch, level)
    return {"csi": csi(counts).nan_to_num(0), "far": far(counts).nan_to_num(0)}
