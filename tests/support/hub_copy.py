"""The package as a kernel of the Hugging Face Hub, written by hub/layout.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from repository import ROOT

REPO_ID = "OWNER/motionrnn-ext"


def layout() -> ModuleType:
    """Return hub/layout.py as a module."""
    spec = importlib.util.spec_from_file_location("hub_layout", ROOT / "hub" / "layout.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_copy(out: Path, version: int = 0) -> list[str]:
    """Write the layout into the folder `out`, and return the names of its builds."""
    return [variant.folder for variant in layout().write(out, REPO_ID, version)]
