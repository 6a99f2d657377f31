"""The folder of an experiment: its settings, which never change, and the results of finished trainings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files import NoText, read_json, write_json
from ..metrics import Protocol
from ..training.config import Config, in_todays_form
from ..training.resuming import FREE
from ..training.runs import RunError, has_begun, last_checkpoint, read_checkpoint, resumed_config
from .differences import read_kept
from .plan import Plan, Training

# The entries of a training's file that `table.results` reads, besides the metrics themselves.
_REQUIRED = (
    "row",
    "metrics.per_lead",
    "metrics.samples",
    "metrics.protocol",
    "baseline",
    "other_baselines",
    "per_clip",
    "seconds_per_step",
    "seconds",
    "resumed",
    "finished",
    "machine",
    "version",
    "commit",
)


def open_folder(folder: Path, plan: Plan) -> None:
    """Make the folder, or reopen the one that holds this experiment. Nothing in it is ever removed.

    Raises:
        RunError: the folder holds something else, or an experiment with another setting, which is named.
    """
    settings = folder / "experiment.json"
    if settings.is_file() and not _is_begun(folder):
        write_json(settings, plan.settings())
    elif settings.is_file():
        check_settings(folder, _read(settings), plan, plan.settings(), "name another folder with --out")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and holds no experiment; name another folder with --out")
    else:
        write_json(settings, plan.settings())


def check_settings(place: Path, before: dict[str, Any], plan: Plan, now: dict[str, Any], remedy: str) -> None:
    """Raise a RunError that ends in `remedy` if the settings of an experiment, kept at `place`, are others now.

    Settings that an older version did not have count as their defaults.
    """
    before, defaults = in_todays_form(before), _defaults(plan)
    before["metrics"] = {**defaults["metrics"], **before.get("metrics", {})}
    _check_same(place, {**defaults, **before}, now, remedy)


def _is_begun(folder: Path) -> bool:
    """Return whether a training of the experiment is finished or has a checkpoint."""
    trainings = [path for path in (folder / "runs").glob("*") if has_begun(path)]
    return bool(trainings) or any((folder / "cells").glob("*"))


def _defaults(plan: Plan) -> dict[str, Any]:
    """Return the defaults of settings that an experiment of an older version may lack."""
    defaults = Config(dataset=plan.config.dataset).to_dict()
    config = {name: value for name, value in defaults.items() if name in plan.settings()}
    return {
        **config,
        "metrics": {} if plan.protocol is None else replace(plan, protocol=Protocol()).metrics(),
    }


def _check_same(place: Path, before: dict[str, Any], now: dict[str, Any], remedy: str) -> None:
    """Raise a RunError if two sets of settings differ in one that the numbers depend on."""
    before, now = ({k: v for k, v in values.items() if k not in FREE} for values in (before, now))
    found = _first_difference(before, now)
    if found:
        name, old, new = found
        raise RunError(
            f"{place} was started with {name} {_shown(old)}, this is {name} {_shown(new)}; "
            f"all trainings of a table share it: {remedy}"
        )


def _first_difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Return the name and both values of the first entry that differs, such as "metrics.ssim" if nested."""
    if before == now:
        return None
    if not all(isinstance(value, (dict, type(None))) for value in (before, now)):
        return name, before, now
    before, now = before or {}, now or {}
    for key in (*now, *sorted(before.keys() - now.keys())):
        path = f"{name}.{key}" if name else key
        if found := _first_difference(before.get(key), now.get(key), path):
            return found
    return None


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value).strip('"')


def result_file(folder: Path, training: Training) -> Path:
    """Return the path of a training's results, which is there when the training is finished."""
    return folder / "cells" / f"{training.name}.json"


def read_result(folder: Path, training: Training, metrics: Sequence[str]) -> dict[str, Any] | None:
    """Return the results of a training, or None if it is not finished.

    Raises:
        RunError: the file is damaged, has other settings, or lacks one of `metrics` or of the table's other entries.
    """
    path = result_file(folder, training)
    if not path.is_file():
        return None
    found = _read(path)
    try:
        config = Config.from_dict(found.get("config"), str(path))
    except ValueError as error:
        raise RunError(f"{error}; remove that file to have the training made again") from None
    _check_same(path, config.to_dict(), training.config.to_dict(), "name another folder with --out")
    scores = [f"{part}.{name}" for part in ("metrics", "baseline") for name in metrics]
    for name in (*_REQUIRED, *scores):
        if not _has(found, name.split(".", 1)):
            raise RunError(f"{path} lacks {name}; remove that file to have the training scored again")
    for name, text in found["per_clip"].items():
        try:
            read_kept(text, found["metrics"]["samples"])
        except (TypeError, ValueError) as error:
            why = f"per_clip.{name} is damaged: {error}"
            raise RunError(f"{path}: {why}; remove that file to have the training scored again") from None
    return found


def _has(content: Any, keys: Sequence[str]) -> bool:
    """Return whether nested dictionaries have an entry under `keys`, outermost first."""
    if not keys:
        return True
    return isinstance(content, dict) and keys[0] in content and _has(content[keys[0]], keys[1:])


def check_training(home: Path, config: Config) -> None:
    """Raise a RunError that says what to remove if a training that was interrupted cannot be resumed."""
    last = last_checkpoint(home)
    if not has_begun(home):
        return
    try:
        resumed_config(home, config.located())
        if last.exists():
            read_checkpoint(last)
    except ValueError as error:
        raise RunError(f"{error}; remove {home} to have that training made again") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, NoText, json.JSONDecodeError, LookupError, TypeError) as error:
        raise RunError(f"{path} is no readable JSON file: {error}; remove it to have it made again") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no experiment; remove it to have it made again")
    return content
