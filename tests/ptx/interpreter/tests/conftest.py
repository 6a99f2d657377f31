"""The interpreter's library, built where it is not there yet. PTX_INTERPRETER names a folder with a built one."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_kernels import Interpreter

SOURCES = Path(__file__).resolve().parent.parent


def tool(name: str) -> str:
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=beside) or pytest.skip(f"no {name}, which builds the interpreter")


def build() -> Path:
    """Return the folder of the libraries, in the temporary files under the hash of their sources."""
    paths = sorted(p for p in SOURCES.rglob("*") if p.suffix in (".h", ".cpp", ".c", ".txt"))
    content = hashlib.sha256(b"".join(p.read_bytes() for p in paths)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"ptx-interpreter-{getpass.getuser()}" / content
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            ninja = tool("ninja")
            configure = ["-S", SOURCES, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
            for command in ([tool("cmake"), *configure], [tool("cmake"), "--build", folder]):
                done = subprocess.run(command, capture_output=True, text=True)
                assert done.returncode == 0, done.stdout + done.stderr
            (folder / "complete").touch()
    return folder


@pytest.fixture(scope="session")
def libraries() -> Path:
    named = os.environ.get("PTX_INTERPRETER")
    return Path(named) if named else build()


@pytest.fixture(scope="session")
def library(libraries: Path) -> Interpreter:
    return Interpreter(libraries / "libptx_interpreter.so")


@pytest.fixture
def ptx(library: Interpreter) -> Iterator[Interpreter]:
    """The interpreter without options and reports of other tests."""
    library.reset()
    yield library
    library.reset()
