"""An experiment's folder: its settings, which never change, and the files of its finished cells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import NoText, read_json, write_json
from ..training.config import Config
from ..training.resuming import FREE
from ..training.runs import RunError, has_begun, last_checkpoint, read_checkpoint, resumed_config
from .plan import Cell, Plan

# What `table.results` reads of a cell's file, besides the metrics themselves.
_KEPT = ("row", "metrics.per_lead", "metrics.samples", "metrics.protocol", "baseline", "seconds_per_step", "seconds",
         "resumed", "finished", "machine", "version", "commit")  # fmt: skip


def open_folder(folder: Path, plan: Plan) -> None:
    """Make the folder, or go on with the one that holds this experiment; nothing in it is ever removed.

    Raises:
        RunError: something else lies there, or the experiment was started with another setting, which is named.
    """
    settings = folder / "experiment.json"
    if settings.is_file() and not _is_begun(folder):
        write_json(settings, plan.settings())
    elif settings.is_file():
        _check_same(folder, {**_defaults(plan), **_read(settings)}, plan.settings())
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and holds no experiment; name another folder with --out")
    else:
        write_json(settings, plan.settings())


def _is_begun(folder: Path) -> bool:
    """Whether a cell is finished here, or a training has a checkpoint."""
    trainings = [path for path in (folder / "runs").glob("*") if has_begun(path)]
    return bool(trainings) or any((folder / "cells").glob("*"))


def _defaults(plan: Plan) -> dict[str, Any]:
    """What an older version, which did not know a setting, worked with."""
    return {name: value for name, value in Config().to_dict().items() if name in plan.settings()}


def _check_same(place: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """RunError where a setting differs that numbers depend on."""
    before, now = ({k: v for k, v in values.items() if k not in FREE} for values in (before, now))
    found = _first_difference(before, now)
    if found:
        name, old, new = found
        raise RunError(
            f"{place} was started with {name} {_shown(old)}, this is {name} {_shown(new)}; "
            "a table has one: name another folder with --out"
        )


def _first_difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first entry that differs, named as "metrics.ssim" where one dictionary is in another, and its values."""
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


def cell_file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}.json"


def read_cell(folder: Path, cell: Cell, metrics: Sequence[str]) -> dict[str, Any] | None:
    """What is kept of a finished cell; None if it is not finished.

    Raises:
        RunError: the file is damaged, lacks one of `metrics` or what else a table needs, or is of other settings.
    """
    path = cell_file(folder, cell)
    if not path.is_file():
        return None
    found = _read(path)
    try:
        config = Config.from_dict(found.get("config"), str(path))
    except ValueError as error:
        raise RunError(f"{error}; remove that file to train the cell again") from None
    _check_same(path, config.to_dict(), cell.config.to_dict())
    scores = [f"{part}.{name}" for part in ("metrics", "baseline") for name in metrics]
    for name in (*_KEPT, *scores):
        if not _has(found, name.split(".", 1)):
            raise RunError(f"{path} lacks {name}; remove that file to have the cell scored again")
    return found


def _has(content: Any, keys: Sequence[str]) -> bool:
    if not keys:
        return True
    return isinstance(content, dict) and keys[0] in content and _has(content[keys[0]], keys[1:])


def check_training(home: Path, config: Config) -> None:
    """Can a training that was begun go on? RunError says what to remove."""
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
