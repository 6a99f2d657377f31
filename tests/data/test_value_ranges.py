"""Are bytes scaled and values out of [0, 1] refused with their range, wherever frames come in?"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("lightning", reason="the training program's packages are not installed")
pytest.importorskip("h5py", reason="the training program's packages are not installed")

from commands import SMALL, fails, run
from layouts import noise
from own_data import own, refusal

from motionrnn_ext import visualize
from motionrnn_ext.data import open_clips
from motionrnn_ext.evaluation.scores import predict_clips, score
from motionrnn_ext.metrics import (
    CONVENTIONS,
    FVD,
    PRESETS,
    EventMetrics,
    FrameMetrics,
    Meter,
    Protocol,
    Values,
    frame_gdl,
    frame_lpips,
    frame_mae,
    frame_mse,
    frame_psnr,
    frame_snr,
    frame_ssim,
    load_lpips,
    load_video_network,
    openstl_metrics,
)
from motionrnn_ext.models import MotionRNN
from motionrnn_ext.pixels import as_floats, check_range

REFUSED = "true frames go from 0 to 255; they should be in [0, 1], or uint8"


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    """Bytes that hold 0 and 255."""
    return torch.from_numpy(noise(*shape, seed=0)), torch.from_numpy(noise(*shape, seed=1))


# ---- Metrics


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_bytes_are_scaled_by_the_metrics_of_frames(convention: str) -> None:
    prediction, truth = pair(2, 3, 1, 32, 32)
    floats = [(frames.double() / 255).float() for frames in (prediction, truth)]
    wanted = FrameMetrics(3, **CONVENTIONS[convention], gdl=True)
    wanted.update(*floats)
    for mixed in ((prediction, truth), (floats[0], truth), (prediction, floats[1])):
        found = FrameMetrics(3, **CONVENTIONS[convention], gdl=True)
        found.update(*mixed)
        for name, value in wanted.compute()["per_lead"].items():
            # floor(255 x) of x = byte / 255 in float32 is a byte less for some: bytes are exact
            assert found.compute()["per_lead"][name] == pytest.approx(
                value, rel=1e-2 if convention == "official" else 1e-6
            )
    exact = frame_psnr(prediction, truth, "uint8")
    error = (prediction.double() - truth.double()).square().mean((2, 3, 4))
    torch.testing.assert_close(exact.double(), 10 * (255**2 / error).log10(), rtol=1e-6, atol=0)


def test_bytes_are_scaled_by_networks_and_events(alexnet_weights: Path, video_network: Path) -> None:
    prediction, truth = pair(2, 2, 1, 32, 32)
    floats = [frames.float() / 255 for frames in (prediction, truth)]
    lpips = load_lpips(alexnet_weights)
    torch.testing.assert_close(
        frame_lpips(prediction, truth, lpips), frame_lpips(*floats, lpips), rtol=1e-5, atol=1e-6
    )
    found, wanted = (FVD(load_video_network(video_network)) for _ in range(2))
    context = torch.cat([prediction, prediction, truth], 1)
    found.update(context, context.flip(1))
    wanted.update(context / 255, context.flip(1) / 255)
    assert found.compute()["fvd"] == pytest.approx(wanted.compute()["fvd"], rel=1e-4, abs=1e-9)
    for name, values in PRESETS.items():
        both = [EventMetrics(2, (20.0, 30.0), values) for _ in range(2)]
        both[0].update(prediction, truth)
        both[1].update(*floats)
        if not values.bytes:  # which float32 cannot hold exactly
            assert both[0].compute() == both[1].compute(), name
    report = openstl_metrics(prediction, truth)
    assert report == pytest.approx(openstl_metrics(*floats), rel=1e-5)


def test_given_bytes_are_scaled_for_the_video_network(video_network: Path) -> None:
    prediction, truth = pair(2, 3, 1, 32, 32)
    results = []
    for scaled in (False, True):
        meter = Meter(3, Protocol(fvd=video_network, fvd_context=True))
        parts = [prediction, truth, truth.flip(1)]
        meter.update(*(part.float() / 255 if scaled else part for part in parts))
        results.append(meter.compute()["fvd"])
    assert results[0] == pytest.approx(results[1], rel=1e-4, abs=1e-9)


def test_true_frames_out_of_range_are_refused(alexnet_weights: Path, video_network: Path) -> None:
    prediction, truth = (frames.float() for frames in pair(2, 3, 1, 32, 32))
    lpips = load_lpips(alexnet_weights)
    for measure in (
        FrameMetrics(3).update,
        EventMetrics(3, (20.0,), Values(70.0)).update,
        Meter(3).update,
        FVD(load_video_network(video_network)).update,
        frame_mse, frame_mae, frame_psnr, frame_snr, frame_ssim, openstl_metrics,
        lambda guess, fact: frame_lpips(guess, fact, lpips),
    ):  # fmt: skip
        refusal(lambda measure=measure: measure(prediction / 255, truth), REFUSED)
    for change, found in (
        (lambda x: x / 255 * 2 - 1, "go from -1 to 1;"),
        (lambda x: x / 200, "go from 0 to 1.275;"),
        (lambda x: (x / 255).masked_fill(x == 7, math.inf), "go from 0 to inf;"),
        (lambda x: x.long(), "true frames are torch.int64; they should be floats in [0, 1], or uint8"),
        (lambda x: x.to(torch.complex64), "true frames are torch.complex64;"),
    ):
        refusal(lambda change=change: FrameMetrics(3).update(prediction / 255, change(truth)), found)
    metrics = FrameMetrics(3)
    for dtype in (torch.int64, torch.uint16):
        refusal(
            lambda dtype=dtype: metrics.update(prediction.to(dtype), truth / 255), f"predictions are {dtype};"
        )
    assert int(metrics.samples) == 0
    refusal(lambda: openstl_metrics(prediction.long(), truth / 255), "predictions are torch.int64;")
    events = EventMetrics(3, (20.0,), Values(70.0))
    refusal(lambda: events.update(prediction.long(), truth / 255), "predictions are torch.int64;")


def test_rounding_is_let_pass_and_bool_is_0_and_1() -> None:
    for frames in (
        torch.tensor([-9e-4, 1 + 9e-4]),
        torch.tensor([0.0, 1.0]).half(),
        torch.empty(0),
        torch.rand(3).bfloat16(),
    ):
        check_range(frames)
    for value in (-2e-3, 1 + 2e-3):
        with pytest.raises(ValueError, match="frames go from"):
            check_range(torch.tensor([0.5, value]))
    assert as_floats(torch.tensor([True, False])).tolist() == [1, 0]
    masks = torch.rand(2, 1, 3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    metrics = FrameMetrics(3)
    metrics.update(masks[0], masks[1])
    assert metrics.compute()["mse"] == pytest.approx(
        float((masks[0] ^ masks[1]).double().mean()) * 256, rel=1e-6
    )
    check_range(torch.full((3,), math.nan))  # all missing
    metrics = FrameMetrics(3)
    metrics.update(torch.empty(0, 3, 1, 16, 16), torch.empty(0, 3, 1, 16, 16))
    assert int(metrics.samples) == 0


def test_bool_and_integers_as_predictions() -> None:
    prediction, truth = pair(2, 3, 1, 16, 16)
    of_bool, of_floats = FrameMetrics(3), FrameMetrics(3)
    of_bool.update(prediction > 127, truth)
    of_floats.update((prediction > 127).float(), truth)
    assert of_bool.compute() == of_floats.compute()
    events = EventMetrics(3, (20.0,), Values(70.0))
    refusal(lambda: events.update(prediction.long(), truth), "predictions are torch.int64;")


def test_predictions_may_leave_the_range_but_not_by_far_without_a_word() -> None:
    prediction, truth = (frames.float() / 255 for frames in pair(2, 3, 1, 32, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrameMetrics(3).update(prediction * 3 - 1, truth)
    said = r"predictions leave \[-10, 10\], true frames lie in \[0, 1\]: are these in other units\?"
    for metrics in (FrameMetrics(3), EventMetrics(3, (0.5,), Values(1.0))):
        with pytest.warns(UserWarning, match=said):
            metrics.update(prediction * 255, truth)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")  # as Python has it outside of tests
        for factor in (100, 255, -20):
            FrameMetrics(3).update(prediction * factor, truth)
    assert len(shown) == 1
    meter = Meter(3, Protocol(thresholds=(0.5,), values=Values(1.0)))
    for call in (FrameMetrics(3), FrameMetrics(3).update, EventMetrics(3, (0.5,), Values(1.0)), meter.update):
        with pytest.warns(UserWarning, match=said) as found:
            call(prediction * 255, truth)
        assert {warning.filename for warning in found} == {__file__}
    for measure in (frame_mse, frame_mae, frame_psnr, frame_snr, frame_ssim, frame_gdl, openstl_metrics):
        with pytest.warns(UserWarning, match=said):
            measure(prediction * 255, truth)  # type: ignore[operator]


def test_predict_refuses_frames_out_of_range() -> None:
    model = MotionRNN("convlstm", 1, (4,), 2).eval()
    frames = pair(1, 3, 1, 8, 8)[0].float()
    for change, found in ((frames, "from 0 to 249;"), (frames / 255 - 9999, "from -9999 to -9998.0..;")):
        with pytest.raises(ValueError, match=f"frames go {found} they should be in"):
            predict_clips(model, change.clone(), 2)
    assert predict_clips(model, frames / 255 * 1.0005, 2).isfinite().all()


def test_thresholds_that_every_pixel_reaches_are_said() -> None:
    prediction, truth = (frames.float() / 255 for frames in pair(2, 3, 1, 32, 32))
    meter = Meter(3, Protocol(thresholds=(15.0, 20.0), values=PRESETS["echo"]))
    meter.update(prediction, truth)
    result = meter.compute()
    assert result["csi_15"] == 1
    assert (
        "a pixel is 15 or more, so that every one reaches the threshold 15: CSI is 1"
        in result["protocol"]["only events"]
    )


# ---- Models and pictures


def test_models_refuse_bytes_and_predict_scales_them() -> None:
    torch.manual_seed(0)
    model = MotionRNN("convlstm", 1, (8, 8), 2).eval()
    frames = pair(2, 4, 1, 16, 16)[0]
    for call in (
        lambda: model(frames, 2),
        lambda: model.predict(frames, 2),
        lambda: model.step(frames[:, 0]),
    ):
        with pytest.raises(
            TypeError, match=r"frames has dtype torch.uint8; it should be floating point, in \[0, 1\]"
        ):
            call()
    torch.testing.assert_close(
        predict_clips(model, frames, 3), predict_clips(model, frames.float() / 255, 3), rtol=0, atol=1e-6
    )
    half = MotionRNN("convlstm", 1, (8, 8), 2).eval().to(torch.float64)
    assert predict_clips(half, frames.double() / 255, 2).dtype == torch.float64
    clips: Any = list(frames)
    assert (
        score({"m": model}, clips, 2)["m"]
        == score({"m": model}, [clip.float() / 255 for clip in clips], 2)["m"]
    )  # type: ignore[arg-type]
    refusal(lambda: score({}, [clip.float() for clip in clips], 2), "the frames of clip 0 go from 0 to 255;")  # type: ignore[arg-type]


def test_pictures_of_bytes_are_those_of_floats(tmp_path: Path) -> None:
    frames = pair(4, 1, 16, 16)[0]
    trend = torch.randn(4, 18, 4, 4, generator=torch.Generator().manual_seed(0))
    for name, draw in {
        "strip": lambda path, x: visualize.strip(path, x, {"a": x[2:]}, 2),
        "gif": lambda path, x: visualize.gif(path, x, {"a": x[2:]}, 2),
        "arrows": lambda path, x: visualize.arrows(path, x, {"a": trend}),
        "taps": lambda path, x: visualize.taps(path, x, {"a": trend}),
        "motion_gif": lambda path, x: visualize.motion_gif(path, x, {"a": trend}, {"a": trend}),
    }.items():
        shown = [draw(tmp_path / f"{name}-{x.dtype}", x).read_bytes() for x in (frames, frames.float() / 255)]
        assert shown[0] == shown[1], name
        if name in ("strip", "gif"):
            with pytest.raises(ValueError, match="frames go from 0 to 255; they should be in"):
                draw(tmp_path / name, frames.float())
        else:
            with pytest.warns(UserWarning, match="frames leave .*, true frames lie in"):
                draw(tmp_path / name, frames.float())
    black = frames.float() / 255
    black[:, :, :8] = math.nan
    with Image.open(visualize.gif(tmp_path / "nan.gif", black, {"a": black[2:]}, 2)) as image:
        assert image.n_frames == 4


# ---- Data sets of one's own


def test_items_of_a_data_set_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own(monkeypatch, lambda clip, index: clip)
    clips = open_clips("mine", "train", root="x")
    assert torch.equal(clips[1], torch.from_numpy(noise(6, 1, 16, 16, seed=1)).float() / 255)
    assert len(list(clips)) == 8  # type: ignore[call-overload]
    for change, words in (
        (
            lambda clip, index: clip.float(),
            "the frames of clip 0 of mine (train) go from 0 to 255; they should be",
        ),
        (lambda clip, index: clip.float() / 127.5 - 1, "clip 0 of mine (train) go from -1 to 1;"),
        (lambda clip, index: clip.long(), "it gives torch.int64 (6, 1, 16, 16)"),
        (lambda clip, index: (clip, index), "it gives a tuple"),
    ):
        own(monkeypatch, change)
        refusal(lambda: open_clips("mine", "train", root="x"), words)
    own(monkeypatch, lambda clip, index: clip.float() / (1 if index == 5 else 255))
    clips = open_clips("mine", "val", root="x")
    assert clips[4].max() == 1
    refusal(lambda: clips[5], "the frames of clip 5 of mine (val) go from 0 to 255;")


@pytest.mark.parametrize("command", ["train", "evaluate", "ablate", "compare"])
def test_a_command_stops_with_the_clip_and_its_range(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, one_of_all = tmp_path / "out", command in ("train", "evaluate")  # else all clips are out of range
    options = [
        "--out",
        out,
        "--dataset",
        "mine",
        "--root",
        "x",
        *SMALL[:-1],
        "--hidden",
        "4",
        "4",
        "--image-size",
        "16",
        "16",
    ]
    progress = ["--no-progress"]
    if command == "evaluate":
        own(monkeypatch, lambda clip, index: clip)
        assert run("train", *options, *progress) == 0
        options, progress = [out], []
    own(monkeypatch, lambda clip, index: clip.float() / (255 if one_of_all and index != 1 else 1))
    line = fails(capsys, command, *options, *(progress if one_of_all else []))
    clip = {"train": "clip 1 of mine (train)", "evaluate": "clip 1 of mine (test)"}.get(
        command, "clip 0 of mine (train)"
    )
    assert f"the frames of {clip} go from 0 to 255; they should be in [0, 1], or uint8" in line
