"""The CPU kernels pass their tests while AddressSanitizer and UndefinedBehaviorSanitizer watch."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path

import pytest
from native_build import build, configure, run
from repository import ROOT, path_of_test
from side_by_side import check_passed

OPTIONS = {
    "name": "cpu-address",
    "MOTIONRNN_EXT_CUDA": "0",
    "MOTIONRNN_EXT_SANITIZE": "address;undefined",
}
# What is read before it is written shows in the results: fresh memory holds NaN.
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0:max_malloc_fill_size=1000000000:malloc_fill_byte=255"}


def runtime() -> str:
    """The sanitizer's libraries, which have to come first in a Python that was built without them."""
    folder, _ = configure(**OPTIONS)
    assert folder is not None
    compiler = re.search(r"CMAKE_CXX_COMPILER:\w+=(.*)", (folder / "CMakeCache.txt").read_text())
    assert compiler
    found = [
        run(compiler[1], f"-print-file-name={name}").stdout.strip() for name in ("libasan.so", "libstdc++.so")
    ]
    for path in found:
        if not Path(path).is_absolute():
            pytest.skip(f"{compiler[1]} has no {path}")
    return " ".join(found)


def package_with(library: Path, folder: Path) -> Path:
    """`folder`, to import the package from: as it is here, with another CPU library."""
    package = folder / "motionrnn_ext"
    (package / "lib").mkdir(parents=True)
    for entry in (ROOT / "motionrnn_ext").iterdir():
        if entry.name != "lib":
            (package / entry.name).symlink_to(entry)
    (package / "lib" / "libmotionrnn_ext_cpu.so").symlink_to(library)
    return folder


@pytest.mark.slow
def test_cpu_kernels_with_sanitizers(tmp_path: Path):
    """Every case of the table, and two thousand random ones."""
    library = build("motionrnn_ext_cpu", **OPTIONS)
    assert b"__asan_report_load" in library.read_bytes() and b"__ubsan_handle" in library.read_bytes()
    run_there = partial(
        run, sys.executable, cwd=tmp_path,  # `python -m` looks there first
        **ENVIRONMENT, LD_PRELOAD=runtime(), MOTIONRNN_EXT_PTX="",
        PYTHONPATH=str(package_with(library, tmp_path / "package")),
        OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive",  # images are cut into bands; whoever waits leaves the core
    )  # fmt: skip
    loaded = run_there("-c", "from motionrnn_ext.backends import native; print(native._LIBRARIES['cpu'])")
    assert str(tmp_path) in loaded.stdout, loaded.stdout
    files = [path_of_test(name) for name in ("test_ops.py", "test_lstm_steps.py", "test_fuzz.py")]
    result = run_there("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cpu", *files)
    check_passed("cpu", result, at_least=900)
