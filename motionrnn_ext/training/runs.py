"""The folder of a run, which `motionrnn train` writes and the other commands read.

config.json             the settings, see `Config`
checkpoints/last.ckpt   the checkpoint after the last validation, from which `--resume` continues
checkpoints/best.ckpt   the checkpoint with the lowest validation MSE; `--resume` uses it if last.ckpt is lost
logs/version_N/         CSV and TensorBoard logs, one folder per start of the program
metrics.csv             the CSV logs joined
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

from ..caller import stacklevel_of_user
from ..data.registry import find
from ..files import write_atomically
from ..models import MotionRNN
from ..models.checkpoints.loading import find_model, in_words
from ..models.checkpoints.reading import RUN_SETTINGS as CONFIG_KEY
from ..models.checkpoints.reading import WEIGHTS, file_to_name, is_pretrained, read_file
from ..models.variants import OPTIONS
from ..pretrained import shipped, shipped_folder
from ..visualize import read_log
from .config import Config
from .resuming import Unchangeable, resumed

PathLike = str | os.PathLike[str]


class RunError(ValueError):
    """An error that the user can correct, with a message of one line."""


class NotFinite(RunError):
    """A number of a training became nan or infinite. No checkpoint holds such a number."""


class Run(NamedTuple):
    """The content of a checkpoint."""

    config: Config
    model: MotionRNN
    step: int | None  # None for a file of weights alone
    path: Path


def start_folder(folder: Path, config: Config, resume: bool) -> Path | None:
    """Make or reopen a run's folder. Return the checkpoint to resume from, or None if there is none.

    Raises:
        RunError: the folder has content and `resume` is not set; there is no run to resume; or a setting differs that
            the run's numbers depend on.
    """
    last = last_checkpoint(folder)
    if resume:
        if resumed_config(folder, config) != resumable_config(folder):
            config.write(folder / "config.json")
        return last if last.exists() else None
    check_new(folder)
    for path in log_versions(folder):  # an earlier start ended before its first checkpoint
        shutil.rmtree(path)
    folder.mkdir(parents=True, exist_ok=True)
    config.write(folder / "config.json")
    return None


def check_new(folder: Path) -> None:
    """Raise RunError if a training that starts in `folder` would overwrite something there."""
    if has_begun(folder):
        raise RunError(
            f"{folder} exists: go on with that run with --resume, or name another folder with --out"
        )


def has_begun(folder: Path) -> bool:
    """Return whether a training that starts in `folder` would overwrite something there.

    That is a checkpoint, or a file that does not belong to a run. The files of a start that ended before its first
    checkpoint do not count.
    """
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
    """Return the settings of the run in `folder` when it is resumed as `config`, see resuming.py. Raise RunError if it
    cannot be."""
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
    """Return the first of `folder`, folder-2, folder-3 and so on that does not exist or is empty."""
    return next(filter(is_free, numbered(folder)))


def numbered(folder: Path) -> Iterator[Path]:
    """Yield `folder`, folder-2, folder-3 and so on."""
    yield folder
    yield from (folder.with_name(f"{folder.name}-{n}") for n in count(2))


def is_free(folder: Path) -> bool:
    """Return whether `folder` does not exist or is an empty folder."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def load_run(
    path: PathLike,
    dataset: str | None = None,
    like: Config | None = None,
    model: Mapping[str, Any] | None = None,
) -> Run:
    """Load the model of a checkpoint, or of a run's best or else last one, in evaluation mode on the CPU.

    A file of weights alone, such as the official program's, holds no settings of the data. They are those of `like`,
    another run, or the usual ones of `dataset`, by default a data set with the same number of channels; a warning says
    which. Its weights become float32, as frames are. `model` gives the arguments of its MotionRNN that no tensor shows,
    as for `load_checkpoint`; a second warning names those that are assumed.

    Raises:
        RunError: there is no such file, it is truncated, no data set has such frames, or `model` is given for a run's
            checkpoint, which has its own arguments.
        ValueError: as for `load_checkpoint`.
    """
    path = checkpoint_file(Path(path))
    content = _read(path)
    if not _is_of_run(content):
        return _of_weights(path, dataset, like, model or {})
    if model:
        raise RunError(
            f"{path} is a run's checkpoint, whose settings describe its model; leave out {', '.join(flags(model))}"
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
    """Load several checkpoints as `load_run` does. A file of weights alone gets the data settings of the first run
    among them, and the arguments in `model`."""
    if len(paths) < 2:
        return [load_run(path, dataset, None, model) for path in paths]
    settings = [settings_of(path) for path in paths]
    like = next((config for config in settings if config is not None), None)
    given = [None if config is not None and None in settings else model for config in settings]
    return [load_run(path, dataset, like, arguments) for path, arguments in zip(paths, given)]


def flags(arguments: Iterable[str]) -> list[str]:
    """Return the program's options for some arguments of MotionRNN."""
    own = {
        "cell_options": "--cell-option",
        "in_channels": "--dataset",
        **dict.fromkeys(OPTIONS, "--override"),
    }
    return list(dict.fromkeys(own.get(name, f"--{name.replace('_', '-')}") for name in arguments))


def _of_weights(path: Path, dataset: str | None, like: Config | None, given: Mapping[str, Any]) -> Run:
    """Return a file of weights alone as a run, with settings from its tensors, `given`, and `like` or `dataset`."""
    name = like.dataset if like else dataset
    try:
        found = find_model(path, **{"in_channels": None if name is None else find(name).channels, **given})
    except TypeError as error:  # `given` holds a wrong argument
        raise RunError(f"{path}: {error}") from None
    # Frames are float32, whatever dtype the weights were saved in.
    model = found.model.float().eval()
    made = model.arguments
    name = name or {1: "moving_digits", 3: "human36m"}.get(made["in_channels"])
    if name is None:
        raise RunError(
            f"{path} holds a model with {made['in_channels']} channels; name a data set with as many (--dataset)"
        )
    settings = like.to_dict() if like else {"dataset": name}
    config = Config(**{**settings, **_model_settings(made, given.get("image_size"))})
    height, width = config.image_size
    for sentence in found.left_out:
        warnings.warn(f"{path}: left out {sentence}", stacklevel=stacklevel_of_user())
    if found.pruned:
        warnings.warn(f"{path}: applied the pruning masks of {found.pruned}", stacklevel=stacklevel_of_user())
    if found.assumed:
        warnings.warn(
            f"{path} holds weights alone: assumed {in_words(found.assumed)}, which no tensor shows; give what differs "
            f"({', '.join(flags(found.assumed))})",
            stacklevel=stacklevel_of_user(),
        )
    warnings.warn(
        f"{path} holds weights alone: taken as of {config.dataset}, {height}x{width}, {config.n_input} frames in and "
        f"{config.n_output} out",
        stacklevel=stacklevel_of_user(),
    )
    return Run(config, model, None, path)


def _model_settings(made: Mapping[str, Any], image_size: Any) -> dict[str, Any]:
    """Return the settings of a run for a model with the arguments `made`."""
    names = ["predictor", "patch_size", "filter_size", "layer_norm", "variant", "cell_options"]
    names += ["motion_gru", "highway", "transient", "trend"]
    settings = {option: made[option] for option in names}
    settings |= {"hidden": made["hidden_channels"], "compat": made["compat"] or "none"}
    # A learned alpha is among the weights, and may have left the range of the setting.
    settings["overrides"] = {
        option: made[option] for option in OPTIONS if not isinstance(made[option], Tensor)
    }
    if image_size or made["image_size"]:
        settings["image_size"] = image_size or made["image_size"]
    return settings


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of `motionrnn train` with weights_only=True, so that no code in it can run."""
    content = _read(path)
    if not _is_of_run(content):
        raise RunError(
            f"{path} is no checkpoint of `motionrnn train` (for one of the official program: "
            "motionrnn_ext.models.load_checkpoint)"
        )
    return content


def settings_of(source: PathLike) -> Config | None:
    """Return the settings in a run's checkpoint, or None if `source` is a file of weights alone."""
    path = checkpoint_file(Path(source))
    content = _read(path)
    return Config.from_dict(content[CONFIG_KEY], str(path)) if _is_of_run(content) else None


def last_checkpoint(folder: Path) -> Path:
    """Return the path that `--resume` continues from, which need not exist: last.ckpt, or best.ckpt if that is lost."""
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
    """Return the training step of the run's last checkpoint, or None if there is none."""
    last = last_checkpoint(folder)
    return int(read_checkpoint(last)["global_step"]) if last.exists() else None


def checkpoint_file(path: Path) -> Path:
    """Return `path` if it is a file, the best or else the last checkpoint of a run's folder, or the file of a folder
    of weights, which may be one of those that come with the package, by its name."""
    if path.is_file():
        return path
    if not path.exists() and (folder := shipped_folder(str(path))) is not None:
        return folder / WEIGHTS
    if is_pretrained(path):
        return path / WEIGHTS
    for name in ("best.ckpt", "last.ckpt"):
        if (path / "checkpoints" / name).is_file():
            return path / "checkpoints" / name
    what = "has no checkpoint yet" if path.is_dir() else "does not exist"
    names = "" if path.is_dir() else f", or one of {', '.join(shipped())}"
    raise RunError(f"{path} {what}; it should be a run's folder or a .ckpt file{file_to_name(path)}{names}")


def checkpoint_home(path: Path) -> Path:
    """Return the folder for results of this checkpoint: its run's, or else the one that holds the file.

    Weights that come with the package have runs/NAME.
    """
    if not path.exists() and shipped_folder(str(path)) is not None:
        return Path("runs") / path
    if not path.is_file():
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def log_versions(folder: Path) -> list[Path]:
    """Return the folders logs/version_N in order."""
    found = (folder / "logs").glob("version_*")
    return sorted((path for path in found if path.name[8:].isdigit()), key=lambda path: int(path.name[8:]))


def next_version(folder: Path) -> int:
    """Return the number of the next folder logs/version_N, also where some of them were removed."""
    found = log_versions(folder)
    return int(found[-1].name[8:]) + 1 if found else 0


def seconds_per_step(folder: Path) -> float | None:
    """Return the median over a run's logged steps, or None if the run was shorter than log_every."""
    try:
        _, seconds = read_log(folder / "metrics.csv", ["train/seconds"])["train/seconds"]
    except ValueError:
        return None
    return median(seconds)


def join_logs(folder: Path) -> Path:
    """Write metrics.csv from logs/version_*/metrics.csv. The rows of a start replace all from its first step on."""
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
