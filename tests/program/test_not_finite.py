"""Does a training stop at the first number that is not finite, with finite checkpoints and a word on it?"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("lightning", reason="the training program's packages are not installed")

from trainings import BEST, LAST, TINY, assert_same_training, checkpoint, plan, run

from motionrnn_ext import cli
from motionrnn_ext.evaluation.scores import predict_clips
from motionrnn_ext.experiments import runner, table
from motionrnn_ext.files import read_json, write_json
from motionrnn_ext.metrics import table_rows
from motionrnn_ext.models import MotionRNN
from motionrnn_ext.training.module import Training
from motionrnn_ext.training.runs import NotFinite


def all_finite(folder: Path) -> list[int]:
    """The steps of a run's checkpoints, in which everything is finite."""
    steps = []
    for path in (folder / LAST, folder / BEST):
        content = checkpoint(path)
        states = [content["state_dict"], *(state["state"] for state in content["optimizer_states"])]
        tensors = [value for state in states for value in leaves(state)]
        assert tensors and all(tensor.isfinite().all() for tensor in tensors)
        steps.append(content["global_step"])
    return steps


def leaves(content: Any) -> list[Tensor]:
    if isinstance(content, dict):
        return [leaf for value in content.values() for leaf in leaves(value)]
    return [content] if isinstance(content, Tensor) else []


def broken(monkeypatch: pytest.MonkeyPatch, step: int, value: float = math.nan) -> None:
    """A loss that is not finite in optimiser step `step`, counted from 0."""
    true_step = Training.training_step

    def training_step(self: Training, frames: Tensor, index: int) -> Tensor:
        loss = true_step(self, frames, index)
        return loss * value if self.global_step == step else loss

    monkeypatch.setattr(Training, "training_step", training_step)


@pytest.mark.parametrize(("step", "value"), [(7, math.nan), (10, math.inf)])  # in between, and the last step
def test_it_stops_in_that_step_and_resumes_from_a_finite_checkpoint(
    step: int, value: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        broken(patch, step, value)
        with pytest.raises(NotFinite) as error:
            run(TINY, tmp_path / "run")
    kept = step // 3 * 3
    assert f"the norm of the gradient is nan in step {step + 1}; a lower lr, or a clip_norm" in str(
        error.value
    )
    assert str(error.value).endswith(
        f"the last finite checkpoint is {tmp_path / 'run' / LAST}, of step {kept}"
    )
    assert all_finite(tmp_path / "run")[0] == kept
    run(TINY, tmp_path / "run", resume=True)  # the reason is gone
    run(TINY, tmp_path / "unbroken")
    assert_same_training(tmp_path / "run", tmp_path / "unbroken")


def test_a_loss_that_overflows_while_its_gradient_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def loss(self: Training, prediction: Tensor, truth: Tensor, joined: bool = False) -> Any:
        return prediction.mean() + (1e38 if self.training and self.global_step == 4 else 0) * 10.0, len(truth)

    monkeypatch.setattr(Training, "_loss", loss)
    with pytest.raises(NotFinite, match=r"the loss is inf in step 5; .* of step 3$"):
        run(TINY, tmp_path / "run")
    assert all_finite(tmp_path / "run")[0] == 3


def test_a_gradient_whose_squares_overflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Adam's second moments would be infinite, and the weights never move again."""
    broken(monkeypatch, 4, 1e25)
    with pytest.raises(NotFinite, match="the norm of the gradient is inf in step 5"):
        run(replace(TINY, clip_norm=1.0), tmp_path / "run")
    assert all_finite(tmp_path / "run")[0] == 3


def test_the_last_step_breaks_the_weights(tmp_path: Path) -> None:
    """There is no later loss; the validation after it finds it, and nothing is written."""
    with pytest.raises(NotFinite, match="of the validation after step 1 is nan; a lower lr"):
        run(replace(TINY, lr=1e30, steps=1), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_validation_alone_that_is_nan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    true_step = Training.validation_step

    def validation_step(self: Training, frames: Tensor, index: int) -> None:
        true_step(self, frames * (math.nan if self.global_step == 6 and index == 1 else 1), index)

    monkeypatch.setattr(Training, "validation_step", validation_step)
    with pytest.raises(NotFinite, match=r"the loss of the validation after step 6 is nan; .* of step 3$"):
        run(TINY, tmp_path / "run")
    assert all_finite(tmp_path / "run") == [3, 3]


def test_a_weight_that_no_loss_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def spoil(self: Training) -> None:
        if self.global_step == 6:
            self.extra.data.fill_(math.inf)

    true_init = Training.__init__

    def init(self: Training, config: Any) -> None:
        true_init(self, config)
        self.extra = torch.nn.Parameter(torch.zeros(2))

    monkeypatch.setattr(Training, "__init__", init)
    monkeypatch.setattr(Training, "on_validation_start", spoil, raising=False)
    with pytest.raises(
        NotFinite, match=r"extra is not finite after step 6; the last finite checkpoint .* of step 3$"
    ):
        run(TINY, tmp_path / "run")
    assert all_finite(tmp_path / "run")[0] == 3


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ("1e30", "the loss is nan in step 2"),
        ("1e39", "lr must be at most 1e36, which weights in float32 can hold; got 1e+39"),
        ("inf", "lr must be a finite number"),
    ],
)
def test_the_program_says_it_in_a_line(
    lr: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TINY.write(tmp_path / "settings.json")
    folder, settings = str(tmp_path / "run"), str(tmp_path / "settings.json")
    assert cli.main(["train", "--config", settings, "--out", folder, "--no-progress", "--lr", lr]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in line and line.startswith("motionrnn train: error: ")


LOSS_IS_NAN = (
    "training",
    4,
    "self.train_loss = self.train_loss * math.nan",
    "the loss is nan in step 5",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "kind", "step", "line", "message"),
    [  # the gradient of the first two stays finite; so the other process would go on and wait for this one
        pytest.param(0, *LOSS_IS_NAN, marks=pytest.mark.nightly),
        (1, *LOSS_IS_NAN),
        (1, "training", 4, "loss = loss * math.nan", "the norm of the gradient is nan in step 5"),
        (1, "validation", 6, "self.loss.update(math.nan)", "the loss of the validation after step 6 is nan"),
    ],
)
def test_processes_stop_together_when_one_alone_is_not_finite(
    rank: int, kind: str, step: int, line: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "breaking.py").write_text(
        "import math\n"
        "from motionrnn_ext.training.module import Training\n"
        f"true_step = Training.{kind}_step\n"
        "def step(self, frames, index):\n"
        "    loss = true_step(self, frames, index)\n"
        f"    if self.global_step == {step} and self.global_rank == {rank}:\n"
        f"        {line}\n"
        "    return loss\n"
        f"Training.{kind}_step = step\n"
    )
    replace(TINY, devices=2, steps=6).write(tmp_path / "settings.json")
    command = [sys.executable, "-m", "motionrnn_ext.cli", "train", "--import", "breaking", "--no-progress"]
    command += ["--config", "settings.json", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert message in said and said.endswith("of step 3")
    assert all_finite(tmp_path / "run") == [3, 3]


# ---- What is predicted


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_that_are_not_finite_are_said(value: float) -> None:
    """Clipped to [0, 1] an infinite one would look like any other."""
    torch.manual_seed(0)
    model = MotionRNN("convlstm", 1, (4,), 2).eval()
    next(reversed(list(model.parameters()))).data.fill_(value)
    with pytest.warns(
        RuntimeWarning, match="predictions have values that are nan or infinite; are the model's"
    ) as said:
        predict_clips(model, torch.rand(1, 3, 1, 8, 8), 2)
    assert said[0].filename == __file__


# ---- What is written


def test_a_row_of_trainings_that_diverged_is_not_without_events() -> None:
    scores = {"mse": 1.0, "csi_20": math.nan}
    results = {
        table.BASELINE: scores,
        "other_baselines": {},
        "rows": {
            label: {
                "metrics": {name: {"mean": value, "spread": math.nan} for name, value in found.items()},
                "seconds_per_step": None,
                "parameters": 1,
                "macs": 1,
            }
            for label, found in {"quiet": scores, "lost": {"mse": math.nan, "csi_20": math.nan}}.items()
        },
    }
    _, *rows = table.table_rows(results, ["mse", "csi_20"])
    assert [row[1:3] for row in rows] == [
        ["1.00", "no event"],
        ["1.00", "no event"],
        ["not finite", "not finite"],
    ]


def test_nan_reads_otherwise_than_what_was_not_measured(tmp_path: Path) -> None:
    rows = table_rows({"a": {"mse": math.nan, "csi": math.nan, "psnr": math.inf}, "b": {"mse": None}})
    assert rows[1:] == [["a", "nan", "inf", "nan"], ["b", "-", "-", "-"]]
    assert table_rows({"a": {"mse": 1.5, "csi": math.nan}})[1] == ["a", "1.50", "no event"]
    content = {"mse": math.nan, "none": None, "runs/a": {"psnr": [1.5, math.inf, -math.inf]}, "whole": 3}
    path = write_json(tmp_path / "x.json", content)
    written = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"JSON has no {name}"))
    assert written["mse"] is None and written["runs/a"]["psnr"] == [1.5, None, None]
    assert written["not_finite"] == [
        {"at": ["mse"], "is": "nan"},
        {"at": ["runs/a", "psnr", 1], "is": "inf"},
        {"at": ["runs/a", "psnr", 2], "is": "-inf"},
    ]
    assert str(read_json(path)) == str(content)
    assert "not_finite" not in write_json(tmp_path / "y.json", {"mse": 1.0}).read_text()


def test_a_training_of_a_table_that_diverges_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    true_step = Training.training_step

    def training_step(self: Training, frames: Tensor, index: int) -> Tensor:
        loss = true_step(self, frames, index)
        return (
            loss * math.nan
            if self.config.highway and self.config.seed == 1 and self.global_step == 1
            else loss
        )

    with monkeypatch.context() as patch:
        patch.setattr(Training, "training_step", training_step)
        with pytest.raises(NotFinite) as error:
            runner.run_plan(plan(), tmp_path / "out", command="")
    why = "both, seed 1: the norm of the gradient is nan in step 2"
    assert str(error.value) == f"the table is written, but not every training stayed finite: {why}"
    text = (tmp_path / "out" / "table.md").read_text()
    assert (
        "not finite" in text and "whose training stopped: the norm of the gradient is nan in step 2." in text
    )
    results = read_json(tmp_path / "out" / "results.json")
    assert math.isnan(results["rows"]["both"]["metrics"]["mse"]["per_seed"][1])
    assert math.isfinite(results["rows"]["base"]["metrics"]["mse"]["mean"])
    assert results["differences"][0]["mse"]["verdict"] == table.NO_DIFFERENCE
    with pytest.raises(NotFinite):  # finished, and not run again
        runner.run_plan(plan(), tmp_path / "out", command="")
    assert "4 of them are finished" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "out" / "cells" / "both_seed_1.json").unlink()  # as one does to have it trained again
    assert math.isfinite(
        runner.run_plan(plan(), tmp_path / "out", command="")["rows"]["both"]["metrics"]["mse"]["mean"]
    )
