"""Builds of the native code for tests, each in a folder of its own below build/."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from repository import ROOT


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program; its errors are part of its output."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def tool(name: str) -> str:
    """Return the path of a program. A test is skipped where there is none."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} was not found")
    return found


@cache
def configure(name: str, **definitions: str) -> tuple[Path | None, str]:
    """Return the folder of a build, or None and why CMake says that it cannot be built here.

    `definitions` are CMake's variables.
    """
    folder = ROOT / "build" / name
    result = run(
        tool("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        f"-DMOTIONRNN_EXT_TORCH_DIR={Path(torch.__file__).parent}",
        *(f"-D{key}={value}" for key, value in definitions.items()),
    )  # fmt: skip
    if result.returncode == 0:
        return folder, ""
    said = " ".join(result.stdout.split())
    missing = re.search(r"MOTIONRNN_EXT_\w+=\w+ is set but (.*?) (?:Call Stack|-- Configuring)", said)
    assert missing, result.stdout
    return None, missing[1]


@cache
def build(target: str, name: str, **definitions: str) -> Path:
    """Build a target and return its file. A test is skipped where it cannot be built."""
    folder, missing = configure(name, **definitions)
    if folder is None:
        pytest.skip(f"{target} is not built: {missing}")
    result = run(tool("cmake"), "--build", folder, "--target", target)
    assert result.returncode == 0, result.stdout[-10_000:]
    library = folder / f"lib{target}.so"
    return library if library.exists() else folder / target
