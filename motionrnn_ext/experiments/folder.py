"""An experiment's folder: its settings, which never change, and the files of its finished cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import Config
from ..evaluate import write_json
from ..runs import RunError
from .plan import Cell, Plan


def open_folder(folder: Path, plan: Plan) -> None:
    """Make the folder, or go on with the one that holds this experiment; nothing in it is ever removed.

    Raises:
        RunError: something else lies there, or the experiment was started with another setting, which is named.
    """
    settings = folder / "experiment.json"
    if settings.is_file():
        _check_same(folder, {**_defaults(plan), **_read(settings)}, plan.settings())
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and holds no experiment; name another folder with --out")
    else:
        write_json(settings, plan.settings())


def _defaults(plan: Plan) -> dict[str, Any]:
    """What an older version, which did not know a setting, worked with."""
    return {name: value for name, value in Config().to_dict().items() if name in plan.settings()}


def _check_same(place: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name in (*now, *(before.keys() - now.keys())):
        old, new = before.get(name, "unknown"), now.get(name, "unknown")
        if old != new:
            raise RunError(
                f"{place} was started with {name} {_shown(old)}, this is {name} {_shown(new)}; "
                "a table has one: name another folder with --out"
            )


def _shown(value: Any) -> str:
    return json.dumps(value).strip('"')


def cell_file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}.json"


def read_cell(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """What is kept of a finished cell; None if it is not finished.

    Raises:
        RunError: the file is damaged, or of other settings.
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
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{path} is no readable JSON file: {error}; remove it to have it made again") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no experiment; remove it to have it made again")
    return content
