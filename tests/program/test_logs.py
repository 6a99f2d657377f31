"""Does --logger log a training's metrics, settings and folder, and does a resumed training continue that log?"""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("lightning", reason="the training program's packages are not installed")

from commands import fails
from log_services import Mlflow, RealMlflow, Wandb
from trainings import TINY, Stop, run, stop_in_step

from motionrnn_ext.training.config import Config
from motionrnn_ext.training.runs import RunError

SHORT = replace(TINY, steps=4, val_every=2)


def logged(folder: Path, metrics: list[tuple[int, str, float]], first: int = 0) -> None:
    """Compare what a service holds with the run's metrics.csv, from a step on."""
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    wanted = {
        (int(row["step"]), name): float(value)
        for row in rows
        for name, value in row.items()
        if name != "step" and value and int(row["step"]) >= first
    }
    found = {(step, name): value for step, name, value in metrics if step >= first}
    assert found.keys() - {key for key in found if key[1] == "epoch"} == wanted.keys() - {
        key for key in wanted if key[1] == "epoch"
    }
    for key, value in wanted.items():
        # Both are floats of Lightning's; a CSV file has all digits.
        assert found[key] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("package", [Wandb, Mlflow, RealMlflow])
def test_a_run_is_logged_and_resumed(package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = package(monkeypatch, tmp_path)
    name = "wandb" if package is Wandb else "mlflow"
    config, folder = replace(SHORT, logger=name, overrides={"alpha": 0.75}), tmp_path / "mine"
    with monkeypatch.context() as patch:
        stop_in_step(patch, 3)
        with pytest.raises(Stop):
            run(config, folder)
    ((identity, kept),) = service.runs.items()
    assert (folder / "logs" / f"{name}.txt").read_text() == f"{identity}\n"
    assert kept.status == "FAILED" and kept.project == "motionrnn"
    assert str(kept.settings["lr"]) == "0.001" and kept.settings["folder"] == str(folder)
    logged(folder, kept.metrics)

    run(replace(config, steps=6, sampling_until=SHORT.sampling_until * 4 / 6), folder, resume=True)
    ((same, kept),) = service.runs.items()
    assert same == identity and kept.status == "FINISHED"
    logged(folder, kept.metrics, first=2)  # the checkpoint was of step 2
    assert {step for step, key, _ in kept.metrics if key == "val/mse"} >= {1, 3, 5}
    assert str((kept.settings if name == "wandb" else kept.tags)["steps"]) == "6"
    assert "lr" not in kept.tags


def test_every_training_has_a_log_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Wandb(monkeypatch, tmp_path)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    for seed in (0, 1):
        run(replace(SHORT, steps=1, val_every=1, logger="wandb", seed=seed), tmp_path / str(seed))
    assert [kept.settings["seed"] for kept in service.runs.values()] == [0, 1]
    assert {kept.project for kept in service.runs.values()} == {"mine"}
    service.module.init(id=None, project="another", resume="allow", dir=tmp_path)
    with pytest.raises(
        RunError, match=r"a run of W&B is in progress in this program; end it by wandb.finish"
    ):
        run(replace(SHORT, logger="wandb"), tmp_path / "third")


def test_a_log_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, config = Mlflow(monkeypatch, tmp_path), replace(SHORT, steps=2, val_every=1, logger="mlflow")
    run(config, tmp_path / "run")
    service.runs.clear()
    later = replace(config, steps=3, sampling_until=config.sampling_until * 2 / 3)
    place = tmp_path / "run" / "logs" / "mlflow.txt"
    with pytest.raises(
        RunError, match=rf"logger mlflow: Run 'id0' not found; remove {place} to begin a new log"
    ):
        run(later, tmp_path / "run", resume=True)
    place.unlink()
    run(later, tmp_path / "run", resume=True)
    ((_, kept),) = service.runs.items()
    assert {step for step, key, _ in kept.metrics if key == "train/loss"} == {2}


def test_files_alone(tmp_path: Path) -> None:
    for name, is_there in (("csv", False), ("tensorboard", True)):
        folder = tmp_path / name
        run(replace(SHORT, steps=1, val_every=1, logger=name), folder)
        assert any((folder / "logs").rglob("events.out.tfevents*")) is is_there
        assert (folder / "metrics.csv").is_file()
    before = {name: value for name, value in Config().to_dict().items() if name != "logger"}
    assert Config.from_dict(before, "an older config.json").logger == "tensorboard"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_missing_package(
    name: str,
    is_folder: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where the working directory has a folder of that name, which Python imports."""
    monkeypatch.setitem(sys.modules, name, ModuleType(name) if is_folder else None)  # type: ignore[arg-type]
    line = fails(capsys, "train", "--logger", name, "--out", tmp_path / "run")
    assert line.endswith(f"logger {name} needs the package {name}: pip install {name}")
    assert not (tmp_path / "run").exists()


def test_wandb_itself_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in {"MODE": "offline", "SILENT": "true", "CONFIG_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run(replace(SHORT, steps=2, val_every=1, logger="wandb"), tmp_path / "mine")
    identity = (tmp_path / "mine/logs/wandb.txt").read_text().strip()
    (file,) = (tmp_path / "mine/logs").rglob(f"run-{identity}.wandb")
    content = file.read_bytes()
    assert all(name in content for name in (b"train/loss", b"val/mse", b"batch_size", bytes(tmp_path)))
