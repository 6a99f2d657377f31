"""Does the program say in one line what is wrong, write what it promises, and leave alone what is there?"""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from repository import ROOT

pytest.importorskip("lightning", reason="the training program's packages are not installed")

import numpy as np
from commands import fails, run
from PIL import Image
from trainings import LAST, TINY

import motionrnn_ext
from motionrnn_ext import cli
from motionrnn_ext.cli import commands
from motionrnn_ext.cli.parser import make_parser
from motionrnn_ext.evaluation.clips import held_out, read_frames
from motionrnn_ext.evaluation.scores import predict_clips
from motionrnn_ext.layers.cells import CELLS
from motionrnn_ext.training.config import Config
from motionrnn_ext.training.runs import load_run

# ---- What is wrong, in one line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", 0), "steps must be at least 1; got 0"),
        (("--predictor", "x"), "unknown predictor 'x'; known: convlstm, predrnn, mim"),
        (("--cell-option", "rank=2"), "cell_options must be of none for convlstm; got 'rank'"),
        (("--predictor", "conv_tt_lstm", "--cell-option", "order=x"), "order is 'x'"),
        (("--override", "carry=all"), "carry is 'all'; it should be 'block' or 'motion'"),
        (("--override", "carry"), "--override and --cell-option must be NAME=VALUE; got 'carry'"),
        (("--digits", "no/such/folder"), "'no/such/folder' is no folder"),
        (("--hidden", 8, 16), "all layers should be equal"),
        (("--speed", 3, 1), "speed must be two finite numbers, the lowest first"),
        (("--digit-size", 60), "too small: digits of digit_size 60"),
        (("--config", "no.json"), "error: no.json is no readable JSON file: No such file or directory"),
        (("--resume",), "there is no run to resume"),
        (("--accelerator", "abacus"), "abacus"),
    ],
)
def test_bad_settings(
    options: tuple[object, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, "train", "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert options[0] == "--accelerator" or not (tmp_path / "run").exists()


def test_unreadable_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"\0" * 5)
    message = fails(capsys, "train", "--out", tmp_path / "run", "--digits", tmp_path)
    assert "train-images-idx3-ubyte" in message


def test_a_resume_keeps_its_settings(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "train", "--out", trained, "--resume", "--lr", 0.5)
    assert "was started with lr 0.001; --resume cannot change it to 0.5" in message
    assert cli.main(["train", "--out", str(trained), "--resume", "--lr", "0.001", "--no-progress"]) == 0


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hostile_code_ran",)


@pytest.mark.parametrize(
    "kind", ["truncated", "empty", "text", "foreign", "hostile", "hostile inside", "absent", "folder"]
)
def test_checkpoints_that_are_none(
    kind: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path, whole = tmp_path / "bad.ckpt", (trained / LAST).read_bytes()
    if kind == "folder":
        path.mkdir()
    elif kind == "foreign":
        torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    elif kind == "hostile inside":
        torch.save({**torch.load(trained / LAST, weights_only=True), "extra": Hostile()}, path)
    elif kind != "absent":
        contents = {
            "truncated": whole[: len(whole) // 2],
            "empty": b"",
            "text": b"no weights",
            "hostile": pickle.dumps(Hostile()),
        }
        path.write_bytes(contents[kind])
    for command in (("evaluate", path), ("predict", path)):
        line = fails(capsys, *command)
        assert "bad.ckpt" in line and "weights_only" not in line and "trust" not in line
    assert not (tmp_path / "hostile_code_ran").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 16)), "must hold frames (T, H, W) or (T, 1, H, W)"),
        (np.zeros((5, 16, 16), np.int64), "it holds int64 (5, 16, 16)"),
        (np.zeros((5, 16, 16, 4), np.uint8), "it holds uint8 (5, 16, 16, 4)"),
        (np.full((5, 16, 16), 2.0), "must have values in [0, 1]; they go from 2 to 2"),
        (np.full((5, 16, 16), np.nan), "must have values in [0, 1]; 1,280 of 1,280 are nan"),
        (np.linspace(0.5, 1.002, 1280).reshape(5, 16, 16), "they go from 0.5 to 1.002"),
        (np.linspace(-0.002, 1, 1280).reshape(5, 16, 16), "they go from -0.002 to 1"),
        (np.zeros((5, 18, 16)), "frames are 18x16; both should be divisible by 4 (--pad repeats"),
        (np.array([{}]), "clip.npy is not a .npy file of numbers\n"),
    ],
)
def test_frames_that_do_not_fit(
    array: Any, message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "clip.npy", array)
    out = tmp_path / "out"
    line = fails(capsys, "predict", trained, "--frames", tmp_path / "clip.npy", "--out", out)
    assert message in f"{line}\n"
    assert not out.exists()


def test_other_mistakes(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read" in fails(capsys, "predict", trained, "--frames", tmp_path / "none.npy")
    assert "exists; name another folder" in fails(capsys, "evaluate", trained, "--out", trained)
    assert "no_such_device" in fails(capsys, "evaluate", trained, "--device", "no_such_device")


def test_debug_shows_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(tmp_path / "none"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "required: COMMAND"),
        ("nonsense", "invalid choice: 'nonsense'"),
        ("train --steps many", "--steps: invalid int value: 'many'"),
        ("evaluate", "required: CKPT"),
        ("evaluate run --clips 0", "--clips: must be a whole number of at least 1; got '0'"),
        ("evaluate run --n-output x", "--n-output: must be a whole number of at least 1; got 'x'"),
        ("predict run --clip -1", "--clip: must be a whole number of at least 0; got '-1'"),
        ("predict run --clip 1 --frames x.npy", "not allowed with argument"),
    ],
)
def test_a_bad_command_line(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(command.split())
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("motionrnn") and message in line and line.endswith("--help)")


COMMANDS = "train evaluate predict visualize ablate compare tune info demo"


@pytest.mark.parametrize("command", COMMANDS.split())
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main([command, "--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    if command == "train":
        settings = Config().to_dict().keys() - {"overrides", "cell_options"}
        assert all(f"--{name.replace('_', '-')}" in shown for name in settings)
        assert "--override " in shown and "--cell-option " in shown
        assert "(default: 64 64 64 64)" in " ".join(shown.split())


# ---- Without the training program's packages


def without(packages: str, *command: str) -> subprocess.CompletedProcess[str]:
    """The program in a process where none of these packages can be imported."""
    code = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages.split()}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from motionrnn_ext.cli import main
sys.exit(main(sys.argv[1:]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=120, env=environment
    )


EXTRAS = (
    "lightning pytorch_lightning torchmetrics skimage sklearn matplotlib imageio PIL rich tensorboard scipy"
)


def test_info_needs_torch_alone() -> None:
    done = without(EXTRAS + " numpy", "info", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["motionrnn_ext"] == motionrnn_ext.__version__
    assert facts["torch"]["version"] == torch.__version__
    assert facts["backends"]["reference"] == {"available": True, "why_not": None}
    found = tuple(name for name, state in facts["backends"].items() if state["available"])
    assert found == motionrnn_ext.available_backends()
    for state in facts["backends"].values():
        assert state["available"] == (state["why_not"] is None)


@pytest.mark.parametrize("command", ["train", "demo", "evaluate"])
def test_a_missing_package_is_named_with_the_way_to_get_it(command: str, tmp_path: Path) -> None:
    missing = {"evaluate": "torchmetrics"}.get(command, "lightning")
    options = ["x"] if command == "evaluate" else ["--out", str(tmp_path / "run")]
    done = without(missing, command, *options)
    assert done.returncode == 2
    line = f"motionrnn {command}: error: the package {missing} is missing: pip install 'motionrnn-ext[train]'"
    assert done.stderr.strip() == line
    assert not (tmp_path / "run").exists()


# ---- What the commands write


def test_evaluate(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("evaluate", trained, trained / LAST, "--clips", 5, "--pictures", 1, "--out", out) == 0
    shown = capsys.readouterr().out
    assert "repeat last frame" in shown and "t+3" in shown
    results = json.loads((out / "metrics.json").read_text())
    assert (results["clips"], results["n_input"], results["n_output"], results["split"]) == (5, 3, 3, "test")
    baselines = [label for label, scores in results["models"].items() if "baseline" in scores]
    assert baselines == ["repeat last frame", "mean of the inputs", "optical flow"]
    assert len(results["models"]) == 3 + 2
    assert all(label in shown for label in baselines) and "baselines: repeat last frame; mean of" in shown
    kept = load_run(trained)
    clips = held_out(kept.config, 5)
    frames = torch.stack([clips[i] for i in range(5)])
    error = (predict_clips(kept.model, frames[:, :3], 3) - frames[:, 3:]).double()
    wanted = error.square().sum((2, 3, 4)).mean(0)  # per frame a sum, per lead time a mean over clips
    scores = next(
        score for score in results["models"].values() if score.get("checkpoint", "").endswith("best.ckpt")
    )
    assert scores["per_lead"]["mse"] == pytest.approx(wanted.tolist(), rel=1e-5)
    assert scores["mse"] == pytest.approx(float(wanted.mean()), rel=1e-5)
    assert scores["parameters"] == sum(p.numel() for p in kept.model.parameters())
    for name in ("strip_0.png", "clip_0.gif", "lead_time.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 50, name
            assert getattr(image, "n_frames", 1) == (6 if name.endswith("gif") else 1)
    assert len(list(out.glob("arrows_0*.png"))) == 2


@pytest.mark.parametrize("n_frames", [3, 8])
def test_predict_from_a_file(
    n_frames: int, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three frames are all given; of eight, the last three."""
    frames = (
        (held_out(load_run(trained).config, 1, n_frames=8)[0] * 255).round().to(torch.uint8)[:n_frames, 0]
    )
    np.save(tmp_path / "clip.npy", frames.numpy())
    out = tmp_path / "out"
    options = ["--n-output", "2"] if n_frames == 8 else ["--n-output", "5"]
    assert (
        cli.main(
            ["predict", str(trained), "--frames", str(tmp_path / "clip.npy"), "--out", str(out), *options]
        )
        == 0
    )
    n_output = int(options[1])
    said = {
        3: "given frames 1 to 3 of 3, predicts 4 to 8",
        8: "given frames 6 to 8 of 8, predicts 9 to 10",
    }
    assert capsys.readouterr().out.startswith(f"{said[n_frames]}\n")
    prediction = torch.from_numpy(np.load(out / "prediction.npy"))
    wanted = predict_clips(load_run(trained).model, frames[None, -3:, None] / 255, n_output)[0]
    torch.testing.assert_close(prediction, wanted, rtol=1e-5, atol=1e-6)
    assert prediction.shape == (n_output, 1, 16, 16) and prediction.min() >= 0 and prediction.max() <= 1
    with Image.open(out / "clip.gif") as image:
        assert image.n_frames == 3 + n_output
    assert (out / "strip.png").is_file() and (out / "arrows.png").is_file()


def test_too_few_frames_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "clip.npy", tmp_path / "out"
    np.save(path, np.zeros((2, 16, 16), np.uint8))
    for command in ("predict", "visualize"):
        line = fails(capsys, command, trained, "--frames", path, "--out", out)
        assert (
            "has 2 frames; the model was trained on 3 given ones: give as many or more, or name fewer" in line
        )
        assert "with --n-input 2" in line and not out.exists()
    line = fails(capsys, "predict", trained, "--frames", path, "--n-input", 4, "--out", out)
    assert "has 2 frames; --n-input 4 needs as many or more" in line and not out.exists()
    options = ["--n-input", "1", "--n-output", "1", "--out", str(out)]
    assert cli.main(["predict", str(trained), "--frames", str(path), *options]) == 0
    assert "given frame 2 of 2, predicts 3\n" in capsys.readouterr().out


@pytest.mark.parametrize("size", [(18, 16), (17, 21)])
def test_frames_of_another_size_are_padded_and_cropped(
    size: tuple[int, int], trained: Path, tmp_path: Path
) -> None:
    height, width = size
    frames = np.random.default_rng(0).random((3, height, width), np.float32)
    np.save(tmp_path / "clip.npy", frames)
    out = tmp_path / "out"
    given = ["--frames", str(tmp_path / "clip.npy"), "--pad"]
    assert cli.main(["predict", str(trained), *given, "--out", str(out)]) == 0
    padded = np.pad(frames, ((0, 0), (0, -height % 4), (0, -width % 4)), mode="edge")
    wanted = predict_clips(load_run(trained).model, torch.from_numpy(padded)[None, :, None], 3)[0]
    prediction = torch.from_numpy(np.load(out / "prediction.npy"))
    assert prediction.shape == (3, 1, height, width)
    torch.testing.assert_close(prediction, wanted[..., :height, :width], rtol=1e-5, atol=1e-6)
    assert (out / "strip.png").is_file() and (out / "arrows.png").is_file()
    assert cli.main(["visualize", str(trained), *given, "--out", str(tmp_path / "motion")]) == 0


# ---- The demo


def demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "motionrnn_ext.cli", "demo", "--quick", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)


def test_demo_from_a_fresh_folder_and_again(tmp_path: Path) -> None:
    done = demo(tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/demo"
    results = json.loads((folder / "metrics.json").read_text())["models"]
    baselines = ["repeat last frame", "mean of the inputs", "optical flow"]
    assert list(results) == [*baselines, "ConvLSTM", "MotionRNN-ConvLSTM"]
    for label in ("ConvLSTM", "MotionRNN-ConvLSTM"):
        assert {"mse", "mae", "ssim", "psnr", "parameters", "seconds_per_step", "per_lead"} <= results[
            label
        ].keys()
        assert label in done.stdout
    base, ours = (
        json.loads((folder / name / "config.json").read_text()) for name in ("convlstm", "motionrnn-convlstm")
    )
    assert {name for name in base if base[name] != ours[name]} == {"motion_gru", "highway"}
    assert "a first prediction, after 12 of 12 steps: runs/demo/first_prediction.png\n" in done.stdout
    for name in (
        "first_prediction.png",
        "strip_0.png",
        "clip_0.gif",
        "arrows_0.png",
        "loss.png",
        "lead_time.png",
    ):
        with Image.open(folder / name) as image:
            assert min(image.size) > 100, name

    assert re.search(r"^done in [0-9.]+ minutes; look at runs/demo/clip_0.gif first$", done.stdout, re.M)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    # Half of a demo: the next one goes on with it, to the same numbers.
    half = tmp_path / "runs/demo-2/convlstm"
    half.mkdir(parents=True)
    (half / "config.json").write_bytes((folder / "convlstm/config.json").read_bytes())
    again = demo(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "runs/demo holds a finished demo" in again.stdout and "was stopped; resuming it" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    repeated = json.loads((tmp_path / "runs/demo-2/metrics.json").read_text())["models"]
    for label, result in results.items():
        assert repeated[label]["mse"] == result["mse"], label


def test_demo_leaves_a_chosen_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    assert "mine exists; name another folder with --out" in fails(capsys, "demo", "--out", tmp_path / "mine")


OWN_PREDICTOR = """
from motionrnn_ext.layers import ConvLSTMCell, register_predictor


@register_predictor("own_lstm")
class OwnCell(ConvLSTMCell):
    pass
"""


def test_a_predictor_of_ones_own_by_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Registered by --import; without it a checkpoint names what it cannot know, and imports nothing."""
    (tmp_path / "own_cells.py").write_text(OWN_PREDICTOR)
    replace(TINY, steps=2).write(tmp_path / "settings.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "own_cells", raising=False)
    known = dict(CELLS)
    try:
        options = ["--config", "settings.json", "--predictor", "own_lstm", "--no-progress", "--out", "run"]
        assert cli.main(["train", "--import", "own_cells", *options]) == 0
        assert cli.main(["evaluate", "run", "--import", "own_cells", "--clips", "1", "--pictures", "0"]) == 0
        assert "own_lstm" in capsys.readouterr().out
    finally:
        CELLS.clear()
        CELLS.update(known)
    assert "unknown predictor 'own_lstm'; known: convlstm" in fails(capsys, "evaluate", "run")
    message = "--import: no module 'no_cells' in the working directory or on sys.path"
    assert message in fails(capsys, "evaluate", "run", "--import", "no_cells")
    (tmp_path / "needy_cells.py").write_text("import no_such_package")
    message = "error: --import needy_cells: No module named 'no_such_package', which it imports"
    assert message in fails(capsys, "evaluate", "run", "--import", "needy_cells")
    for name in ("./own_cells", "own_cells.py", "own/cells", ""):
        message = f"--import must be the name of a module, such as my_cells; got {name!r}"
        assert message in fails(capsys, "evaluate", "run", "--import", name)


@pytest.mark.parametrize(
    ("out", "as_module"), [("run", True), ("a run's folder; (1)", False), ("-run", False)]
)
def test_the_next_command_works_when_pasted(
    out: str,
    as_module: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "own_cells.py").write_text(OWN_PREDICTOR)
    replace(TINY, steps=1).write(tmp_path / "settings.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "own_cells", raising=False)
    if as_module:
        monkeypatch.setattr(sys, "argv", [str(Path(motionrnn_ext.__file__).with_name("__main__.py"))])
    known = dict(CELLS)
    try:
        options = ["--config", "settings.json", "--predictor", "own_lstm", "--no-progress", f"--out={out}"]
        assert cli.main(["train", "--import", "own_cells", *options]) == 0
        line = capsys.readouterr().out.strip().splitlines()[-1]
        program = "python -m motionrnn_ext" if as_module else "motionrnn"
        assert line.startswith(f"next: {program} evaluate --import own_cells ")
        pasted = shlex.split(line.removeprefix(f"next: {program} "))
        assert cli.main([*pasted, "--clips", "1", "--pictures", "0"]) == 0
        arguments = make_parser().parse_args(["train", "--import", "own_cells", f"--out={out}"])
        resumed = shlex.split(
            commands._resume_command(arguments, replace(TINY, steps=1)).removeprefix(f"{program} ")
        )
        assert cli.main([*resumed, "--no-progress"]) == 0
    finally:
        CELLS.clear()
        CELLS.update(known)


def test_the_program_is_a_module_and_says_its_versions(capsys: pytest.CaptureFixture[str]) -> None:
    versions = f"motionrnn_ext {motionrnn_ext.__version__}, torch {torch.__version__}\n"
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == versions
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for options, code, said in (
        (["--version"], 0, versions),
        (["evaluate", "none"], 2, "motionrnn evaluate: error: none does not exist"),
    ):
        command = [sys.executable, "-m", "motionrnn_ext", *options]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == code and (done.stdout + done.stderr).startswith(said)


@pytest.mark.parametrize("scale", [1 + 1e-6, 1.0])
def test_frames_that_rounding_has_moved_beyond_1_are_frames(scale: float, tmp_path: Path) -> None:
    values = np.linspace(-1e-6, scale, 1280, dtype=np.float32).reshape(5, 16, 16)
    np.save(tmp_path / "clip.npy", values)
    frames = read_frames(tmp_path / "clip.npy")
    assert frames.min() == 0 and frames.max() == 1
    assert frames[:, 0].equal(torch.from_numpy(values).clamp(0, 1))
