"""Do `predict` and `evaluate` with --members make the ensembles of the model, and score them?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the training program's packages are not installed")

from trainings import TINY, run

from motionrnn_ext import cli
from motionrnn_ext.evaluation.clips import held_out, held_out_clip
from motionrnn_ext.evaluation.scores import BASELINE, predict_clips
from motionrnn_ext.metrics import EnsembleMetrics
from motionrnn_ext.training.runs import load_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensembles") / "run"
    run(replace(TINY, steps=2, val_every=2), folder)
    return folder


def test_predict_writes_the_members_beside_the_prediction(trained: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "out", tmp_path / "plain"
    command = ["predict", str(trained), "--clip", "1", "--n-output", "2"]
    assert cli.main([*command, "--members", "4", "--noise", "0.3", "--out", str(out)]) == 0
    assert cli.main([*command, "--out", str(plain)]) == 0
    members, prediction = np.load(out / "members.npy"), np.load(out / "prediction.npy")
    assert members.shape == (4, 2, 1, 16, 16) and members.dtype == np.float32
    assert np.array_equal(prediction, np.load(plain / "prediction.npy"))
    assert not (plain / "members.npy").exists()
    loaded = load_run(trained)
    frames = held_out_clip(loaded.config, 1, 5)[None, :3]
    wanted = predict_clips(loaded.model, frames, 2, members=4, noise=0.3)[0]
    assert members == pytest.approx(wanted.numpy(), abs=1e-6)
    assert (out / "strip.png").stat().st_size > (plain / "strip.png").stat().st_size


def test_evaluate_scores_the_ensembles(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"evaluate {trained} --clips 5 --batch-size 2 --pictures 0 --members 3 --out {tmp_path / 'out'}"
    assert cli.main(command.split()) == 0
    shown = capsys.readouterr().out
    assert "CRPS ↓" in shown and "fair CRPS ↓" in shown and "spread/skill → 1" in shown
    assert "share of true values above k members" in shown
    assert "3 members with noise of 1 times the root mean square of the hidden maps" in shown
    models = json.loads((tmp_path / "out" / "metrics.json").read_text())["models"]
    loaded = load_run(trained)
    clips = held_out(loaded.config, 5)
    frames = torch.stack([clips[i] for i in range(5)])
    metrics = EnsembleMetrics(3, 3)
    for i in (0, 2, 4):
        part = frames[i : i + 2]
        metrics.update(predict_clips(loaded.model, part[:, :3], 3, seed=i, members=3), part[:, 3:])
    wanted = metrics.compute()
    label = "MotionRNN-ConvLSTM"
    for name in ("crps", "faircrps", "spread", "rmse", "ratio"):
        assert models[label][name] == pytest.approx(wanted[name], rel=1e-5), name
        assert models[label]["per_lead"][name] == pytest.approx(wanted["per_lead"][name], rel=1e-5), name
    assert models[label]["ranks"] == pytest.approx(wanted["ranks"], abs=1e-6)
    # A single forecast is an ensemble of one, whose CRPS is its MAE.
    assert models[BASELINE]["crps"] == pytest.approx(models[BASELINE]["mae"], rel=1e-5)
    assert "spread" not in models[BASELINE]


def test_the_other_metrics_stay_those_of_the_prediction(trained: Path, tmp_path: Path) -> None:
    found = []
    for name, options in (("a", []), ("b", ["--members", "2", "--noise", "1"])):
        command = ["evaluate", str(trained), "--clips", "3", "--pictures", "0", "--out", str(tmp_path / name)]
        assert cli.main([*command, *options]) == 0
        found.append(json.loads((tmp_path / name / "metrics.json").read_text())["models"])
    for label, result in found[0].items():
        assert result["per_lead"].items() <= found[1][label]["per_lead"].items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--noise 0.2", "--noise is for ensembles: give --members too"),
        ("--members 2 --noise -1", "noise is -1.0; it should be a number of at least 0"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_bad_options(
    command: str,
    options: str,
    message: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([command, str(trained), "--out", str(tmp_path / "out"), *options.split()]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == f"motionrnn {command}: error: {message}"
