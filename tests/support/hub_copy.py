"""The package as a kernel of the Hugging Face Hub, written by hub/layout.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
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


def write_copy(out: Path, version: int = 0, native: Sequence[str] = ()) -> None:
    """Write the layout into the folder `out`, with the native libraries "cpu" and "cuda" that `native` names."""
    layout().main([str(out), "--repo-id", REPO_ID, "--version", str(version), "--native", *native])
