"""Settings that may change when a run goes on, those that may not, and runs that begin with another's weights."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the training program's packages are not installed")

from commands import fails
from layouts import write_pngs
from public_weights import official_dict
from trainings import BEST, LAST, TINY, Stop, assert_identical, checkpoint, run, stop_in_step

from motionrnn_ext import cli
from motionrnn_ext.models import MotionRNN
from motionrnn_ext.training.config import Config
from motionrnn_ext.training.folders import FolderInUse, held
from motionrnn_ext.training.module import Training, sampling_probabilities
from motionrnn_ext.training.resuming import FREE, Unchangeable, resumed
from motionrnn_ext.training.runs import RunError, has_begun, load_run, next_version

SHORT = replace(TINY, steps=6, val_every=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resuming") / "run"
    run(SHORT, folder)
    return folder


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of `SHORT` that ended in its fifth step."""
    with monkeypatch.context() as patch:
        stop_in_step(patch, 4)
        with pytest.raises(Stop):
            run(SHORT, tmp_path / "run")
    return tmp_path / "run"


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = checkpoint(one / LAST), checkpoint(other / LAST)
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert_identical(a[key], b[key], key)


def never() -> int:
    raise AssertionError("no step is asked for")


# ---- What no number depends on


def test_what_no_number_depends_on_changes_and_the_weights_do_not(
    stopped: Path, finished: Path, tmp_path: Path
) -> None:
    """Another folder of the run, another working directory, and every free setting at once."""
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(stopped, moved)
    shutil.rmtree(stopped)
    options = [
        "--workers",
        "1",
        "--log-every",
        "2",
        "--val-every",
        "6",
        "--checkpoint-steps",
        "--accelerator",
        "auto",
    ]
    assert cli.main(["train", "--out", str(moved), "--resume", "--no-progress", *options]) == 0
    assert_same_weights(moved, finished)
    config = Config.read(moved / "config.json")
    assert (config.workers, config.log_every, config.val_every, config.checkpoint_steps) == (1, 2, 6, True)
    assert load_run(moved).config == config


def test_the_best_checkpoint_of_a_moved_run_is_still_the_best(stopped: Path) -> None:
    """Lightning forgets its score where the folder has another name; the next validation would count as best."""
    moved = stopped.rename(stopped.with_name("moved"))
    content = checkpoint(moved / LAST)
    for state in content["callbacks"].values():
        if state.get("monitor") == "val/mse":  # better than any to come
            score = torch.tensor(0.0)
            state.update(
                best_model_score=score, kth_value=score, best_k_models={state["best_model_path"]: score}
            )
    torch.save(content, moved / LAST)
    before = (moved / BEST).read_bytes()
    run(SHORT, moved, resume=True)
    assert checkpoint(moved / LAST)["global_step"] == 6
    assert (moved / BEST).read_bytes() == before
    states = [s for s in checkpoint(moved / LAST)["callbacks"].values() if s.get("monitor") == "val/mse"]
    assert states[0]["dirpath"] == os.path.realpath(moved / "checkpoints")


def test_without_its_last_checkpoint_a_run_goes_on_from_the_best(stopped: Path, finished: Path) -> None:
    """It must not begin anew, over the best one."""
    assert checkpoint(stopped / BEST)["global_step"] == 3
    (stopped / LAST).unlink()
    steps = []
    step = Training.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Training, "training_step", lambda self, *a: steps.append(self.global_step) or step(self, *a)
        )
        assert cli.main(["train", "--out", str(stopped), "--resume", "--no-progress"]) == 0
    assert steps == [3, 4, 5]
    assert_same_weights(stopped, finished)


def test_devices_change_and_a_step_learns_from_as_many_clips() -> None:
    before = replace(SHORT, batch_size=4)
    found = resumed(before, replace(before, devices=2), never)
    assert (found.devices, found.batch_size) == (2, 2)
    assert resumed(found, replace(found, devices=1, nodes=4), never).batch_size == 1
    assert resumed(before, found, never) == found
    assert resumed(found, replace(found, devices=1, nodes=2), never).batch_size == 2
    with pytest.raises(
        Unchangeable, match="cannot be shared by 3 processes: devices times nodes should divide 4"
    ):
        resumed(before, replace(before, devices=3), never)
    with pytest.raises(Unchangeable, match="batch_size 4; --resume cannot change it to 8"):
        resumed(before, replace(before, devices=2, batch_size=8), never)
    with pytest.raises(Unchangeable, match="batch_size 4; --resume cannot change it to 4"):
        resumed(before, replace(before, devices=2), never, given={"batch_size"})


def test_every_setting_is_free_or_refused() -> None:
    """Each by itself; those that follow from others are above and below."""
    others: dict[str, Any] = {
        "predictor": "predrnn", "cell_options": {"x": 1}, "compat": "openstl", "hidden": (4, 4), "patch_size": 4,
        "filter_size": 5, "layer_norm": True, "variant": "official", "overrides": {"carry": "motion"},
        "motion_gru": False, "highway": False, "transient": False, "trend": False, "dataset": "radar_like",
        "root": "x", "missing": "nan", "stride": 2, "pixel_max": 9.0,
        "clip_step": 2, "interval": 5.0, "min_wet": 0.1, "wet_above": 0.1, "min_motion": 0.1,
        "digits": "x", "plain": True, "image_size": (32, 32),
        "n_digits": 1, "digit_size": 9, "speed": (1, 2), "angle": (1, 2), "rotation": (1, 2), "scale": (1, 2),
        "scale_rate": (1, 2), "n_input": 2, "n_output": 2, "train_clips": 9, "val_clips": 2, "batch_size": 1,
        "lr": 0.5, "lr_schedule": "one-cycle", "clip_norm": 1.0, "loss": "l2", "l1_weight": 0.5,
        "ssim_weight": 0.5, "gdl_weight": 0.5, "zr": (58.53, 1.56), "dbz": (0, 70),
        "sampling": "none", "sampling_until": 0.5, "checkpoint_steps": True, "time_reversal": True, "seed": 1,
        "init_from": "x", "precision": "bf16-mixed", "accelerator": "auto", "workers": 1, "val_every": 1,
        "log_every": 5, "channels_last": True, "graph": True, "logger": "csv",
    }  # fmt: skip
    del others["cell_options"]  # of other predictors
    untried = set(SHORT.to_dict()) - set(others) - {"cell_options", "devices", "nodes", "steps"}
    for name, value in others.items():
        wanted = replace(SHORT, **{name: value}, **({"accelerator": "auto"} if name == "graph" else {}))
        if name in FREE:
            assert resumed(SHORT, wanted, never) == wanted
        else:
            with pytest.raises(Unchangeable, match=f"{name} .*; --resume cannot change it to .*--init-from"):
                resumed(SHORT, wanted, never)
    assert untried <= {"max_offset"}  # what is new belongs into this table


def test_the_digits_may_have_moved_but_not_be_others() -> None:
    before = replace(SHORT, digits="old/place")
    assert resumed(before, replace(before, digits="new/place"), never).digits == "new/place"
    with pytest.raises(Unchangeable, match="digits old/place; --resume cannot change it to sklearn"):
        resumed(before, replace(before, digits="sklearn"), never)


def test_relative_paths_are_kept_as_absolute_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on from another working directory, and with `--root` after its data have moved."""
    (tmp_path / "data").mkdir()
    write_pngs(tmp_path / "data", ["train/a", "train/b", "test/c"])
    (tmp_path / "sklearn").mkdir()  # the name of the generated digits is no path
    monkeypatch.chdir(tmp_path)
    config = replace(SHORT, dataset="shanghai_png", root="data", n_input=4, n_output=4, steps=1)
    assert config.located() == replace(config, root=str(tmp_path / "data"))
    assert replace(config, root="s3://bucket").located().root == "s3://bucket"
    run(config, Path("run"))
    monkeypatch.chdir("/")
    command = ["train", "--out", str(tmp_path / "run"), "--resume", "--no-progress"]
    assert cli.main([*command, "--steps", "2"]) == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    assert cli.main(command) == 2
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "--steps", "3", "--root", "moved"]) == 0
    assert load_run(tmp_path / "run").config.root == str(tmp_path / "moved")


# ---- More steps


def test_a_finished_run_goes_on_with_more_steps(finished: Path, tmp_path: Path) -> None:
    """It is then the run that was started with as many steps, and with scheduled sampling ending where it did."""
    shutil.copytree(finished, tmp_path / "run")
    command = ["train", "--out", str(tmp_path / "run"), "--resume", "--no-progress", "--steps", "9"]
    assert cli.main(command) == 0
    config = Config.read(tmp_path / "run/config.json")
    assert config == replace(SHORT, steps=9, sampling_until=SHORT.sampling_until * 6 / 9)
    for step in range(6):
        assert sampling_probabilities(config, step) == pytest.approx(sampling_probabilities(SHORT, step))
    assert sampling_probabilities(config, 6) == (1, 0)
    run(config, tmp_path / "at once")
    assert_same_weights(tmp_path / "run", tmp_path / "at once")
    assert cli.main(command) == 0  # the same command again is no change


def test_rows_of_the_logs_are_those_of_an_unbroken_run(tmp_path: Path) -> None:
    """The last checkpoints are of steps 5 and 7, between two validations."""
    config = replace(SHORT, steps=5, val_every=3, sampling="none")
    run(config, tmp_path / "run")
    for steps in (7, 10):
        config = replace(config, steps=steps)
        run(config, tmp_path / "run", resume=True)
    run(config, tmp_path / "at once")
    assert losses(tmp_path / "run") == losses(tmp_path / "at once")


def losses(folder: Path) -> list[tuple[str, str]]:
    rows = csv.DictReader((folder / "metrics.csv").open())
    return [(row["step"], row["train/loss"]) for row in rows if row["train/loss"]]


def test_a_file_of_settings_counts_in_a_resumed_run_too(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    settings = tmp_path / "settings.yaml"
    command = ["train", "--out", tmp_path / "run", "--resume", "--no-progress", "--config", settings]
    settings.write_text("steps: 9\n")
    assert cli.main([str(word) for word in command]) == 0
    assert Config.read(tmp_path / "run/config.json").steps == 9
    settings.write_text("lr: 0.5\n")
    assert "was started with lr 0.001; --resume cannot change it to 0.5" in fails(capsys, *command)
    settings.unlink()
    assert "settings.yaml is no readable YAML file" in fails(capsys, *command)


def test_a_best_checkpoint_that_is_gone_is_made_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / BEST).unlink()
    command = ["train", "--out", str(tmp_path / "run"), "--resume", "--no-progress"]
    assert cli.main(command) == 0
    assert "best.ckpt is gone; the last checkpoint is that after step 6" in capsys.readouterr().out
    assert cli.main([*command, "--steps", "9"]) == 0
    assert (tmp_path / "run" / BEST).is_file()


def test_a_new_log_takes_no_place_of_an_old_one(tmp_path: Path) -> None:
    assert next_version(tmp_path) == 0
    for number in (1, 2, 10):
        (tmp_path / f"logs/version_{number}").mkdir(parents=True)
    assert next_version(tmp_path) == 11


@pytest.mark.parametrize("steps", [1, 8, 9, 10])
def test_one_cycle_of_few_steps(steps: int, tmp_path: Path) -> None:
    run(replace(SHORT, lr_schedule="one-cycle", steps=steps), tmp_path / "run")


@pytest.mark.parametrize("name", ["~/run", "a b"])
def test_any_name_of_a_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(SHORT, Path(name))
    command = ["train", f"--out={name}", "--resume", "--no-progress", "--steps", "7"]
    assert cli.main(command) == 0
    folder = Path(name.replace("~", str(tmp_path)))
    assert (folder / BEST).is_file() and checkpoint(folder / LAST)["global_step"] == 7
    assert list(Path().iterdir()) == ([] if name[0] == "~" else [folder])
    with pytest.raises(RunError, match="x::y holds '::', which Lightning reads as an address"):
        run(SHORT, Path("x::y"))


def test_steps_that_cannot_be(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "train", "--out", finished, "--resume", "--steps", 4)
    assert (
        "was started with steps 6; --resume cannot change it to 4: its last checkpoint is of step 6" in line
    )
    before = replace(SHORT, lr_schedule="one-cycle")
    with pytest.raises(
        Unchangeable, match="to 9: the learning rate of one-cycle depends on it .*--init-from"
    ):
        resumed(before, replace(before, steps=9), lambda: 6)
    with pytest.raises(Unchangeable, match=r"true frames are read up to step 4 \(sampling_until\)"):
        resumed(SHORT, replace(SHORT, steps=3), lambda: 3)
    unsampled = replace(SHORT, sampling="none")
    assert resumed(unsampled, replace(unsampled, steps=3), lambda: 3) == replace(unsampled, steps=3)


# ---- A run that begins with another's weights


def test_a_run_begins_with_the_weights_and_settings_of_another(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "more"
    command = ["train", "--init-from", str(finished), "--out", str(out), "--no-progress"]
    assert cli.main([*command, "--lr", "1e-30", "--steps", "1"]) == 0
    a, b = checkpoint(finished / BEST)["state_dict"], checkpoint(out / LAST)["state_dict"]
    for name, weight in a.items():
        if name.startswith("model."):
            torch.testing.assert_close(weight, b[name], rtol=0, atol=1e-20)
    config = replace(SHORT, lr=1e-30, steps=1, init_from=str(finished))
    assert Config.read(out / "config.json") == config == load_run(out).config


def test_what_the_weights_were_trained_with_otherwise_is_told(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings that change no tensor's shape: of a run, of weights that say them, and of weights that say nothing."""

    def told(source: object, *options: str) -> list[str]:
        out = tmp_path / "run"
        shutil.rmtree(out, ignore_errors=True)
        command = ["train", "--init-from", str(source), "--out", str(out), "--no-progress", "--steps", "1"]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert cli.main([*command, *options]) == 0, capsys.readouterr().err
        return [str(w.message) for w in said if "--init-from" in str(w.message)]

    assert told(finished) == told(finished, "--lr", "0.01") == []
    assert told(finished, "--no-trend", "--override", "alpha=0.25") == [
        f"{finished} (--init-from) was trained with trend True, this run has False; alpha 0.5, this run has 0.25"
    ]
    like = tmp_path / "config.json"
    SHORT.write(like)
    weights = tmp_path / "weights.pt"
    torch.save(load_run(finished).model.state_dict(), weights)
    assert told(weights, "--config", str(like)) == []
    assert told(weights, "--config", str(like), "--no-transient") == [
        f"{weights} (--init-from) was trained with transient True, this run has False"
    ]
    torch.save(dict(load_run(finished).model.state_dict()), weights)
    (line,) = told(weights, "--config", str(like), "--no-transient")
    assert (
        f"{weights} (--init-from) holds weights alone: its tensors do not show if they were trained with "
        in line
    )
    assert "transient=False, trend=True" in line and line.endswith("as this run is")


def test_a_public_checkpoint_to_begin_with(tmp_path: Path) -> None:
    """Its settings are in no file: they are those of the options."""
    torch.manual_seed(5)
    theirs = MotionRNN("predrnn", 1, (8, 8), 2, "official", filter_size=3)
    torch.save({"net_param": official_dict(theirs)}, tmp_path / "weights.ckpt")
    config = replace(SHORT, predictor="predrnn", init_from=str(tmp_path / "weights.ckpt"), steps=1, lr=1e-30)
    with pytest.raises(
        RunError, match="does not fit: carry is motion there, block here; gate_side is decoded"
    ):
        run(config, tmp_path / "run")
    config = replace(config, variant="official")
    run(config, tmp_path / "run")
    ours = load_run(tmp_path / "run").model.state_dict()
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-20)
    as_the_program = {"init_state": "xavier", "max_offset": None}  # which no training here has by default
    run(replace(config, overrides=as_the_program), tmp_path / "free")
    with pytest.raises(RunError, match="does not fit: trend is True there, False here"):
        run(replace(config, trend=False), tmp_path / "other")


def test_weights_that_do_not_fit_are_named_and_leave_no_folder(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    line = fails(capsys, "train", "--init-from", finished, "--hidden", 4, 4, "--out", out)
    assert f"{finished} (--init-from) does not fit: hidden_channels is (8, 8) there, (4, 4) here; " in line
    assert " is " in line.partition("here; ")[2]
    line = fails(capsys, "train", "--init-from", tmp_path / "none.ckpt", "--out", out)
    assert "none.ckpt does not exist; it should be a run's folder or a .ckpt file" in line
    assert not out.exists()
    line = fails(capsys, "train", "--out", finished, "--resume", "--init-from", finished)
    assert "was started with init_from None; --resume cannot change it to" in line


def test_stopped_before_its_first_checkpoint_it_begins_with_the_weights_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SHORT, init_from=str(finished), val_every=2)
    run(config, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        stop_in_step(patch, 1)
        with pytest.raises(Stop):
            run(config, tmp_path / "run")
    run(config, tmp_path / "run", resume=True)
    assert_same_weights(tmp_path / "unbroken", tmp_path / "run")


# ---- Settings of other versions


def test_settings_without_what_is_new_and_with_what_is_newer(stopped: Path, finished: Path) -> None:
    path = stopped / "config.json"
    content = json.loads(path.read_text())
    del content["init_from"], content["log_every"]
    path.write_text(json.dumps(content))
    run(replace(SHORT, log_every=Config().log_every), stopped, resume=True)
    assert_same_weights(stopped, finished)
    path.write_text(json.dumps({**content, "of_tomorrow": 1}))
    with pytest.raises(
        ValueError, match="unknown settings of_tomorrow; misspelt, or of a newer version than this"
    ):
        run(SHORT, stopped, resume=True)


# ---- Starts that fail, and folders that are taken


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        KeyboardInterrupt(),
    ],
)
def test_a_start_that_failed_can_be_made_again(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def fail(*_: Any) -> None:
        raise error

    settings, out = tmp_path / "settings.json", tmp_path / "run"
    SHORT.write(settings)
    command = ["train", "--config", str(settings), "--out", str(out), "--no-progress"]
    with monkeypatch.context() as patch:
        patch.setattr(Training, "training_step", fail)
        code = 130 if isinstance(error, KeyboardInterrupt) else 2
        assert cli.main(command) == code
    assert "Traceback" not in capsys.readouterr().err
    assert not has_begun(out)
    assert cli.main([*command, "--steps", "3", "--batch-size", "1"]) == 0  # the retry may have other settings
    assert load_run(out).step == 3
    assert "exists: go on" in fails(capsys, *command)


def test_what_is_not_a_failed_start_is_left_alone(tmp_path: Path) -> None:
    """Files of others, and settings that are no run's, beside logs that look like a run's."""
    for name, text in (("config.json", "{}x"), ("notes.txt", "")):
        folder = tmp_path / name
        (folder / "logs" / "version_0").mkdir(parents=True)
        if name == "notes.txt":
            SHORT.write(folder / "config.json")
        (folder / name).write_text(text)
        with pytest.raises(RunError, match="exists: go on with that run with --resume"):
            run(SHORT, folder)
        assert (folder / "logs" / "version_0").is_dir()


def test_one_of_two_in_a_folder_wins_and_the_other_says_so(finished: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from motionrnn_ext.training.folders import held\n"
        "with held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    out = tmp_path / "new" / "run"
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(
            FolderInUse, match="run is in use by another process; name another folder with --out"
        ):
            run(SHORT, out)
        other.kill()
    run(replace(SHORT, steps=1), out)  # the lock went with the process
    with held(out), pytest.raises(FolderInUse):
        run(replace(SHORT, steps=1), out, resume=True)
