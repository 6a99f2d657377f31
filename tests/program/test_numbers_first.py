"""Are the numbers printed and written, whatever fails after them?"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the training program's packages are not installed")

from commands import fails

from motionrnn_ext import cli, visualize
from motionrnn_ext.evaluation.tables import print_results
from motionrnn_ext.experiments import demo as demo_module
from motionrnn_ext.training.checkpoint_io import WholeCheckpointIO
from motionrnn_ext.training.runs import load_run


def failing(*_: Any, **__: Any) -> Path:
    raise RuntimeError("In FT2Font: can not\nload face")


def test_a_picture_that_fails_stops_neither_numbers_nor_other_pictures(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(visualize, "strip", failing)
    monkeypatch.setattr(visualize, "lead_time_curves", failing)
    command = ["evaluate", str(trained), "--clips", "2", "--pictures", "2", "--out", str(out)]
    assert cli.main(command) == 4
    shown = capsys.readouterr()
    assert "repeat last frame" in shown.out and f"{out / 'metrics.json'}" in shown.out
    assert json.loads((out / "metrics.json").read_text())["clips"] == 2
    names = {path.name for path in out.iterdir()}
    assert names == {"metrics.json", "clip_0.gif", "clip_1.gif", "arrows_0.png", "arrows_1.png"}
    lines = [
        f"motionrnn evaluate: error: {out / name} could not be drawn: RuntimeError: In FT2Font: can not load face"
        for name in ("lead_time.png", "strip_0.png", "strip_1.png")
    ]
    assert shown.err.strip().splitlines() == lines


def test_numbers_that_cannot_be_written_are_printed_and_both_are_done_before_anything_is_drawn(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def interrupted(*_: Any, **__: Any) -> Path:
        assert (out / "metrics.json").is_file()
        raise KeyboardInterrupt

    command = ["evaluate", str(trained), "--clips", "1", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr("motionrnn_ext.evaluation.evaluate.write_json", full)
        assert cli.main(command) == 2
    shown = capsys.readouterr()
    assert "MSE" in shown.out and "No space left on device" in shown.err
    assert not out.exists()
    monkeypatch.setattr(visualize, "lead_time_curves", interrupted)
    assert cli.main(command) == 130
    assert "MSE" in capsys.readouterr().out


def test_a_disk_that_fills_up_while_a_file_is_written_leaves_no_part_of_it(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The folder is gone again, so that the same command can be given once there is room."""
    out = tmp_path / "out"

    def full(path: Path, data: Any) -> int:
        with open(path, "wb") as file:
            file.write(bytes(data)[:9])
        raise OSError(28, "No space left on device")

    cases = {"metrics.json": ["evaluate", trained, "--clips", 1], "prediction.npy": ["predict", trained]}
    for name, command in cases.items():
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            line = fails(capsys, *command, "--out", out)
        assert line.endswith(f"[Errno 28] No space left on device: '{out / name}'")
        assert not out.exists()
    run = load_run(trained)
    before = (trained / "config.json").read_bytes()
    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="No space left on device: .*config.json"),
    ):
        patch.setattr(Path, "write_bytes", full)
        run.config.write(trained / "config.json")
    assert (trained / "config.json").read_bytes() == before
    assert not (trained / "config.json.part").exists()


@pytest.mark.parametrize("command", ["predict", "visualize"])
def test_every_command_draws_what_it_can(
    command: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(visualize, "arrows", failing)
    assert cli.main([command, str(trained), "--out", str(out)]) == 4
    assert f"{command}: error: {out / 'arrows.png'} could not be drawn" in capsys.readouterr().err
    kept = {
        "predict": {"prediction.npy", "strip.png", "clip.gif"},
        "visualize": {"motion.json", "taps.png", "motion.gif"},
    }
    assert {path.name for path in out.iterdir()} == kept[command]


def test_a_checkpoint_that_cannot_be_written_leaves_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch reports a full disk as a RuntimeError."""

    def full(_: Any, file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    writer = WholeCheckpointIO()
    writer.save_checkpoint({"whole": 1}, tmp_path / "last.ckpt")
    before = (tmp_path / "last.ckpt").read_bytes()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="last.ckpt cannot be written: .*; earlier ones are kept"):
        writer.save_checkpoint({}, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_demo_is_finished_when_its_pictures_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_module, "QUICK", replace(demo_module.QUICK, steps=2, val_every=2))
    command = ["demo", "--quick", "--out", str(tmp_path / "demo")]
    monkeypatch.setattr(demo_module, "FIRST_AFTER", 0)
    with monkeypatch.context() as patch:
        patch.setattr(visualize, "lead_time_curves", failing)
        assert cli.main(command) == 4
    first = f"a first prediction, after 1 of 2 steps: {tmp_path / 'demo/first_prediction.png'}\n"
    shown = capsys.readouterr().out
    assert first in shown and shown.count("a first prediction") == 1
    content = json.loads((tmp_path / "demo/metrics.json").read_text())
    assert content["models"]["ConvLSTM"]["mse"] > 0
    assert not (tmp_path / "demo/lead_time.png").exists() and (tmp_path / "demo/strip_1.png").exists()
    assert cli.main(command) == 0  # goes on: nothing is trained again, what is missing is drawn
    assert (tmp_path / "demo/lead_time.png").is_file()
    capsys.readouterr()
    assert "exists; name another folder" in fails(capsys, *command)


# ---- The folder is tried before the work


KINDS = ["file", "below a file", "dangling link", "name too long", "/proc", "full"]
COMMANDS = ["evaluate", "predict", "visualize", "ablate", "demo", "bench"]


@pytest.mark.parametrize(
    ("command", "kind"), [*(("train", kind) for kind in KINDS), *((command, "file") for command in COMMANDS)]
)
def test_out_is_tried_before_the_work(
    command: str,
    kind: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    out = {
        "file": tmp_path / "file", "below a file": tmp_path / "file" / "out", "dangling link": tmp_path / "link",
        "name too long": tmp_path / ("x" * 300), "/proc": Path("/proc/out"),
        "full": tmp_path / "new",
    }[kind]  # fmt: skip
    if kind == "full":

        def full(**_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("motionrnn_ext.training.folders.tempfile.TemporaryFile", full)
    for work in (
        "motionrnn_ext.training.train.Training",
        "motionrnn_ext.evaluation.evaluate.score",
        "motionrnn_ext.evaluation.evaluate.predict_clips",
    ):
        monkeypatch.setattr(work, lambda *_, **__: pytest.fail("this is work"))
    options: list[object] = ["--out", out]
    if command in ("evaluate", "predict", "visualize"):
        options += [trained]
    elif command == "bench":
        pytest.importorskip("motionrnn_ext.benchmarks")
        options = ["--quick", "--dry-run", "--json", out / "rows.json"]
    before = sorted(tmp_path.iterdir())
    line = fails(capsys, command, *options)
    assert out.name[:9] in line or command == "bench"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written_to(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run").chmod(0o555)
    try:
        line = fails(capsys, "evaluate", tmp_path / "run", "--clips", 1)
        assert "evaluation cannot be written to: Permission denied; name another place with --out" in line
        assert "cannot be written to: Permission denied" in fails(
            capsys, "train", "--out", tmp_path / "run", "--resume"
        )
    finally:
        (tmp_path / "run").chmod(0o755)


def test_evaluations_at_once_take_folders_of_their_own(trained: Path, tmp_path: Path) -> None:
    from motionrnn_ext.training.folders import held_new

    with held_new(None, tmp_path / "evaluation") as one, held_new(None, tmp_path / "evaluation") as other:
        assert (one, other) == (tmp_path / "evaluation", tmp_path / "evaluation-2")
    assert not any(tmp_path.iterdir())


# ---- Numbers that are none


def test_numbers_that_are_none_are_printed_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nan, inf = float("nan"), float("inf")
    lead = {"mse": [nan, nan], "psnr": [inf, -inf], "ssim": [None, None], "gdl": [3e38, nan]}
    result: dict[str, Any] = {"mse": nan, "psnr": inf, "ssim": None, "gdl": nan, "fvd": nan, "per_lead": lead}
    print_results({"a": result, "b": result}, per_lead=True)
    assert "FVD" in capsys.readouterr().out
    assert visualize.lead_time_curves(tmp_path / "lead.png", {"a": result, "b": result}).stat().st_size > 1000
    log = tmp_path / "log.csv"
    log.write_text("step,val/loss\n1,nan\n2,inf\n3,0\n4,-inf\n")
    assert visualize.loss_curves(tmp_path / "loss.png", {"a": log}).is_file()
    rows = {"a": {"mse": [nan, nan], "ssim": [inf, 1.0]}, "b": {"mse": [nan, 1.0], "ssim": [0.5, 1.0]}}
    assert visualize.dots(tmp_path / "dots.png", rows, baselines={"r": {"mse": nan, "ssim": inf}}).is_file()


# Time: 15 to 40 seconds. test_visualize.py has the strip and the GIF by themselves.
@pytest.mark.slow
def test_200_frames_by_command(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["evaluate", str(trained), "--clips", "1", "--pictures", "1", "--n-output", "200"]
    assert cli.main([*command, "--out", str(out)]) == 0
    results = json.loads((out / "metrics.json").read_text())["models"]
    assert len(results["repeat last frame"]["per_lead"]["mse"]) == 200
    torch.save(torch.rand(3, 16, 16), tmp_path / "clip.pt")
    command = ["predict", str(trained), "--frames", str(tmp_path / "clip.pt"), "--n-output", "60"]
    assert cli.main([*command, "--out", str(tmp_path / "p")]) == 0
