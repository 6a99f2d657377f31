"""Real data in the layouts that the package reads, in a folder that MOTIONRNN_EXT_DATA names; see docs/data.md."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = os.environ.get("MOTIONRNN_EXT_DATA")


def real(name: str) -> Path:
    """Return the path of a data set, or skip the test and say why."""
    if not FOLDER:
        pytest.skip("MOTIONRNN_EXT_DATA, a folder of real data, is unset")
    path = Path(FOLDER) / name
    if not path.exists():
        pytest.skip(f"there is no {name} in {FOLDER}, which MOTIONRNN_EXT_DATA names")
    return path
