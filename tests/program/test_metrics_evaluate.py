"""The protocol of an evaluation: what is measured, what the program prints and writes of it, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("lightning", reason="the training program's packages are not installed")

from trainings import TINY

from motionrnn_ext import cli
from motionrnn_ext.evaluation.clips import held_out
from motionrnn_ext.evaluation.scores import BASELINE, predict_clips, score
from motionrnn_ext.evaluation.tables import print_protocol, print_results
from motionrnn_ext.metrics import (
    FVD,
    EventMetrics,
    FrameMetrics,
    Meter,
    Protocol,
    Values,
    frame_lpips,
    load_lpips,
    load_video_network,
    repeat_last_frame,
)
from motionrnn_ext.models import MotionRNN
from motionrnn_ext.training.runs import RunError, load_run

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.(script|load). is deprecated")
SETTINGS = replace(TINY, image_size=(32, 32), digit_size=16, n_input=2, steps=2, val_clips=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("metrics")
    SETTINGS.write(home / "settings.json")
    command = ["train", "--config", str(home / "settings.json"), "--out", str(home / "run"), "--no-progress"]
    assert cli.main(command) == 0
    return home / "run"


@pytest.fixture(scope="module")
def evaluated(
    trained: Path,
    alexnet_weights: Path,
    video_network: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The command with every metric."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    options = (
        f"--clips 5 --batch-size 2 --pictures 0 --ssim gaussian --thresholds 0 40 --value-scale 70"
        f" --value-offset -10 --fss 5 --lpips {alexnet_weights} --fvd {video_network} --fvd-context --out {out}"
    )
    assert cli.main(["evaluate", str(trained), *options.split()]) == 0
    return out


def test_every_metric_is_what_its_part_gives(
    evaluated: Path,
    trained: Path,
    alexnet_weights: Path,
    video_network: Path,
) -> None:
    run = load_run(trained)
    clips = held_out(run.config, 5)
    frames = torch.stack([clips[i] for i in range(5)])  # (5, 5, 1, 32, 32)
    given, truth = frames[:, :2], frames[:, 2:]
    models = json.loads((evaluated / "metrics.json").read_text())["models"]
    (label,) = (label for label, result in models.items() if "baseline" not in result)
    parts = [predict_clips(run.model, given[i : i + 2], 3, seed=i) for i in (0, 2, 4)]
    for name, future in {label: torch.cat(parts), BASELINE: repeat_last_frame(frames, 2)}.items():
        wanted, found = parts_of(future, truth, given, alexnet_weights, video_network), models[name]
        keys = "mse mae psnr ssim gdl lpips csi_0 csi_40 far_0 far_40 pod_40 hss_40 bias_40 fss_40_5px fvd"
        for key in keys.split():
            assert found[key] == approximately(wanted[key]), key
        assert set(found["per_lead"]) == set(wanted["per_lead"])
        for key, values in wanted["per_lead"].items():
            assert found["per_lead"][key] == [approximately(value) for value in values], key
        assert found["counts"] == wanted["counts"] and found["batches"] == 3
        for key in ("csi_0", "far_40"):
            assert found["per_batch"][key] == pytest.approx(wanted["per_batch"][key], rel=1e-9)


def parts_of(
    future: Tensor, truth: Tensor, given: Tensor, alexnet_weights: Path, network: Path
) -> dict[str, Any]:
    lpips = load_lpips(alexnet_weights)
    frames = FrameMetrics(3, "gaussian", gdl=True)
    frames.update(future, truth)
    events = EventMetrics(3, (0, 40), Values(70.0, -10.0), (5,))
    for i in (0, 2, 4):
        events.update(future[i : i + 2], truth[i : i + 2])
    video = FVD(load_video_network(network))
    video.update(torch.cat([given, future], 1), torch.cat([given, truth], 1))
    distances = frame_lpips(future, truth, lpips)
    result = {**frames.compute(), **events.compute(), "lpips": distances.mean().item(), **video.compute()}
    lead = {**frames.compute()["per_lead"], **events.compute()["per_lead"]}
    return {**result, "per_lead": {**lead, "lpips": distances.mean(0).tolist()}}


def approximately(value: float) -> Any:
    """JSON has no nan: null."""
    return None if value != value else pytest.approx(value, rel=1e-4, abs=1e-9)


def test_what_the_program_writes(evaluated: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((evaluated / "metrics.json").read_text())["models"]
    assert {"lead_time.png", "lead_time_events.png", "metrics.json"} == {p.name for p in evaluated.iterdir()}
    print_results(results, per_lead=True)
    print_protocol(results)
    shown = capsys.readouterr().out
    for text in (
        "GDL ↓",
        "LPIPS ↓",
        "FVD ↓",
        "CSI ↑",
        "FAR ↓ per batch",
        "FSS 5px ↑",
        "bias → 1",
        "events, value >= 40, pooled",
        "observed",
        f"{BASELINE}, 40",
    ):
        assert text in shown, text
    assert "…" not in shown  # nothing is cut short
    about = results[BASELINE]["protocol"]
    assert all(shown.count(sentence) == 1 for sentence in about.values())
    assert "SSIM 'gaussian'" in about["frames"] and "clipped to [0, 1]" in about["frames"]
    assert "events of 70 p -10 >= threshold" in about["events"] and "3 batches" in about["events"]
    assert "alexnet.pth" in about["lpips"] and "5 clips x 3 frames" in about["lpips"]
    for text in ("small.pt (3 features)", "5 clips of 5 frames", "given frames included", "32x32 resized"):
        assert text in about["fvd"], text


def test_without_options_frames_alone_are_measured(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(["evaluate", str(trained), "--clips", "2", "--pictures", "0", "--out", str(out)]) == 0
    result = json.loads((out / "metrics.json").read_text())["models"][BASELINE]
    assert set(result["per_lead"]) == {"mse", "mae", "psnr", "ssim", "gdl"}
    assert set(result["protocol"]) == {"frames", "data", "baselines"}
    assert (result["convention"], result["ssim_convention"]) == ("float", "float")
    assert not (out / "lead_time_events.png").exists()
    shown = capsys.readouterr().out
    assert "GDL" in shown and "CSI" not in shown and "FVD" not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--thresholds 20",
            "--thresholds needs what a pixel stands for: --values NAME, --value-scale S or --dbz",
        ),
        ("--value-scale 70", "values are for scores of events: give --thresholds too"),
        ("--values echo --value-scale 2", "--values names scale and offset; leave out --value-scale"),
        ("--fss 3", "fss_scales (--fss) are windows of events: give --thresholds too"),
        (
            "--thresholds 1 --value-scale 2 --fss 3 4",
            "the scales of FSS must be different, odd numbers of pixels; got (3, 4)",
        ),
        ("--value-scale -1 --thresholds 1", "scale must be a positive number; got -1.0"),
        ("--fvd-context", "fvd_context (--fvd-context) is for FVD, which needs a network: give --fvd too"),
        ("--lpips no.pth", "LPIPS weights no.pth cannot be read: No such file or directory"),
        ("--fvd no.pt", "FVD network no.pt cannot be read: there is no such file"),
    ],
)
def test_bad_options(
    options: str, message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(trained), "--clips", "1", "--out", str(tmp_path / "out"), *options.split()]
    assert cli.main(command) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("motionrnn evaluate: error: ") and message in line
    assert not (tmp_path / "out").exists()


def test_clips_too_short_for_the_video_network(
    trained: Path,
    video_network: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = f"evaluate {trained} --clips 2 --n-output 2 --fvd {video_network} --out {tmp_path / 'out'}"
    assert cli.main(command.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "small.pt cannot take clips of 2 frames (I3D needs 9 or more" in line


class Beyond(MotionRNN):
    """Predicts 1.5 everywhere: outside of [0, 1]."""

    def predict(self, frames: Tensor, n_future: int, **_: Any) -> Tensor:
        return frames.new_full((len(frames), n_future, *frames.shape[2:]), 1.5)


def test_openstl_measures_what_is_not_clipped() -> None:
    model = Beyond(**SETTINGS.model())
    clips = held_out(SETTINGS, 3)
    truth = torch.stack([clips[i][2:] for i in range(3)])
    for convention, predicted in (("openstl", 1.5), ("float", 1.0), ("official", 1.0)):
        result = score({"beyond": model}, clips, 2, protocol=Protocol(convention))["beyond"]
        wanted = (truth.double() - predicted).square().sum((2, 3, 4)).mean()
        assert result["mse"] == pytest.approx(wanted.item(), rel=1e-5), convention


@pytest.mark.parametrize(
    ("clips", "n_input", "message"),
    [
        ([], 2, "there are no clips to score; one or more are needed"),
        ([torch.rand(4, 1, 8, 8)], 4, "n_input must be from 1 to 3, as clips have 4 frames; got 4"),
        ([torch.rand(4, 1, 8, 8)], 0, "n_input must be from 1 to 3, as clips have 4 frames; got 0"),
    ],
)
def test_what_cannot_be_scored_is_named(clips: list[Tensor], n_input: int, message: str) -> None:
    with pytest.raises(RunError) as error:
        score({}, clips, n_input)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_a_model_that_diverged_has_no_score_rather_than_no_event(capsys: pytest.CaptureFixture[str]) -> None:
    """Predictions are nan from the second lead time on; no true value reaches 2."""
    truth = torch.rand(2, 3, 1, 8, 8)
    lost = truth.clone()
    lost[:, 1:] = torch.nan
    results = {}
    for label, prediction in {"lost": lost, "found": truth}.items():
        meter = Meter(3, Protocol(thresholds=(0.5, 2.0), values=Values(1.0)))
        meter.update(prediction, truth)
        results[label] = meter.compute()
    print_results(results, per_lead=True)
    shown = capsys.readouterr().out.replace("no event", "none").replace(", ", ",")
    rows = [[cell for cell in line.split() if cell.isascii()] for line in shown.splitlines()]
    cells = {row[0]: row[1:] for row in rows if row}
    # observed, POD, FAR, CSI, HSS and bias, then CSI and FAR per batch, 0 without events
    n = int((truth >= 0.5).sum())
    assert cells["lost,0.5"] == [str(n), *["nan"] * 7]
    assert cells["lost,2"] == ["0", *["nan"] * 7]
    assert cells["found,0.5"] == [str(n), "1.00", "0.0000", "1.00", "1.00", "1.00", "1.00", "0.0000"]
    assert cells["found,2"] == ["0", *["none"] * 5, "0.0000", "0.0000"]
    counts = (truth >= 0.5).sum((0, 2, 3, 4)).tolist()
    leads = [row for row in rows if row[:1] in (["t+1"], ["t+2"]) and len(row) == 7]
    first, second = ([f"t+{i}", str(counts[i - 1])] for i in (1, 2))
    right, none = (
        ["1.00", "0.0000", "1.00", "1.00", "1.00"],
        [["t+1", "0", *["none"] * 5], ["t+2", "0", *["none"] * 5]],
    )
    nan = ["nan"] * 5
    lost = [[*first, *right], [*second, *nan], none[0], ["t+2", "0", *nan]]
    assert leads == [*lost, [*first, *right], [*second, *right], *none]


def test_colours_reach_the_networks_red_first(alexnet_weights: Path) -> None:
    """Clips stored blue first have the LPIPS of the same clips stored red first."""
    red_first = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    protocol = Protocol(lpips=alexnet_weights)
    found = [
        score({}, clips, 2, protocol=protocol, colours=colours)[BASELINE]["lpips"]
        for clips, colours in ((red_first, "RGB"), (red_first.flip(2), "BGR"), (red_first.flip(2), "RGB"))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] != pytest.approx(found[2], rel=1e-3)


def test_thresholds_that_no_pixel_reaches_are_said_once(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = "--clips 1 --n-output 1 --pictures 0 --value-scale 90 --thresholds"
    for name, thresholds, warned in (("a", "200 95", True), ("b", "95 10", False)):
        command = f"evaluate {trained} --out {tmp_path / name} {values} {thresholds}"
        assert cli.main(command.split()) == 0
        shown = capsys.readouterr().out
        warning = "warning: no true pixel of the scored clips reaches the lowest threshold, 95: "
        assert shown.count(warning) == shown.count("warning") == int(warned)
    assert "1 clip, 1 lead time\n" in shown and "per batch: one batch, 0 without events" in shown
    assert "data: moving_digits, test, 1 clip of 2 given frames and 1 to predict, digits sklearn\n" in shown


def test_bad_protocols_are_named() -> None:
    with pytest.raises(ValueError, match="convention must be one of float, official, openstl; got 'ours'"):
        Protocol("ours")
    with pytest.raises(
        ValueError, match="ssim must be None or one of float, uint8, range2, gaussian; got 'x'"
    ):
        Protocol(ssim="x")
    with pytest.raises(ValueError, match="thresholds need values: what a pixel stands for"):
        Protocol(thresholds=(1.0,))


def test_context_is_asked_for(video_network: Path) -> None:
    meter = Meter(3, Protocol(fvd=video_network, fvd_context=True))
    frames = torch.rand(2, 3, 1, 8, 8)
    with pytest.raises(ValueError, match="fvd_context needs the frames that the model was given"):
        meter.update(frames, frames)
