"""A run's folder, which `motionrnn train` fills and everything else reads.

config.json             the settings, see `Config`
checkpoints/last.ckpt   after the last validation; `--resume` goes on from it, or where it was lost from the best
checkpoints/best.ckpt   of the lowest validation MSE
logs/version_N/         CSV and TensorBoard logs, one folder per start of the program
metrics.csv             those CSV logs as one
"""

from __future__ import annotations

import csv
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from torch import Tensor

from ..data.registry import find
from ..files import write_atomically
from ..models import MotionRNN
from ..models.checkpoints.loading import find_model, in_words
from ..models.checkpoints.reading import RUN_SETTINGS as CONFIG_KEY
from ..models.checkpoints.reading import read_file
from ..models.variants import OPTIONS
from ..visualize import read_log
from .config import Config
from .resuming import Unchangeable, resumed

PathLike = str | os.PathLike[str]


class RunError(ValueError):
    """What the user can put right; the text is one line."""


class NotFinite(RunError):
    """A training came upon a number that is not finite; no checkpoint holds one."""


class Run(NamedTuple):
    """What a checkpoint holds."""

    config: Config
    model: MotionRNN
    step: int | None  # None where the checkpoint does not say it
    path: Path


def start_folder(folder: Path, config: Config, resume: bool) -> Path | None:
    """Make or reopen a run's folder; returns the checkpoint to go on from, if there is one.

    Raises:
        RunError: the folder is in use and `resume` is not set, there is no such run to resume, or its numbers depend
            on a setting that differs.
    """
    last = last_checkpoint(folder)
    if resume:
        if resumed_config(folder, config) != resumable_config(folder):
            config.write(folder / "config.json")
        return last if last.exists() else None
    check_new(folder)
    for path in log_versions(folder):  # of a start that came to no checkpoint
        shutil.rmtree(path)
    folder.mkdir(parents=True, exist_ok=True)
    config.write(folder / "config.json")
    return None


def check_new(folder: Path) -> None:
    """RunError where something in `folder` would be lost if a training started there."""
    if has_begun(folder):
        raise RunError(
            f"{folder} exists: go on with that run with --resume, or name another folder with --out"
        )


def has_begun(folder: Path) -> bool:
    """Whether something in `folder` would be lost if a training started there: a checkpoint, or what is no run's. What
    a start leaves that ended before its first checkpoint is none."""
    if is_free(folder):
        return False
    try:
        resumable_config(folder)
        names = {path.name.removesuffix(".part") for path in folder.iterdir()}
    except (ValueError, OSError):
        return True
    kept = [path for path in (folder / "checkpoints").glob("*") if path.suffix != ".part"]
    return bool(names - {"config.json", "metrics.csv", "logs", "checkpoints"}) or bool(kept)


def resumed_config(folder: Path, config: Config) -> Config:
    """The settings of the run in `folder` when it goes on as `config`, see `resuming`. RunError where it cannot."""
    try:
        return resumed(resumable_config(folder), config, partial(last_step, folder))
    except Unchangeable as error:
        place = folder / "config.json"
        raise RunError(f"{folder} was started with other settings, see {place}: {error}") from None


def resumable_config(folder: Path) -> Config:
    if not (folder / "config.json").is_file():
        raise RunError(f"there is no run to resume in {folder}: it has no config.json")
    return Config.read(folder / "config.json")


def fresh_folder(folder: Path) -> Path:
    """`folder` if nothing is there, or the first of folder-2, folder-3, ... where nothing is."""
    return next(filter(is_free, numbered(folder)))


def numbered(folder: Path) -> Iterator[Path]:
    """`folder`, folder-2, folder-3 and so on."""
    yield folder
    yield from (folder.with_name(f"{folder.name}-{n}") for n in count(2))


def is_free(folder: Path) -> bool:
    """Whether nothing is there, or an empty folder."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def load_run(
    path: PathLike,
    dataset: str | None = None,
    like: Config | None = None,
    model: Mapping[str, Any] | None = None,
) -> Run:
    """The model of a checkpoint, in evaluation mode on the CPU; of a run's folder, the best or else the last one.

    A file of weights alone, such as the official program's, has no settings of the data: they are those of `like`,
    another run, or what `dataset` commonly has, by default a data set of as many channels; a warning says which.
    `model` has the arguments of its MotionRNN that no tensor shows, as for `load_checkpoint`; a second warning says
    what is assumed of them.

    Raises:
        RunError: nothing there, a truncated file, no data for such frames, or `model` for a run's checkpoint, which has
            its own. ValueError: as `load_checkpoint`.
    """
    path = checkpoint_file(Path(path))
    content = _read(path)
    if not _is_of_run(content):
        return _of_weights(path, dataset, like, model or {})
    if model:
        raise RunError(
            f"{path} is of a run, and its settings say what its model is; leave out {', '.join(flags(model))}"
        )
    config = Config.from_dict(content[CONFIG_KEY], str(path))
    made = MotionRNN(**config.model())
    weights = {
        name.removeprefix("model."): tensor
        for name, tensor in content["state_dict"].items()
        if name.startswith("model.")
    }
    try:
        made.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"{path} does not fit its own settings: {' '.join(str(error).split())[:200]}"
        ) from None
    return Run(config, made.eval(), int(content.get("global_step", 0)), path)


def load_runs(
    paths: Sequence[PathLike], dataset: str | None = None, model: Mapping[str, Any] | None = None
) -> list[Run]:
    """`load_run` of each; weights alone are taken for a model of the first run's data, and as `model` says."""
    if len(paths) < 2:
        return [load_run(path, dataset, None, model) for path in paths]
    settings = [settings_of(path) for path in paths]
    like = next((config for config in settings if config is not None), None)
    given = [None if config is not None and None in settings else model for config in settings]
    return [load_run(path, dataset, like, arguments) for path, arguments in zip(paths, given)]


def flags(arguments: Iterable[str]) -> list[str]:
    """The options of the program that stand for arguments of MotionRNN."""
    own = {
        "cell_options": "--cell-option",
        "in_channels": "--dataset",
        **dict.fromkeys(OPTIONS, "--override"),
    }
    return list(dict.fromkeys(own.get(name, f"--{name.replace('_', '-')}") for name in arguments))


def _of_weights(path: Path, dataset: str | None, like: Config | None, given: Mapping[str, Any]) -> Run:
    """The run that a file of weights alone would be of."""
    name = like.dataset if like else dataset
    try:
        found = find_model(path, **{"in_channels": None if name is None else find(name).channels, **given})
    except TypeError as error:  # an argument of `given`
        raise RunError(f"{path}: {error}") from None
    model = found.model.eval()
    made = model.arguments
    name = name or {1: "moving_digits", 3: "human36m"}.get(made["in_channels"])
    if name is None:
        raise RunError(
            f"{path} is of a model with {made['in_channels']} channels; name a data set that has so many (--dataset)"
        )
    names = ["predictor", "patch_size", "filter_size", "layer_norm", "variant", "cell_options"]
    names += ["motion_gru", "highway", "transient", "trend"]
    settings = {option: made[option] for option in names}
    settings |= {"hidden": made["hidden_channels"], "compat": made["compat"] or "none"}
    settings["overrides"] = {
        option: float(made[option].detach()) if isinstance(made[option], Tensor) else made[option]
        for option in OPTIONS
    }
    if made["image_size"]:
        settings["image_size"] = made["image_size"]
    if given.get("image_size"):
        settings["image_size"] = given["image_size"]
    config = Config(**{**(like.to_dict() if like else {"dataset": name}), **settings})
    height, width = config.image_size
    for sentence in found.left_out:
        warnings.warn(f"{path}: left out {sentence}", stacklevel=3)
    if found.pruned:
        warnings.warn(f"{path}: applied the pruning masks of {found.pruned}", stacklevel=3)
    if found.assumed:
        warnings.warn(
            f"{path} holds weights alone: assumed {in_words(found.assumed)}, which no tensor shows; give what differs "
            f"({', '.join(flags(found.assumed))})",
            stacklevel=3,
        )
    warnings.warn(
        f"{path} holds weights alone: taken as of {config.dataset}, {height}x{width}, {config.n_input} frames in and "
        f"{config.n_output} out",
        stacklevel=3,
    )
    return Run(config, model, None, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of `motionrnn train`, with weights_only=True: no code of it can run."""
    content = _read(path)
    if not _is_of_run(content):
        raise RunError(
            f"{path} is no checkpoint of `motionrnn train` (for one of the official program: "
            "motionrnn_ext.models.load_checkpoint)"
        )
    return content


def settings_of(source: PathLike) -> Config | None:
    """The settings that a new run begins with as it takes the weights of `source`; None of a public checkpoint."""
    path = checkpoint_file(Path(source))
    content = _read(path)
    return Config.from_dict(content[CONFIG_KEY], str(path)) if _is_of_run(content) else None


def last_checkpoint(folder: Path) -> Path:
    """What `--resume` goes on from; it need not be there. Where last.ckpt was lost that is the best one."""
    last, best = (folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    return best if best.exists() and not last.exists() else last


def _read(path: Path) -> Any:
    try:
        return read_file(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        if "is truncated" in str(error):
            raise RunError(f"{path} is truncated or no checkpoint of `motionrnn train`") from None
        raise RunError(str(error)) from None


def _is_of_run(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("state_dict"), dict) and CONFIG_KEY in content


def last_step(folder: Path) -> int | None:
    """That the last checkpoint of a run is of; None where there is none yet."""
    last = last_checkpoint(folder)
    return int(read_checkpoint(last)["global_step"]) if last.exists() else None


def checkpoint_file(path: Path) -> Path:
    """The file that a user means: that, or of a run's folder its best checkpoint or else the last one."""
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
            with open(version / "metrics.csv", newline="", encoding="utf-8") as file:
                later = [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]
            if later:
                first = min(int(row["step"]) for row in later)
                rows = [row for row in rows if int(row["step"]) < first] + later
    with (
        write_atomically(folder / "metrics.csv") as part,
        open(part, "w", newline="", encoding="utf-8") as file,
    ):
        names = sorted({name for row in rows for name in row if name and name != "step"})
        writer = csv.DictWriter(file, ["step", *names], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder / "metrics.csv"
