"""Are missing values left out of every metric, of the loss and of what a model reads, and is their share said?"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

pytest.importorskip("lightning", reason="the training program's packages are not installed")
pytest.importorskip("h5py", reason="the training program's packages are not installed")

from layouts import noise, write_h5, write_pngs
from own_data import Own, own, refusal
from PIL import Image
from skimage.metrics import structural_similarity
from trainings import TINY

from motionrnn_ext import cli
from motionrnn_ext.data import DATASETS, DataSet, FrameSequences, MovingMNISTNpz, RadarH5, open_clips
from motionrnn_ext.data.images import resized, resized_known
from motionrnn_ext.evaluation.clips import read_frames
from motionrnn_ext.evaluation.scores import BASELINE, score
from motionrnn_ext.metrics import (
    FVD,
    EventMetrics,
    FrameMetrics,
    Meter,
    Protocol,
    Values,
    frame_gdl,
    frame_mae,
    frame_mse,
    frame_psnr,
    frame_snr,
    frame_ssim,
    openstl_metrics,
    repeat_last_frame,
)
from motionrnn_ext.models import MotionRNN
from motionrnn_ext.training.batches import ClipDataModule
from motionrnn_ext.training.config import Config
from motionrnn_ext.training.module import Training
from motionrnn_ext.training.train import train


def clips(seed: int = 0, shape: tuple[int, ...] = (3, 2, 1, 16, 16)) -> tuple[Tensor, Tensor]:
    """A prediction and a truth with about a twentieth of its values missing, in patches and alone."""
    g = torch.Generator().manual_seed(seed)
    prediction, truth = torch.rand(shape, generator=g), torch.rand(shape, generator=g)
    truth[0, 0, 0, 2:5, 9:12] = math.nan
    truth[1, 1, 0, 15, 15] = math.nan
    truth[2, 0, 0, :, :4] = math.nan
    return prediction, truth


# ---- Metrics


def by_hand(guess: Tensor, fact: Tensor) -> dict[str, float]:
    """Return the metrics of one frame (C, H, W), value by value in float64."""
    guess, fact = guess.double().numpy(), fact.double().numpy()
    known = ~np.isnan(fact)
    error = (guess - fact)[known]
    edges = []
    for axis in (1, 2):
        edge = np.abs(np.abs(np.diff(fact, axis=axis)) - np.abs(np.diff(guess, axis=axis)))
        edges += [edge[~np.isnan(edge)], edge.size]
    ssim, windows = [], np.lib.stride_tricks.sliding_window_view(known[0], (7, 7))
    for i, j in np.argwhere(windows.all((2, 3))):
        pair = (x[0, i : i + 7, j : j + 7] for x in (fact, guess))
        ssim.append(structural_similarity(*pair, data_range=1.0))
    return {
        "mse": np.square(error).mean() * fact.size,
        "mae": np.abs(error).mean() * fact.size,
        "psnr": -10 * np.log10(np.square(error).mean()),
        "snr": 10 * np.log10(np.square(fact[known]).sum() / np.square(error).sum()),
        "gdl": np.concatenate(edges[::2]).mean() * sum(edges[1::2]),
        "ssim": float(np.mean(ssim)),
    }


def test_every_frame_metric_is_that_of_the_known_values() -> None:
    prediction, truth = clips()
    measures = {
        "mse": frame_mse, "mae": frame_mae, "psnr": frame_psnr, "snr": frame_snr, "gdl": frame_gdl, "ssim": frame_ssim,
    }  # fmt: skip
    for name, measure in measures.items():
        found = measure(prediction, truth)
        for b, lead in np.ndindex(3, 2):
            wanted = by_hand(prediction[b, lead], truth[b, lead])[name]
            assert float(found[b, lead]) == pytest.approx(wanted, rel=1e-5), (name, b, lead)


@pytest.mark.parametrize("convention", ["float", "official", "openstl"])
def test_what_a_missing_value_hides_does_not_matter(convention: str) -> None:
    """Neither the prediction there nor a nan of it; where nothing is missing the numbers are those of before."""
    prediction, truth = clips()
    results = []
    for there in (0.0, 0.7, math.nan):
        meter = Meter(2, Protocol(convention, thresholds=(0.5,), values=Values(1.0)))
        meter.update(torch.where(truth.isnan(), there, prediction), truth)
        results.append(meter.compute())
    assert results[0] == results[1] == results[2]
    share = float(truth.isnan().double().mean())
    assert results[0]["missing"] == pytest.approx(share, abs=1e-12)
    assert f"{share:.3%} of the true values, which no metric counts" in results[0]["protocol"]["missing"]


def test_events_are_counted_where_the_truth_is_known() -> None:
    prediction, truth = clips()
    metrics = EventMetrics(2, (0.5,), Values(1.0))
    metrics.update(prediction, truth)
    known = ~truth.isnan()
    guess, fact = prediction >= 0.5, truth >= 0.5
    wanted = {"tp": guess & fact & known, "fp": guess & ~fact & known, "fn": ~guess & fact & known}
    found = metrics.compute()["counts"]["0.5"]
    for name, where in wanted.items():
        assert found[name] == where.sum((0, 2, 3, 4)).tolist(), name
    assert int((guess & ~fact).sum()) > sum(found["fp"])  # those at missing values are left out


def test_events_of_lead_times_without_any_value() -> None:
    """Left out of either mean, in the batches that lack them, and nan where all do."""
    prediction, truth = clips(shape=(3, 3, 1, 16, 16))
    truth[:2, 0] = math.nan
    truth[:, 2] = math.nan
    metrics = EventMetrics(3, (0.5,), Values(1.0))
    for i in range(3):
        metrics.update(prediction[i : i + 1], truth[i : i + 1])
    only = EventMetrics(3, (0.5,), Values(1.0))
    only.update(prediction[2:], truth[2:])
    found, wanted = (m.compute()["per_batch"] for m in (metrics, only))
    for name, (first, second, third) in found["per_lead"].items():
        assert first == pytest.approx(wanted["per_lead"][name][0], rel=1e-12) and first > 0
        assert math.isnan(third) and found[name] == pytest.approx((first + second) / 2, rel=1e-12)
    assert metrics.compute()["missing"] == pytest.approx(float(truth.isnan().double().mean()), rel=1e-12)


def test_a_prediction_that_is_nan_has_no_events() -> None:
    prediction, truth = clips()
    prediction[0, 0, 0, 2, 9] = math.nan  # where the truth is missing: for nothing
    metrics = EventMetrics(2, (0.5,), Values(1.0))
    metrics.update(prediction, truth)
    assert math.isfinite(metrics.compute()["csi_0.5"])
    prediction[1, 1, 0, 3, 3] = math.nan
    metrics.update(prediction, truth)
    for result in (metrics.compute(), metrics.compute()["per_batch"]):
        for name in ("csi_0.5", "far_0.5"):
            first, second = result["per_lead"][name]
            assert math.isnan(result[name]) and math.isnan(second) and math.isfinite(first)


def test_frames_without_any_value_are_left_out_of_the_means() -> None:
    prediction, truth = clips()
    truth[1, 0] = math.nan
    truth[:, 1] = math.nan
    metrics = FrameMetrics(2, gdl=True)
    metrics.update(prediction, truth)
    result = metrics.compute()
    for name, measure in {"mse": frame_mse, "psnr": frame_psnr, "ssim": frame_ssim, "gdl": frame_gdl}.items():
        wanted = float(measure(prediction, truth)[[0, 2], 0].double().mean())
        assert result["per_lead"][name][0] == pytest.approx(wanted, rel=1e-6), name
        assert math.isnan(result["per_lead"][name][1]) and result[name] == result["per_lead"][name][0], name
    truth[:] = math.nan
    metrics = FrameMetrics(2)
    metrics.update(prediction, truth)
    assert math.isnan(metrics.compute()["mse"]) and metrics.compute()["missing"] == 1


def test_nan_of_a_prediction_is_not_taken_for_a_missing_value() -> None:
    prediction, truth = clips()
    prediction[0, 0, 0, 8, 8] = math.nan
    for convention in ("float", "uint8"):
        metrics = FrameMetrics(2, ssim=convention, psnr=convention)
        metrics.update(prediction, truth)
        for name, (first, second) in metrics.compute()["per_lead"].items():
            assert math.isnan(first) and math.isfinite(second), name


def test_the_video_network_sees_0_in_both_clips() -> None:
    seen: list[Tensor] = []

    def network(video: Tensor) -> Tensor:
        seen.append(video)
        return video.flatten(2)[:, 0, :5]

    prediction, truth = clips()
    fvd = FVD(network)
    fvd.update(prediction, truth)
    for video in seen:  # 16 pixels are 224: the middle of the patch is nobody else's
        assert video[0, :, 0, 49, 147].tolist() == [-1, -1, -1]
    assert math.isfinite(fvd.compute()["fvd"])
    fvd.update(torch.full_like(prediction, math.nan), truth)
    assert math.isnan(fvd.compute()["fvd"])


def test_the_report_of_openstl_and_the_baseline() -> None:
    prediction, truth = clips()
    report = openstl_metrics(prediction, truth)
    assert report["mse"] == pytest.approx(float(frame_mse(prediction, truth).mean()))
    assert all(map(math.isfinite, report.values()))
    truth[:, 1] = math.nan  # frames without any value are left out, as of `FrameMetrics`
    known = openstl_metrics(prediction[:, :1], truth[:, :1])
    assert openstl_metrics(prediction, truth) == pytest.approx(known, rel=1e-6)
    prediction[0, 0, 0, 8, 8] = math.nan
    assert all(map(math.isnan, openstl_metrics(prediction, truth).values()))
    prediction, truth = clips()
    last = repeat_last_frame(truth, 1)
    assert torch.equal(last[:, 0], truth[:, 0].nan_to_num(0))


# ---- Data


def test_a_resized_pixel_is_the_mean_of_known_ones() -> None:
    frames = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resized_known(frames, (8, 8)), resized(frames, (8, 8)))
    frames[0, :2, :2] = math.nan  # a whole pixel of 8x8
    frames[1, 4, 4] = math.nan  # a quarter of one
    frames[1, 8, 8:10] = frames[1, 9, 8] = math.nan  # three quarters
    small = resized_known(frames, (8, 8))
    assert math.isnan(small[0, 0, 0]) and math.isnan(small[1, 4, 4]) and int(small.isnan().sum()) == 2
    wanted = torch.stack([frames[1, 4, 5], frames[1, 5, 4], frames[1, 5, 5]]).mean()
    torch.testing.assert_close(small[1, 2, 2], wanted, rtol=0, atol=1e-6)


def test_no_data_codes_of_radar(tmp_path: Path) -> None:
    written = write_h5(tmp_path / "shanghai.h5")
    write_pngs(tmp_path / "png", ["train/a", "test/b"])
    options: dict[str, Any] = {"n_frames": 6, "image_size": (20, 24), "missing": 255}
    clip = RadarH5("train", tmp_path, **options)[1]
    stored = torch.from_numpy(written["train/1"][:6])[:, None]
    assert torch.equal(clip.isnan(), stored == 255) and clip.isnan().any()
    known = stored != 255
    assert torch.equal(clip[known], stored[known].float() / 255)
    clip = FrameSequences("train", tmp_path / "png", n_frames=6, image_size=(16, 16), missing=7)[0]
    assert torch.equal(clip[2, 0].isnan(), torch.from_numpy(noise(16, 16, seed=2) == 7))
    for code in (256, -1, 0.5, math.nan):
        refusal(lambda code=code: RadarH5("test", tmp_path, missing=code), "missing must be a stored value")


def test_stored_values_above_pixel_max_are_said_once(tmp_path: Path) -> None:
    write_h5(tmp_path / "shanghai.h5")
    data = RadarH5("train", tmp_path, n_frames=6, pixel_max=200)
    with pytest.warns(
        UserWarning,
        match=r"train/0: 2\d\.\d\d% of the values are outside of 0 to pixel_max 200: they go from 0 to 255",
    ) as seen:
        next(iter(DataLoader(Subset(data, [0, 1]), batch_size=2)))
    assert [warning.filename for warning in seen] == [__file__]
    covered = RadarH5("train", tmp_path, n_frames=6, image_size=(20, 24), pixel_max=254, missing=255)
    assert covered[0].nan_to_num(0).max() == 1  # without a warning, which would be an error here


def test_floats_with_nan_in_the_layout_of_moving_mnist(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).random((8, 1, 16, 16)).astype(np.float32)
    frames[1, 0, 3, 4] = np.nan
    spans = np.array([[[0, 2], [4, 2]], [[2, 2], [6, 2]]])
    np.savez(tmp_path / "moving-mnist-train.npz", input_raw_data=frames, clips=spans)
    options: dict[str, Any] = {"n_frames": 4, "image_size": (16, 16)}
    refusal(
        lambda: MovingMNISTNpz("train", tmp_path, **options)[0],
        "clip 0",
        "nan in 1 of 1,024",
        "(--missing nan)",
    )
    clip = MovingMNISTNpz("train", tmp_path, **options, missing=math.nan)[0]
    assert clip.isnan().nonzero().tolist() == [[1, 0, 3, 4]]
    frames[1, 0, 3, 4] = -99.0
    np.savez(tmp_path / "moving-mnist-train.npz", input_raw_data=frames, clips=spans)
    refusal(lambda: MovingMNISTNpz("train", tmp_path, **options)[0], "clip 0", "they go from -99 to 0.99")
    clip = open_clips("moving_mnist_npz", "train", root=tmp_path, **options, missing=-99)[0]
    assert clip.isnan().nonzero().tolist() == [[1, 0, 3, 4]]


def test_codes_of_a_data_set_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_ = torch.from_numpy(noise(6, 1, 16, 16, seed=3))
    own(monkeypatch, lambda clip, index: clip)
    clip = open_clips("mine", "train", root="x", missing=255)[3]
    assert torch.equal(clip.isnan(), bytes_ == 255) and clip.dtype == torch.float32
    assert torch.equal(clip[bytes_ < 255], (bytes_.float() / 255)[bytes_ < 255])
    own(monkeypatch, lambda clip, index: (clip.float() / 255).masked_fill(clip == 255, -9999))
    assert torch.equal(open_clips("mine", "train", root="x", missing=-9999)[3].isnan(), bytes_ == 255)
    own(monkeypatch, lambda clip, index: (clip.float() / 255).masked_fill(clip == 255, math.nan))
    refusal(
        lambda: open_clips("mine", "train", root="x"), "clip 0 of mine (train) have nan in", "(--missing nan)"
    )
    assert torch.equal(open_clips("mine", "train", root="x", missing=math.nan)[3].isnan(), bytes_ == 255)


def test_nan_beside_another_code_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own(monkeypatch, lambda clip, index: (clip.float() / 255).masked_fill(clip == 7, math.nan))
    count = int((torch.from_numpy(noise(6, 1, 16, 16)) == 7).sum())
    words = f"nan in {count} of 1,536 values; no data is declared as -99 (--missing): store -99 there too"
    refusal(lambda: open_clips("mine", "train", root="x", missing=-99), "clip 0 of mine (train)", words)
    frames = np.full((8, 1, 16, 16), 0.5, np.float32)
    frames[1, 0, 3, 4], frames[1, 0, 3, 5] = np.nan, -99
    spans = np.array([[[0, 2], [4, 2]], [[2, 2], [6, 2]]])
    np.savez(tmp_path / "moving-mnist-train.npz", input_raw_data=frames, clips=spans)
    options: dict[str, Any] = {"n_frames": 4, "image_size": (16, 16), "missing": -99}
    words = "nan in 1 of 1,024; no data is declared as -99"
    refusal(lambda: MovingMNISTNpz("train", tmp_path, **options)[0], "clip 0", words)
    np.save(tmp_path / "clip.npy", frames)
    words = "1 of 2,048 are nan (no data is declared as -99 (--missing): store -99 there too"
    refusal(lambda: read_frames(tmp_path / "clip.npy", missing=-99), words)


def test_a_data_set_that_marks_missing_values_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its floats are not compared with the code again: here 1 is the stored value that has no data, and 255 is full."""

    def opened(split: str, root: str, missing: float | None = None, **options: Any) -> Own:
        def marked(clip: Tensor, index: int) -> Tensor:
            return (clip.float() / 255).masked_fill(clip == missing, math.nan)

        return Own(marked, **options)

    entry = DataSet(
        "mine", opened, "files", image_size=(16, 16), n_input=3, n_output=3, settings=("missing",)
    )
    monkeypatch.setitem(DATASETS, "mine", entry)
    bytes_ = torch.from_numpy(noise(6, 1, 16, 16, seed=3))
    clip = open_clips("mine", "train", root="x", missing=1)[3]
    assert torch.equal(clip.isnan(), bytes_ == 1) and torch.equal(clip == 1, bytes_ == 255)
    assert clip.isnan().any() and (clip == 1).any()


def test_a_negative_code_marks_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    own(monkeypatch, lambda clip, index: clip)
    for code in (-1, 256):
        assert not open_clips("mine", "train", root="x", missing=code)[0].isnan().any()


def test_data_sets_without_missing_values(tmp_path: Path) -> None:
    roots = dict.fromkeys(("human36m", "human36m_openstl", "moving_mnist_npy"), tmp_path)
    for name in ("moving_digits", "radar_like", *roots):
        refusal(
            lambda name=name: open_clips(name, "test", root=roots.get(name), missing=255),
            f"{name} has no missing values; leave out",
        )
    refusal(lambda: Config(missing="none"), "missing must be 'nan' or a number; got 'none'")
    texts = [Config(missing=value).missing for value in (None, 255, 255.0, "255", math.nan, "nan", -9999)]
    assert texts == [None, "255", "255", "255", "nan", "nan", "-9999"]
    config = Config(missing=math.nan)
    config.write(tmp_path / "config.json")
    assert Config.read(tmp_path / "config.json") == config  # nan does not equal itself, the text does


def test_frames_of_ones_own(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((3, 8, 8)).astype(np.float32)
    array[1, 2, 3] = np.nan
    np.save(tmp_path / "clip.npy", array)
    refusal(
        lambda: read_frames(tmp_path / "clip.npy"),
        "1 of 192 are nan (no data? --missing nan), the others go from",
    )
    np.save(tmp_path / "all.npy", array * np.nan)
    with pytest.raises(ValueError, match=r"192 of 192 are nan \(no data\? --missing nan\)$"):
        read_frames(tmp_path / "all.npy")
    assert read_frames(tmp_path / "clip.npy", missing=math.nan).isnan().nonzero().tolist() == [[1, 0, 2, 3]]
    Image.fromarray(noise(16, 16)).save(tmp_path / "0.png")
    frames = read_frames(tmp_path, missing=255)
    assert torch.equal(frames[0, 0].isnan(), torch.from_numpy(noise(16, 16) == 255))


# ---- Training and scoring


def with_nan(clip: Tensor, index: int) -> Tensor:
    frames = clip.float() / 255
    frames[:, :, : 2 + index % 3, 5:9] = math.nan
    return frames


MINE = {"dataset": "mine", "root": "x", "missing": "nan"}


def test_the_loss_is_the_mean_over_known_values(monkeypatch: pytest.MonkeyPatch) -> None:
    own(monkeypatch, with_nan)
    module = Training(replace(TINY, **MINE, loss="l1+l2", l1_weight=0.25, sampling="none"))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    frames = torch.stack([with_nan(torch.from_numpy(noise(6, 1, 16, 16, seed=i)), i) for i in range(2)])
    found = module.training_step(frames, 0)
    found.backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    module.zero_grad()
    error = (module.model(frames.nan_to_num(0), 3) - frames[:, 1:])[~frames[:, 1:].isnan()]
    wanted = error.square().mean() + 0.25 * error.abs().mean()
    wanted.backward()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    for mine, parameter in zip(gradients, module.parameters()):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_declaration_without_missing_values_changes_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    own(monkeypatch, lambda clip, index: clip)
    frames = torch.rand(2, 6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    losses = []
    for missing in (None, "nan"):
        torch.manual_seed(0)
        module = Training(replace(TINY, **{**MINE, "missing": missing}))
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        losses.append(module.training_step(frames, 0))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


def test_models_and_baseline_are_given_0(monkeypatch: pytest.MonkeyPatch) -> None:
    own(monkeypatch, with_nan)
    data = open_clips("mine", "test", root="x", missing=math.nan)
    torch.manual_seed(0)
    model = MotionRNN("convlstm", 1, (8, 8), 2).eval()
    results = score({"m": model}, data, 3)
    frames = torch.stack([data[i] for i in range(8)])
    future = model.predict(frames[:, :3].nan_to_num(0), 3)
    known = ~frames[:, 3:].isnan()
    for label, guess in {
        "m": future.clamp(0, 1),
        BASELINE: frames[:, 2:3].nan_to_num(0).expand_as(future),
    }.items():
        errors = [
            (guess - frames[:, 3:])[b, t][known[b, t]].square().mean() * 256
            for b in range(8)
            for t in range(3)
        ]
        assert results[label]["mse"] == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5), label
        assert (
            results[label]["missing"]
            == results[label]["missing_given"]
            == pytest.approx(float(frames.isnan().double().mean()))
        )


def test_train_evaluate_and_predict_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own(monkeypatch, with_nan)
    out = tmp_path / "run"
    config = replace(TINY, **MINE, steps=2, val_every=1)
    config.write(tmp_path / "settings.json")
    command = ["train", "--config", str(tmp_path / "settings.json"), "--out", str(out), "--no-progress"]
    assert cli.main(command) == 0
    share = sum(float(clip.isnan().double().mean()) for clip in ClipDataModule(config).training) / 8  # type: ignore[attr-defined]
    assert (
        f"stored as nan: {share:.2%} of 8 training clips; the model reads 0 there" in capsys.readouterr().out
    )
    assert "train/missing" in (out / "metrics.csv").read_text()
    assert cli.main(["evaluate", str(out), "--pictures", "1"]) == 0
    shown = capsys.readouterr().out
    assert f"{share:.3%} of the given values are missing" in shown and "to predict, missing nan" in shown
    results = json.loads((out / "evaluation" / "metrics.json").read_text())
    assert results["missing"] == "nan"
    for model in results["models"].values():
        assert model["missing"] == pytest.approx(share) and math.isfinite(model["mse"])
    assert cli.main(["predict", str(out), "--clip", "1"]) == 0
    assert np.isfinite(np.load(out / "prediction" / "prediction.npy")).all()
    np.save(tmp_path / "clip.npy", with_nan(torch.from_numpy(noise(6, 1, 16, 16)), 0).numpy())
    assert (
        cli.main(["predict", str(out), "--frames", str(tmp_path / "clip.npy"), "--out", str(tmp_path / "p")])
        == 0
    )
    assert np.isfinite(np.load(tmp_path / "p" / "prediction.npy")).all()
    given = np.load(tmp_path / "clip.npy")[-config.n_input :]
    assert (
        f"{np.isnan(given).mean():.2%} of the given values are missing; the model" in capsys.readouterr().out
    )


def test_a_validation_that_knows_nothing_ends_the_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own(monkeypatch, lambda clip, index: clip.float() * math.nan)
    with pytest.raises(ValueError, match="validation after step 1 is nan; its true frames have no data"):
        train(replace(TINY, **MINE, steps=1), tmp_path / "run", progress=False)
