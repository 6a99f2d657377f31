"""Every test of the program runs in one thread; several look at the same short run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from one_thread import one_thread  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the command itself."""
    from commands import run  # here, as these need the training program's packages
    from trainings import TINY

    home = tmp_path_factory.mktemp("cli")
    replace(TINY, steps=4).write(home / "settings.json")
    assert run("train", "--config", home / "settings.json", "--out", home / "run", "--no-progress") == 0
    return home / "run"
