"""Does training stop, resume and keep its files as it promises, to the bit?"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from repository import ROOT
from trainings import (
    BEST,
    LAST,
    TINY,
    Stop,
    assert_identical,
    assert_same_training,
    checkpoint,
    run,
    stop_in_step,
)

lightning = pytest.importorskip("lightning", reason="the training program's packages are not installed")

from motionrnn_ext.training.batches import ClipDataModule, StepBatches  # noqa: E402
from motionrnn_ext.training.config import Config  # noqa: E402
from motionrnn_ext.training.module import Training, sampling_mask, sampling_probabilities  # noqa: E402
from motionrnn_ext.training.runs import RunError, fresh_folder, join_logs, load_run  # noqa: E402


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    run(TINY, folder)
    return folder


# ---- Resuming


@pytest.mark.parametrize("step", [0, 3, 8])
def test_stopped_in_any_step_it_resumes_to_the_same_bits(
    step: int, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_in_step(patch, step)
        with pytest.raises(Stop):
            run(TINY, tmp_path / "run")
    assert (tmp_path / "run" / LAST).exists() == (step >= TINY.val_every)
    torch.manual_seed(12345)  # no generator's state matters
    run(TINY, tmp_path / "run", resume=True)
    assert_same_training(unbroken, tmp_path / "run")


def test_resumed_twice_with_every_random_thing_switched_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        TINY, predictor="predrnn", variant="official", overrides={"init_state": "xavier"}, sampling="reverse",
        time_reversal=True, lr_schedule="one-cycle", clip_norm=0.1, layer_norm=True, steps=8, val_every=2,
    )  # fmt: skip
    run(config, tmp_path / "unbroken")
    for resume, step in ((False, 3), (True, 5)):
        with monkeypatch.context() as patch:
            stop_in_step(patch, step)
            with pytest.raises(Stop):
                run(config, tmp_path / "run", resume=resume)
    run(config, tmp_path / "run", resume=True)
    assert_same_training(tmp_path / "unbroken", tmp_path / "run")


def test_a_finished_run_resumes_to_itself(unbroken: Path) -> None:
    before = (unbroken / LAST).read_bytes()
    run(TINY, unbroken, resume=True)
    assert (unbroken / LAST).read_bytes() == before


def child(folder: Path, patch: str) -> subprocess.Popen[str]:
    """TINY trained in a process of its own, after the Python code `patch`."""
    code = textwrap.dedent("""
        import os, signal, sys
        import torch
        from motionrnn_ext.training import train as program
        from motionrnn_ext.training.config import Config
        config = Config.read(__import__("pathlib").Path(sys.argv[2]))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts with &
    """)
    code += textwrap.dedent(patch) + "\nprogram.train(config, sys.argv[1], progress=False)\n"
    settings = folder.with_name("settings.json")
    TINY.write(settings)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(folder), str(settings)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


KILL_IN_A_STEP = """
    true_step = program.Training.training_step
    def step(self, frames, index):
        if self.global_step == 7:
            os.kill(os.getpid(), signal.NUMBER)
        return true_step(self, frames, index)
    program.Training.training_step = step
"""
KILL_WHILE_SAVING = """
    saved = [0]
    def save(content, file):
        saved[0] += 1
        if saved[0] == 4:  # last.ckpt after step 6, or best.ckpt
            file.write(b"half of a checkpoint")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return true_save(content, file)
    true_save, torch.save = torch.save, save
"""


@pytest.mark.parametrize(
    ("patch", "code"),
    [
        pytest.param(KILL_IN_A_STEP.replace("NUMBER", "SIGKILL"), -signal.SIGKILL, id="killed in a step"),
        pytest.param(KILL_WHILE_SAVING, -signal.SIGKILL, id="killed while saving"),
        pytest.param(KILL_IN_A_STEP.replace("NUMBER", "SIGINT"), None, id="interrupted"),
    ],
)
def test_a_killed_process_leaves_whole_checkpoints_and_resumes_to_the_same_bits(
    patch: str, code: int | None, unbroken: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = child(folder, patch)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code if code else process.returncode != 0, errors
    if code is None:
        assert "KeyboardInterrupt" in errors
    for path in (folder / "checkpoints").glob("*.ckpt"):
        assert checkpoint(path)["global_step"] in (3, 6)
    run(TINY, folder, resume=True)
    assert_same_training(unbroken, folder)


# ---- The folder of a run


def test_an_existing_run_is_not_touched(unbroken: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")}
    with pytest.raises(RunError, match=r"exists: .* --resume, or name another folder with --out"):
        run(TINY, unbroken)
    with pytest.raises(RunError, match="was started with other settings"):
        run(replace(TINY, lr=0.5), unbroken, resume=True)
    assert {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")} == files


def test_a_damaged_checkpoint_stops_the_resume(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    TINY.write(folder / "config.json")
    (folder / LAST).write_bytes((unbroken / LAST).read_bytes()[:5000])
    with pytest.raises(RunError, match=r"last.ckpt is truncated or no checkpoint"):
        run(TINY, folder, resume=True)


def test_what_a_run_leaves(unbroken: Path) -> None:
    files = {str(path.relative_to(unbroken)) for path in unbroken.rglob("*") if path.is_file()}
    kept = {"config.json", "metrics.csv", str(LAST), str(BEST), "logs/version_0/metrics.csv"}
    assert kept <= files
    assert any("tfevents" in name for name in files)
    assert not any(name.endswith(".part") for name in files)
    assert Config.read(unbroken / "config.json") == TINY
    config, model, step, path = load_run(unbroken)
    assert (config, path) == (TINY, unbroken / BEST)
    assert not model.training and step in (3, 6, 9, 11)


def test_the_best_checkpoint_has_the_lowest_validation_error(unbroken: Path) -> None:
    rows = list(csv.DictReader((unbroken / "metrics.csv").open()))
    errors = {int(row["step"]) + 1: float(row["val/mse"]) for row in rows if row["val/mse"]}
    assert list(errors) == [3, 6, 9, 11]  # every third step, and the last
    assert checkpoint(unbroken / BEST)["global_step"] == min(errors, key=errors.__getitem__)
    assert checkpoint(unbroken / LAST)["global_step"] == TINY.steps


def test_logs_of_several_starts_join(tmp_path: Path) -> None:
    for version, text in (
        (0, "step,a\n0,1\n1,2\n2,3\n"),
        (1, "a,b,step\n20,,1\n30,x,2\n"),
        (10, "a,step\n7,3\n"),
    ):
        (tmp_path / f"logs/version_{version}").mkdir(parents=True)
        (tmp_path / f"logs/version_{version}/metrics.csv").write_text(text)
    rows = list(csv.reader(join_logs(tmp_path).open()))
    assert rows == [["step", "a", "b"], ["0", "1", ""], ["1", "20", ""], ["2", "30", "x"], ["3", "7", ""]]


def test_fresh_folder(tmp_path: Path) -> None:
    assert fresh_folder(tmp_path / "a") == tmp_path / "a"
    for name in ("a", "a-2"):
        (tmp_path / name).mkdir()
        assert fresh_folder(tmp_path / "a") == tmp_path / name  # an empty one is free
        (tmp_path / name / "file").touch()
    assert fresh_folder(tmp_path / "a") == tmp_path / "a-3"


def test_what_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    for settings, message in (
        ({"accelerator": "abacus"}, "abacus"),
        ({"hidden": (8, 12)}, "all layers should be equal"),
        ({"digits": "none"}, "none"),
        (
            {"devices": 4},
            "val_clips gives 3 to validate on; 4 processes should have one each",
        ),
    ):
        with pytest.raises(
            (ValueError, OSError, lightning.fabric.utilities.exceptions.MisconfigurationException)
        ) as error:
            run(replace(TINY, **settings), tmp_path / "run")
        assert message in str(error.value)
        assert not (tmp_path / "run").exists()


# ---- What is learnt from


def test_weights_and_batches_are_functions_of_the_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return torch.cat([p.flatten() for p in Training(TINY).parameters()])

    assert torch.equal(weights(0), weights(0))
    assert list(StepBatches(TINY)) == list(StepBatches(TINY))
    assert list(StepBatches(TINY)) != list(StepBatches(replace(TINY, seed=1)))


def test_every_epoch_is_a_permutation_and_a_resume_begins_in_its_midst() -> None:
    config = replace(TINY, train_clips=7, batch_size=3, steps=14)
    batches = list(StepBatches(config))
    flat = [index for batch in batches for index in batch]
    epochs = [flat[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert list(StepBatches(config, first_step=5)) == batches[5:]
    assert len(StepBatches(config, first_step=5)) == 14


def test_two_processes_share_what_one_with_twice_the_batch_has() -> None:
    one = list(StepBatches(replace(TINY, batch_size=4)))
    first, second = (list(StepBatches(TINY, rank=rank, n_ranks=2)) for rank in (0, 1))
    assert [sorted(a + b) for a, b in zip(first, second)] == [sorted(batch) for batch in one]


def test_training_validation_and_test_clips_differ() -> None:
    clips = ClipDataModule(TINY)
    assert clips.training.split, clips.validation.split == ("train", "val")
    assert not torch.equal(clips.training[0], clips.validation[0])


def test_linear_sampling_schedule() -> None:
    config = replace(
        TINY, steps=80_000
    )  # the official program's: from 1 down by 2e-5 a step, 0 from 50,000 on
    for step in (0, 1, 12_345, 49_999, 50_000, 79_999):
        given, generated = sampling_probabilities(config, step)
        assert given == 1
        assert generated == pytest.approx(max(0.0, 1 - 2e-5 * step), abs=1e-12)


def test_reverse_sampling_schedule() -> None:
    config = replace(TINY, steps=80_000, sampling="reverse")
    found = [sampling_probabilities(config, step) for step in (0, 24_999, 25_000, 30_000, 49_999, 50_000)]
    e = 2.718281828459045
    wanted = [
        (0.5, 0.5),
        (0.5, 0.5),
        (0.5, 0.5),
        (1 - 0.5 / e, 0.4),
        (1 - 0.5 * e ** (-24_999 / 5000), 2e-5),
        (1, 0),
    ]
    for a, b in zip(found, wanted):
        assert a == pytest.approx(b, abs=1e-6)


def test_sampling_masks_are_functions_of_seed_step_and_rank() -> None:
    config = replace(TINY, steps=100, n_output=60)
    mask = sampling_mask(config, 31, 40)
    assert mask is not None and mask.shape == (40, 59, 1, 1, 1)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    # p = 0.504; 2360 draws have a standard deviation of 0.0103
    assert float(mask.mean()) == pytest.approx(0.504, abs=0.05)
    again = sampling_mask(config, 31, 40)
    assert again is not None and torch.equal(mask, again)
    for other in (sampling_mask(config, 32, 40), sampling_mask(replace(config, seed=1), 31, 40)):
        assert other is not None and not torch.equal(mask, other)
    halves = [sampling_mask(config, 31, 20, rank, 2) for rank in (0, 1)]
    assert torch.equal(torch.stack(halves, 1).flatten(0, 1), mask)  # as the clips of two processes
    reverse = sampling_mask(replace(config, sampling="reverse"), 99, 4)
    assert reverse is not None and reverse.shape == (4, 61, 1, 1, 1)
    assert reverse[:, :2].min() == 1 and reverse[:, 2:].max() == 0
    assert sampling_mask(replace(config, sampling="none"), 31, 40) is None


@pytest.mark.parametrize(("loss", "weight"), [("l2", 0), ("l1+l2", 1), ("l1+l2", 0.25)])
def test_loss_is_the_mean_over_all_predictions(loss: str, weight: float) -> None:
    module = Training(replace(TINY, loss=loss, l1_weight=weight, sampling="none"))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    frames = torch.rand(2, 6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    error = module.model(frames, 3) - frames[:, 1:]  # (2, 5, 1, 16, 16)
    wanted = error.square().sum() + weight * error.abs().sum()
    found = module.training_step(frames, 0)
    torch.testing.assert_close(found, wanted / error.numel(), rtol=1e-6, atol=0)


def test_time_reversal_is_the_mean_of_both_directions() -> None:
    plain = Training(replace(TINY, steps=100))
    both = Training(replace(TINY, steps=100, time_reversal=True))
    both.load_state_dict(plain.state_dict())
    for module in (plain, both):
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
    frames = torch.rand(2, 6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    mean = (plain.training_step(frames, 0) + plain.training_step(frames.flip(1), 0)) / 2
    torch.testing.assert_close(both.training_step(frames, 0), mean, rtol=1e-6, atol=0)


# ---- Other ways to train


def test_it_learns(tmp_path: Path) -> None:
    """After 60 steps on still digits less than half of the first validation's error is left (measured: 0.20)."""
    still = {"speed": (0, 0), "rotation": (0, 0), "scale_rate": (0, 0)}
    config = replace(TINY, **still, steps=60, val_every=10, lr=0.01, loss="l2", train_clips=200)
    run(config, tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    errors = [float(row["val/mse"]) for row in rows if row["val/mse"]]
    assert errors[-1] < 0.5 * errors[0], errors


@pytest.mark.parametrize("more", [{}, {"clip_norm": 0.1, "channels_last": True}], ids=["plain", "all"])
def test_bfloat16(tmp_path: Path, more: dict[str, Any]) -> None:
    best = run(replace(TINY, precision="bf16-mixed", steps=3, **more), tmp_path / "run")
    weights = checkpoint(best)["state_dict"]
    assert all(
        w.isfinite().all() and w.dtype == torch.float32 for n, w in weights.items() if n.startswith("model.")
    )


def test_worker_processes_change_nothing(unbroken: Path, tmp_path: Path) -> None:
    run(replace(TINY, workers=1), tmp_path / "run")
    a, b = checkpoint(unbroken / LAST), checkpoint(tmp_path / "run" / LAST)
    assert_identical(a["state_dict"], b["state_dict"], "state_dict")


def test_a_single_frame_to_predict(tmp_path: Path) -> None:
    for sampling in ("linear", "reverse"):
        config = replace(TINY, n_input=2, n_output=1, steps=2, sampling=sampling)
        assert run(config, tmp_path / sampling).is_file()


# ---- Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"lr": -1}, "lr must be above 0; got -1"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"lr": "fast"}, "lr must be a finite number (float); got 'fast'"),
        ({"steps": 1.5}, "steps must be a finite number (int); got 1.5"),
        ({"predictor": "lstm"}, "unknown predictor 'lstm'; known: convlstm, predrnn"),
        ({"hidden": ()}, "hidden must be one or more widths of at least 1; got ()"),
        ({"hidden": (8, "x")}, "hidden must be numbers (int)"),
        ({"image_size": (30, 32)}, "image_size must be height and width, at least 7 and divisible by 8"),
        ({"image_size": 64}, "image_size must be numbers (int)"),
        ({"overrides": {"carry": "all"}}, "carry is 'all'"),
        ({"overrides": {"cary": "block"}}, "overrides: unknown option 'cary'"),
        (
            {"overrides": {"alpha": torch.nn.Parameter(torch.tensor(0.5))}},
            "overrides must be a dict of names, numbers and words; got {'alpha': Parameter containing: tensor(0.5",
        ),
        ({"lr": torch.nn.Parameter(torch.tensor(0.5))}, "lr must be a finite number (float); got Parameter"),
        ({"seed": -1}, "seed must be from 0 to 4294967295; got -1"),
        ({"sampling_until": 0}, "sampling_until must be above 0, at most 1; got 0"),
        ({"plain": "yes"}, "plain must be a bool (true or false); got 'yes'"),
        ({"precision": "16"}, "precision must be one of 32, bf16-mixed; got '16'"),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Config(**settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_become_plain_ones() -> None:
    """Neither config.json nor a checkpoint, which is read without pickled code, could hold them."""
    config = Config(overrides={"alpha": np.float64(0.25), "kernel_size": np.int64(5)})
    assert {type(value) for value in config.overrides.values()} == {float, int}
    assert config.overrides == {"alpha": 0.25, "kernel_size": 5}


def test_settings_survive_a_file(tmp_path: Path) -> None:
    config = replace(TINY, speed=(1, 2), overrides={"carry": "motion"}, digits="somewhere")
    config.write(tmp_path / "config.json")
    assert Config.read(tmp_path / "config.json") == config
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no readable JSON file"):
        Config.read(tmp_path / "config.json")
    with pytest.raises(ValueError, match="here: unknown settings speling"):
        Config.from_dict({"speling": 1}, "here")
