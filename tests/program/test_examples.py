"""The programs of examples/: each runs by itself, says what it should, and stays short."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from repository import ROOT

from motionrnn_ext.layers.cells import CELLS

FOLDER = ROOT / "examples"
PROGRAMS = sorted(FOLDER.glob("*.py"))
LOSS = r"loss (\d+\.\d+)"


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Run an example in this process, and return what it prints."""

    def run(name: str) -> str:
        monkeypatch.setattr(sys, "argv", [name])
        known = dict(CELLS)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("error", RuntimeWarning)
            runpy.run_path(str(FOLDER / name), run_name="__main__")
        CELLS.clear()
        CELLS.update(known)
        return capsys.readouterr().out

    return run


def numbers(pattern: str, text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(pattern, text)]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_is_short_and_says_what_it_shows(program: Path):
    text = program.read_text()
    lines = text.splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 100
    assert text.startswith('"""')


def test_drop_in_layer(output: Callable[[str], str]):
    first, last = numbers(LOSS, output("drop_in_layer.py"))
    assert last < 0.2 * first


def test_own_predictor(output: Callable[[str], str]):
    text = output("own_predictor.py")
    losses = numbers(r"loss (\d+\.\d+) -> (?:\d+\.\d+)", text), numbers(r"-> (\d+\.\d+)", text)
    assert [len(side) for side in losses] == [2, 2]
    assert all(last < 0.8 * first for first, last in zip(*losses))
    alone, with_motion = numbers(r"([\d,]+) parameters", text)
    assert alone < with_motion


def test_own_predictor_by_the_command_line(tmp_path: Path):
    pytest.importorskip("lightning")
    words = "train --import own_predictor --predictor conv_gru --hidden 4 4 --image-size 16 16 --digit-size 8"
    words += " --filter-size 3 --patch-size 2 --n-input 2 --n-output 2 --steps 1 --batch-size 1 --val-clips 1"
    words += " --accelerator cpu"
    command = [sys.executable, "-m", "motionrnn_ext.cli", *words.split(), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


def test_train_on_frames(output: Callable[[str], str]):
    pytest.importorskip("lightning")
    pytest.importorskip("PIL")
    text = output("train_on_frames.py")
    last, mean, _, ours = numbers(r"MSE (\d+\.\d+)", text)
    assert ours < 0.7 * min(last, mean)
    assert text.count("(baseline)") == 3
    assert "(1, 4, 1, 32, 32)" in text


def test_stream(output: Callable[[str], str]):
    text = output("stream.py")
    (difference,) = numbers(r"differ by (\S+)", text)
    assert difference < 1e-5
    assert len(set(numbers(r"([\d,]+) bytes", text))) == 1  # the state does not grow
    first, last = numbers(LOSS, text)
    assert last < 0.5 * first
