"""A run's folder, which `motionrnn train` fills and everything else reads.

config.json             the settings, see `Config`
checkpoints/last.ckpt   after the last validation; `--resume` goes on from it
checkpoints/best.ckpt   of the lowest validation MSE
logs/version_N/         CSV and TensorBoard logs, one folder per start of the program
metrics.csv             those CSV logs as one
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .config import Config
from .models import MotionRNN
from .untrusted import load_tensors
from .visualize import read_log

PathLike = str | os.PathLike[str]
CONFIG_KEY = "motionrnn_config"


class RunError(ValueError):
    """What the user can put right; the text is one line."""


class NotFinite(RunError):
    """A training came upon a number that is not finite; no checkpoint holds one."""


class Run(NamedTuple):
    """What a checkpoint holds."""

    config: Config
    model: MotionRNN
    step: int
    path: Path


def start_folder(folder: Path, config: Config, resume: bool) -> Path | None:
    """Make or reopen a run's folder; returns the checkpoint to go on from, if there is one.

    Raises:
        RunError: the folder is in use and `resume` is not set, or there is no such run to resume.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if resume:
        if resumable_config(folder) != config:
            raise RunError(f"{folder} was started with other settings, see {folder / 'config.json'}")
        return last if last.exists() else None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(
            f"{folder} exists: go on with that run with --resume, or name another folder with --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    config.write(folder / "config.json")
    return None


def resumable_config(folder: Path) -> Config:
    if not (folder / "config.json").is_file():
        raise RunError(f"there is no run to resume in {folder}: it has no config.json")
    return Config.read(folder / "config.json")


def fresh_folder(folder: Path) -> Path:
    """`folder` if nothing is there, or the first of folder-2, folder-3, ... where nothing is."""
    candidate, n = folder, 1
    while candidate.exists() and (not candidate.is_dir() or any(candidate.iterdir())):
        n += 1
        candidate = folder.with_name(f"{folder.name}-{n}")
    return candidate


def load_run(path: PathLike) -> Run:
    """The model of a checkpoint, in evaluation mode on the CPU; of a run's folder, the best or else the last one.

    Raises:
        RunError: nothing there, a truncated file, or no checkpoint of `motionrnn train`.
    """
    path = _checkpoint_file(Path(path))
    content = read_checkpoint(path)
    config = Config.from_dict(content[CONFIG_KEY], str(path))
    model = MotionRNN(**config.model())
    weights = {
        name.removeprefix("model."): tensor
        for name, tensor in content["state_dict"].items()
        if name.startswith("model.")
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"{path} does not fit its own settings: {' '.join(str(error).split())[:200]}"
        ) from None
    return Run(config, model.eval(), int(content.get("global_step", 0)), path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of `motionrnn train`, with weights_only=True: no code of it can run."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        with file:
            content = load_tensors(file)
    except Exception:
        raise RunError(f"{path} is truncated or no checkpoint of `motionrnn train`") from None
    good = isinstance(content, dict) and isinstance(content.get("state_dict"), dict) and CONFIG_KEY in content
    if not good:
        raise RunError(
            f"{path} is no checkpoint of `motionrnn train` (for one of the official program: "
            "motionrnn_ext.models.load_checkpoint)"
        )
    return content


def last_step(folder: Path) -> int | None:
    """That the last checkpoint of a run is of; None where there is none yet."""
    last = folder / "checkpoints" / "last.ckpt"
    return int(read_checkpoint(last)["global_step"]) if last.exists() else None


def _checkpoint_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in ("best.ckpt", "last.ckpt"):
        if (path / "checkpoints" / name).is_file():
            return path / "checkpoints" / name
    what = "has no checkpoint yet" if path.is_dir() else "does not exist"
    raise RunError(f"{path} {what}; it should be a run's folder or a .ckpt file")


def checkpoint_home(path: Path) -> Path:
    """The folder that results for this checkpoint go to: its run's, or the one it lies in."""
    if not path.is_file():
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def log_versions(folder: Path) -> list[Path]:
    """The folders logs/version_N, in order."""
    found = (folder / "logs").glob("version_*")
    return sorted((path for path in found if path.name[8:].isdigit()), key=lambda path: int(path.name[8:]))


def seconds_per_step(folder: Path) -> float | None:
    """The median over a run's logged steps; None where none was logged, for a run shorter than log_every."""
    try:
        _, seconds = read_log(folder / "metrics.csv", ["train/seconds"])["train/seconds"]
    except ValueError:
        return None
    return median(seconds)


def join_logs(folder: Path) -> Path:
    """Write metrics.csv from logs/version_*/metrics.csv; rows of steps that a later start repeated count once."""
    rows: list[dict[str, str]] = []
    for version in log_versions(folder):
        if (version / "metrics.csv").is_file():
            with open(version / "metrics.csv", newline="") as file:
                later = [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]
            if later:
                first = min(int(row["step"]) for row in later)
                rows = [row for row in rows if int(row["step"]) < first] + later
    part = folder / "metrics.csv.part"
    with open(part, "w", newline="") as file:
        names = sorted({name for row in rows for name in row if name and name != "step"})
        writer = csv.DictWriter(file, ["step", *names], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, folder / "metrics.csv")
    return folder / "metrics.csv"
