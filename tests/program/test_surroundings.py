"""Does the program do the same wherever it is started: whatever its streams, variables, settings and files are?"""

from __future__ import annotations

import io
import json
import os
import pwd
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from repository import ROOT

pytest.importorskip("lightning", reason="the training program's packages are not installed")

import numpy as np
from PIL import Image
from trainings import LAST, TINY, checkpoint

from motionrnn_ext import MotionGRU, backends, cli
from motionrnn_ext.backends import triton
from motionrnn_ext.cli import info
from motionrnn_ext.data.files import unreadable
from motionrnn_ext.files import NoText, read_text
from motionrnn_ext.terminal import streams
from motionrnn_ext.terminal.console import Console
from motionrnn_ext.training.config import Config
from motionrnn_ext.training.progress import ProgressLines
from motionrnn_ext.training.train import train

PROGRAM = [sys.executable, "-m", "motionrnn_ext.cli"]
LATIN = {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def run(*words: object, here: Path = ROOT, out: object = subprocess.PIPE, **variables: str):
    """The program with these variables, "" among them; its output as bytes."""
    return subprocess.run(
        [*PROGRAM, *map(str, words)], cwd=here, env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdout=out, stderr=subprocess.PIPE, timeout=200,
    )  # fmt: skip


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the settings of a short training, and the run of one."""
    here = tmp_path_factory.mktemp("surroundings")
    replace(TINY, steps=4).write(here / "settings.json")
    train(replace(TINY, steps=4), here / "run", progress=False)
    return here


# ---- Streams


def test_a_terminal_of_another_encoding_in_a_notebooks_environment(short: Path) -> None:
    """`!motionrnn` inherits variables from a kernel, some empty; the path has bytes that are no text."""
    name = os.fsdecode(b"caf\xe9 \xe2\x86\x92 [/x] :smile:")
    notebook = {"MPLBACKEND": "module://no_such_backend", "RANK": "", "MOTIONRNN_EXT_BACKEND": ""}
    options = ("--config", "settings.json", "--out", name)
    done = run("train", *options, here=short, **notebook, **LATIN)
    assert done.returncode == 0, done.stderr
    assert b"next: motionrnn evaluate '" + os.fsencode(name) + b"'" in done.stdout
    # Tolerance: threads and the addresses of buffers reorder sums (1.5e-8 off measured between two processes).
    weights, expected = (checkpoint(short / out / LAST)["state_dict"] for out in (name, "run"))
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
    scored = run("evaluate", name, "--clips", 2, "--pictures", 0, "--out", "é", here=short, **LATIN)
    assert scored.returncode == 0, scored.stderr
    assert b"| repeat last frame" in scored.stdout and b"+-----" in scored.stdout


@pytest.mark.parametrize("words", [("info",), ("train", "--help")])
def test_a_pipe_without_a_reader(words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(*words, out=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_pipe_without_a_reader_costs_no_scores(short: Path) -> None:
    """This is `evaluate | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = run("evaluate", "run", "--clips", 2, "--out", "unread", here=short, out=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
    assert json.loads((short / "unread/metrics.json").read_text())["clips"] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        done = run("info", out=full)
    assert done.returncode == 2
    assert done.stderr == b"motionrnn: error: stdout cannot be written: No space left on device\n"


def test_a_closed_output(short: Path) -> None:
    """The file that is opened next must not take the output's place."""
    words = [*PROGRAM, "train", "--config", "settings.json", "--out", "closed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", '"$@" >&- 2>&-', "sh", *words], cwd=short, env=environment, timeout=200
    )
    assert done.returncode == 0
    assert b"step" not in (short / "closed" / "config.json").read_bytes().splitlines()[0]
    assert checkpoint(short / "closed" / LAST)["global_step"] == 4


def test_the_callers_streams_and_variables_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPLBACKEND", "svg")
    monkeypatch.setenv("RANK", "")
    before = (sys.stdout, sys.stderr, dict(os.environ))
    assert cli.main(["info", "--json"]) == 0
    assert (sys.stdout, sys.stderr, dict(os.environ)) == before
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("text", ["dm[/x]", "[bold]x", ":smile:", "[link=a]b[/link]"])
def test_text_of_the_user_is_no_markup(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from motionrnn_ext.evaluation.tables import print_results
    from motionrnn_ext.experiments.table import _rich

    Console().print(text)
    assert capsys.readouterr().out == f"{text}\n"
    print_results({text: {"mse": 1.0, "per_lead": {"mse": [1.0]}}}, per_lead=True, title=text)
    assert capsys.readouterr().out.count(text) == 3
    Console(200).print(_rich(text, [["model", text], [text, f"{text}\nbetter"]]))
    assert capsys.readouterr().out.count(text) == 4


def test_a_demo_in_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "20")
    assert cli.main(["demo", "--quick", "--out", "dm[/x] $y^"]) == 0
    shown = capsys.readouterr().out
    assert "Everything goes to dm[/x] $y^;" in shown and "  dm[/x] $y^/metrics.json\n" in shown


# ---- A training without a terminal


def test_a_log_has_a_line_for_each_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(TINY, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    pattern = r"step (\d+) of 11: validation loss [\d.e-]+, MSE [\d.e+]+, [\d.e-]+ s/step"
    found = [re.fullmatch(rf"{pattern}(, [1-9]\d* s left)?", line).groups() for line in lines]
    assert [(step, left is None) for step, left in found] == [
        ("3", False), ("6", False), ("9", False), ("11", True)
    ]  # fmt: skip
    monkeypatch.setattr(ProgressLines.__init__, "__defaults__", (0.0,))
    train(replace(TINY, steps=2), tmp_path / "often")
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"step 1 of 2: loss [\d.e-]+, [\d.e-]+ s/step, [1-9]\d* s left", lines[0])
    assert "step 2 of 2: validating, batch 1 of 2" in lines
    train(replace(TINY, steps=2), tmp_path / "silent", progress=False)
    assert capsys.readouterr().out == ""


def test_the_lines_come_at_once(short: Path) -> None:
    """Progress is printed before the program ends, although its output is a pipe."""
    command = [*PROGRAM, "train", "--config", "settings.json", "--steps", "100000", "--out", "long"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=short, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.kill()
    assert lines[2].startswith("step ") and " of 100,000: " in lines[2]


# ---- Lightning's and matplotlib's own variables and settings


def test_lightnings_variables_are_no_settings(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "FAST_DEV_RUN": "1",
        "ACCUMULATE_GRAD_BATCHES": "2",
        "MAX_TIME": "00:00:00:00",
    }.items():
        monkeypatch.setenv(f"PL_TRAINER_{name}", value)
    train(replace(TINY, steps=4), short / "variables", progress=False)
    found, expected = (checkpoint(short / name / LAST)["state_dict"] for name in ("variables", "run"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert os.environ["PL_TRAINER_FAST_DEV_RUN"] == "1"


def test_a_matplotlibrc_ends_nothing(short: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: TkAgg\nfont.family: none such\n")
    words = ("evaluate", short / "run", "--clips", 1, "--pictures", 1, "--out", "scores")
    done = run(*words, here=tmp_path, MPLCONFIGDIR="/proc/no such folder")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scores" / "strip_0.png").is_file()


# ---- Users and variables


def test_a_user_without_home_and_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(*_: object) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME", raising=False)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert info.text(info.collect()).startswith("motionrnn_ext ")
    train(replace(TINY, steps=1), tmp_path / "run", progress=False)
    assert cli.main(["evaluate", str(tmp_path / "run"), "--clips", "1", "--pictures", "1"]) == 0


@pytest.mark.parametrize(
    ("value", "message"), [("", None), (" \t", None), (" cpu ", None), ("abacus", "unknown backend 'abacus'")]
)
def test_the_backends_variable(value: str, message: str | None) -> None:
    """Empty or blank is as unset; a wrong one is named where a backend is first used, and an import never fails."""
    code = (
        "import torch, motionrnn_ext\nprint('imported')\n"
        "try:\n    motionrnn_ext.MotionGRU(8)(torch.zeros(1, 8, 4, 4))\n    print('ran')\n"
        "except ValueError as error:\n    print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MOTIONRNN_EXT_BACKEND": value}
    environment["MOTIONRNN_EXT_CPU_ISA"] = " "
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    expected = "ran" if message is None else f"{message} (MOTIONRNN_EXT_BACKEND); known are: auto, reference"
    assert done.stdout.startswith(f"imported\n{expected}"), done


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "MOTIONRNN_EXT_BACKEND",
            "unknown backend 'abacus' (MOTIONRNN_EXT_BACKEND); known are: auto, reference",
        ),
        ("MOTIONRNN_EXT_CPU_ISA", "MOTIONRNN_EXT_CPU_ISA is 'abacus'; it should be baseline, x86_64_v3 or"),
        ("MOTIONRNN_EXT_WINOGRAD", "MOTIONRNN_EXT_WINOGRAD is 'abacus'; it should be 0 or 1"),
    ],
)
def test_a_wrong_variable_ends_the_program_before_its_work(name: str, message: str, short: Path) -> None:
    done = run("train", "--config", "settings.json", "--out", "wrong", here=short, **{name: "abacus"})
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(f"motionrnn train: error: {message}".encode())
    assert not (short / "wrong").exists()
    assert run("info", **{name: "abacus"}).returncode == 0


@pytest.mark.parametrize(
    ("value", "on"),
    [("1", True), ("True", True), ("yes", True), ("", False), ("0", False), (" ", False)],
)
def test_variables_that_say_yes_are_read_as_triton_reads_them(
    value: str, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert triton.is_on("TRITON_INTERPRET") is on
    if triton._IS_INSTALLED:
        assert pytest.importorskip("triton.knobs").runtime.interpret is on


def test_nothing_is_announced_before_the_settings_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(TINY, steps=1).write(tmp_path / "settings.json")
    words = ["train", "--config", str(tmp_path / "settings.json"), "--out", str(tmp_path / "run")]
    for options, message in {
        ("--digits", str(tmp_path / "none")): "is no folder",
        ("--nodes", "2"): "nodes is 2, but the environment lacks MASTER_ADDR",
    }.items():
        assert cli.main([*words, *options]) == 2
        out, err = capsys.readouterr()
        assert out == "" and message in err and not (tmp_path / "run").exists(), options
    assert cli.main(words) == 0
    assert (
        capsys.readouterr().out.splitlines()[1] == f"1 step of 2 clips; everything goes to {tmp_path / 'run'}"
    )


def test_a_choice_in_the_program_is_not_blamed_on_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTIONRNN_EXT_BACKEND", "reference")
    with pytest.raises(ValueError, match="unknown backend 'abacus'; known"):
        backends.set_backend("abacus")
    assert MotionGRU(8)(torch.zeros(1, 8, 4, 4))[0].shape == (1, 8, 4, 4)


# ---- Files


def test_texts(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    content = json.dumps(TINY.to_dict(), indent=2)
    path.write_bytes(b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
    assert Config.read(path) == TINY
    path.write_text(content, "utf-16")
    with pytest.raises(ValueError, match="no readable JSON file: it is in UTF-16; save it as UTF-8"):
        Config.read(path)
    path.write_bytes(b"a\0b")
    with pytest.raises(NoText, match="it is no text"):
        read_text(path)
    path.write_bytes(b"caf\xe9\n")
    assert os.fsencode(read_text(path)) == b"caf\xe9\n"


def test_a_list_of_clips_with_a_mark_and_names_that_are_no_text(tmp_path: Path) -> None:
    from motionrnn_ext.data.human36m import Human36MOpenSTL

    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    for number in (1, 6):
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(folder / f"S1_{number:06d}.jpg")
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9/S1_,1,6\r\n")
    clip = Human36MOpenSTL("train", tmp_path, n_frames=2, image_size=(8, 8))[0]
    torch.testing.assert_close(clip.mean((1, 2, 3)), torch.tensor([40.0, 240.0]) / 255, rtol=0, atol=1e-6)
    (tmp_path / "train.txt").write_text("S1_,1,6", "utf-16")
    with pytest.raises(
        ValueError, match=r"train.txt: the list of clips cannot be read \(it is in UTF-16; save it"
    ):
        Human36MOpenSTL("train", tmp_path, n_frames=2)


def test_a_locked_file_is_called_locked(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    from motionrnn_ext.data.radar_h5 import RadarH5

    path = tmp_path / "shanghai.h5"
    code = "import h5py, sys; from motionrnn_ext.data.radar_h5 import RadarH5; RadarH5('test', sys.argv[1])"
    with h5py.File(path, "w"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code, path], env=environment, capture_output=True, text=True
        )
    assert f"ValueError: {path}: locked by another process" in done.stderr
    assert "HDF5_USE_FILE_LOCKING=FALSE" in done.stderr
    with pytest.raises(ValueError, match="it must have a group"):
        RadarH5("test", path)


def test_a_file_that_cannot_be_opened_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"x")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    assert (
        str(unreadable(path, ValueError("odd"), "a .npy file"))
        == f"{path}: damaged, or not a .npy file (odd)"
    )
    monkeypatch.setattr(io, "open", refuse)
    assert (
        str(unreadable(path, ValueError("odd"), "a .npy file"))
        == f"{path}: cannot be opened (Permission denied)"
    )


def test_what_counts_as_unset_when_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    unset = streams._UNSET_IF_EMPTY.fullmatch
    assert all(map(unset, ("RANK", "MOTIONRNN_EXT_BACKEND", "SLURM_NTASKS", "OMP_NUM_THREADS", "HOME")))
    assert not any(map(unset, ("CUDA_VISIBLE_DEVICES", "PATH", "PYTHONPATH", "HIP_VISIBLE_DEVICES")))
