"""Trained weights that come with the package, a folder each, with a card (README.md) that says what they are.

`MotionRNN.from_pretrained` and the program take their names in place of a folder. `motionrnn export` writes such a
folder from a run.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def shipped() -> list[str]:
    """Return the names of the weights that come with the package."""
    return sorted(path.parent.name for path in _HERE.glob("*/config.json"))


def shipped_folder(name: str) -> Path | None:
    """Return the folder of the weights of this name, or None if none have it."""
    return _HERE / name if name in shipped() else None
