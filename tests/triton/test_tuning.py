"""Blocks that were measured: when they are, where they are kept, and what happens if the files are damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from repository import ROOT

from motionrnn_ext import cli

pytest.importorskip("triton", reason="the package triton is not installed")
from motionrnn_ext.backends.triton import launch, measured, tuning
from motionrnn_ext.backends.triton.launch import BLOCKS, CANDIDATES, MANY, Block
from motionrnn_ext.backends.triton.measured import Row

GPU = "NVIDIA Fake 9/80GB"
X = torch.ones(1)


class Machine:
    """A process on a GPU whose fastest block is the last candidate of every op."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        self.patch, self.cache = monkeypatch, cache
        self.timed = 0
        monkeypatch.setenv("MOTIONRNN_EXT_CACHE", str(cache))
        monkeypatch.delenv("MOTIONRNN_EXT_AUTOTUNE", raising=False)
        monkeypatch.setattr(launch, "INTERPRETED", False)
        monkeypatch.setattr(launch, "_tuned", {})
        monkeypatch.setattr(launch, "_time", self.time)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(tuning, "gpu_name", lambda _: GPU)
        self.restart()

    def time(self, call: Callable[[], Any]) -> float:
        self.timed += 1
        return float(-CANDIDATES["offset_warp"].index(call()))

    def restart(self, tune: str | None = None) -> None:
        """Forget what the process knew, as a new one does, and set MOTIONRNN_EXT_AUTOTUNE."""
        launch._tuned.clear()
        tuning.stored.cache_clear()
        self.patch.setattr(tuning, "_warned", set())
        if tune is None:
            self.patch.delenv("MOTIONRNN_EXT_AUTOTUNE", raising=False)
        else:
            self.patch.setenv("MOTIONRNN_EXT_AUTOTUNE", tune)

    def block(self, channels: int = 16, dtype: torch.dtype = torch.float32) -> Block:
        """Return the block that a warp of so many channels runs with."""
        return launch.in_blocks("offset_warp", channels, X.to(dtype), MANY, lambda block: block)

    def files(self) -> list[Path]:
        return sorted(path for path in self.cache.rglob("*") if path.is_file())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    yield Machine(monkeypatch, tmp_path / "cache")
    tuning.stored.cache_clear()


TABLE = BLOCKS["offset_warp"][0][1]
FASTEST = CANDIDATES["offset_warp"][-1]


def test_a_choice_is_measured_once_and_kept(machine: Machine):
    assert machine.block() == TABLE and machine.timed == 0 and machine.files() == []
    machine.restart("1")
    assert machine.block() == FASTEST != TABLE
    assert machine.timed == len(CANDIDATES["offset_warp"])
    (file,) = machine.files()
    row = Row(GPU, launch.triton.__version__, "offset_warp", "", 16, "float32", *FASTEST[:2])
    assert json.loads(file.read_text()) == row._asdict()
    for tune in ("1", None, ""):
        machine.restart(tune)
        assert machine.block() == FASTEST  # as a later process finds it
    machine.restart("0")
    assert machine.block() == TABLE
    assert machine.timed == len(CANDIDATES["offset_warp"])


@pytest.mark.parametrize("what", ["channels", "dtype", "gpu", "triton", "package"])
def test_a_choice_holds_for_nothing_else(machine: Machine, what: str):
    machine.restart("1")
    machine.block()
    machine.restart()
    if what == "gpu":
        # The folder of this name is the same.
        machine.patch.setattr(tuning, "gpu_name", lambda _: "NVIDIA Fake 9_80GB")
    if what == "triton":
        machine.patch.setattr(tuning.triton, "__version__", "99.0.0")
    if what == "package":
        machine.patch.setattr("motionrnn_ext.__version__", "99.0.0")
    given = {"channels": {"channels": 8}, "dtype": {"dtype": torch.bfloat16}}.get(what, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if what == "gpu" else "error")
        assert machine.block(**given) == TABLE


DAMAGED = {
    "empty": b"",
    "cut off": b'{"gpu": "NVIDIA',
    "no text": b"\xff\xfe\x00",
    "no row": b"[1, 2]",
    "fields missing": b'{"gpu": "a"}',
    "of another op": json.dumps(
        Row(GPU, launch.triton.__version__, "pointwise", "", 16, "float32", 512, 4)._asdict()
    ).encode(),
    "no numbers": json.dumps(
        Row(GPU, launch.triton.__version__, "offset_warp", "", 16, "float32", "64", 4)._asdict()  # type: ignore[arg-type]
    ).encode(),
}


@pytest.mark.parametrize("damage", [*DAMAGED, "a folder"])
def test_a_damaged_file_is_one_warning_and_is_written_anew(machine: Machine, damage: str):
    machine.restart("1")
    machine.block(), machine.block(channels=8)
    for file in machine.files():
        file.unlink()
        if damage == "a folder":
            file.mkdir()
        else:
            file.write_bytes(DAMAGED[damage])
    machine.restart()
    with pytest.warns(
        UserWarning, match="the measured block of Triton's kernels in .* cannot be read"
    ) as caught:
        assert machine.block() == TABLE and machine.block(channels=8) == TABLE
    assert len(caught) == 1
    if damage == "a folder":
        return
    machine.restart("1")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert machine.block() == FASTEST
    machine.restart()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert machine.block() == FASTEST


def test_a_block_that_is_no_candidate_any_more_is_measured_anew(machine: Machine):
    tuning.keep(tuning.Key("offset_warp", "", 16, torch.float32, X.device), 48, 4)
    assert machine.block() == TABLE
    machine.restart("1")
    assert machine.block() == FASTEST


@pytest.mark.parametrize("why", ["no folder can be made", "the disk is full", "no home"])
def test_what_cannot_be_kept_is_one_warning(machine: Machine, why: str, tmp_path: Path):
    if why == "no folder can be made":
        (tmp_path / "file").touch()
        machine.patch.setenv("MOTIONRNN_EXT_CACHE", str(tmp_path / "file" / "below"))
    if why == "the disk is full":

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        machine.patch.setattr(tuning.os, "replace", full)
    if why == "no home":

        def no_home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        machine.patch.delenv("MOTIONRNN_EXT_CACHE")
        machine.patch.delenv("XDG_CACHE_HOME", raising=False)
        machine.patch.setattr(tuning.Path, "home", no_home)
    machine.restart("1")
    message = "the measured blocks of Triton's kernels cannot be kept: .*; they serve this process alone"
    with pytest.warns(UserWarning, match=message) as caught:
        assert machine.block() == machine.block(channels=8) == FASTEST
    assert len(caught) == 1
    assert machine.block() == FASTEST and machine.files() == []


def test_files_are_whole_while_several_write_and_read_them(machine: Machine):
    key = tuning.Key("offset_warp", "", 16, torch.float32, X.device)
    candidates = CANDIDATES["offset_warp"]
    tuning.keep(key, *candidates[0][:2])
    read = []

    def write(block: Block) -> None:
        for _ in range(50):
            tuning.keep(key, block.size, block.warps)
            read.append(tuning._read(tuning._row(key, 0, 0)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=write, args=(block,)) for block in candidates[:4]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read) == 200 and all(Block(row.size, row.warps) in candidates[:4] for row in read)
    assert len(machine.files()) == 1 and tuning._warned == set()


def test_the_folder_is_that_of_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("MOTIONRNN_EXT_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    bases = {"/elsewhere": Path("/elsewhere"), "relative": tmp_path / ".cache", "": tmp_path / ".cache"}
    for set_to, base in bases.items():
        monkeypatch.setenv("XDG_CACHE_HOME", set_to)
        assert tuning.folder() == base / "motionrnn_ext" / "blocks"
    monkeypatch.setenv("MOTIONRNN_EXT_CACHE", "/ours")
    assert tuning.folder() == Path("/ours/blocks")


def test_rows_of_the_package_serve_their_gpu(machine: Machine):
    other, wanted = CANDIDATES["offset_warp"][:2]
    version = launch.triton.__version__
    rows = [
        Row("Another GPU", version, "offset_warp", "", 16, "float32", *other[:2]),
        Row(GPU, version, "offset_warp", "", 32, "float32", *other[:2]),
        Row(GPU, "0.1", "offset_warp", "", 16, "float32", *wanted[:2]),
    ]
    machine.patch.setattr(measured, "ROWS", rows)
    # The row is of another version of Triton, because there is none of this one.
    assert machine.block() == wanted
    machine.restart("1")
    assert machine.block() == wanted and machine.timed == 0
    machine.restart("0")
    assert machine.block() == TABLE
    machine.patch.setattr(measured, "ROWS", [*rows, rows[-1]._replace(triton=version, warps=8)])
    machine.restart()
    assert machine.block() == wanted._replace(warps=8)
    tuning.keep(tuning.Key("offset_warp", "", 16, torch.float32, X.device), *FASTEST[:2])
    machine.restart()
    assert machine.block() == FASTEST  # measured on this very machine


def test_if_no_candidate_fits_the_table_stays(machine: Machine):
    machine.patch.setattr(launch, "_time", lambda _: float("inf"))
    machine.restart("1")
    assert machine.block() == TABLE and machine.files() == []


# ---- The command


def test_tune_refuses_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from motionrnn_ext.backends import triton

    monkeypatch.setattr(triton, "unavailable_reason", lambda: "PyTorch finds no GPU")
    assert cli.main(["tune"]) == 2
    said = "motionrnn tune: error: tune needs a GPU that runs Triton's kernels: PyTorch finds no GPU\n"
    assert capsys.readouterr().err == said
    monkeypatch.setattr(triton, "unavailable_reason", lambda: None)
    monkeypatch.setattr(triton, "INTERPRETED", True)
    assert cli.main(["tune"]) == 2
    assert "TRITON_INTERPRET=1 runs Triton's kernels on the CPU" in capsys.readouterr().err


# Triton's interpreter runs the kernels on CPU tensors; only the clock and the GPU's name are made up.
TUNE = """
from types import SimpleNamespace
import torch
from motionrnn_ext import cli
from motionrnn_ext.backends.triton import launch, tuning, unavailable_reason
from motionrnn_ext.cli import tune
assert unavailable_reason() is None
tune.triton = SimpleNamespace(unavailable_reason=lambda: None, INTERPRETED=False)
launch.INTERPRETED = False
launch._time = lambda call: float(call.args[0].size + call.args[0].warps)
tuning.gpu_name = lambda device: "Fake"
torch.cuda.is_current_stream_capturing = lambda: False
tune.tune.__defaults__ = ("cpu",)
words = "tune --channels 8 --dtype float32 --size 4 4 --batch-size 1"
assert cli.main(words.split()) == 0
"""


def test_tune_prints_a_table_or_rows(machine: Machine, capsys: pytest.CaptureFixture[str]):
    row = Row(GPU, "3.9.0", "candidate", "candidate_kernel", 16, "bfloat16", 64, 8)
    found = [
        launch.Measured(row, 0.25, 0.5),
        launch.Measured(row._replace(op="offset_warp", kernel=""), 1.0, 2.0),
    ]
    asked = []
    machine.patch.setattr("motionrnn_ext.cli.tune.tune", lambda *given: asked.append(given) or found)
    assert cli.main(["tune", "--channels", "64", "32", "--dtype", "bfloat16", "--size", "8", "16"]) == 0
    assert asked == [([64, 32], ["bfloat16"], (8, 16), 8)]
    assert capsys.readouterr().out == (
        f"{GPU}, Triton 3.9.0\n\n"
        "op                          channels  dtype     size  warps  ms      ms of the default\n"
        "candidate candidate_kernel  16        bfloat16  64    8      0.2500  0.5000\n"
        "offset_warp                 16        bfloat16  64    8      1.0000  2.0000\n"
    )
    assert cli.main(["tune", "--rows"]) == 0
    assert asked[1] == ([64], ["float32", "bfloat16"], (32, 32), 8)
    printed = eval(f"[{capsys.readouterr().out}]", {"Row": Row})  # as they are pasted into measured.py
    assert printed == [choice.row for choice in found]


@pytest.mark.slow  # 16 s
def test_tune_measures_every_op_and_keeps_it(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", TUNE],
        env={
            **os.environ,
            "TRITON_INTERPRET": "1",
            "OMP_NUM_THREADS": "1",
            "MOTIONRNN_EXT_CACHE": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kept = [Row(**json.loads(path.read_text())) for path in tmp_path.rglob("*.json")]
    assert {row.op for row in kept} == set(CANDIDATES)
    # A MotionGRU's cell has a quarter of the layer's channels, which its output gate has.
    for row in kept:
        assert row.op == "pointwise" or row.channels == (8 if row.op == "decode_blend" else 2), row
    smallest = min(CANDIDATES["offset_warp"], key=lambda block: block.size + block.warps)
    assert Row("Fake", launch.triton.__version__, "offset_warp", "", 2, "float32", *smallest[:2]) in kept
    assert len(done.stdout.splitlines()) == 3 + len(kept)
