"""Instructions that the CPU kernels execute, counted by valgrind's callgrind: no clock, the same number in every run.

    python -m motionrnn_ext.benchmarks.measuring.callgrind

callgrind.cpp calls the kernels, compiled here with CMakeLists.txt's flags for x86-64-v3: valgrind knows no AVX-512.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..cases import COUNTED_MAP, MapShape

ROOT = Path(__file__).resolve().parents[2]
ISA = "x86_64_v3"
SOURCES = ("csrc/cpu/offset_warp.cpp", "csrc/cpu/motion_gates.cpp")


def unavailable_reason() -> str | None:
    """Why instructions cannot be counted here; None if they can."""
    if platform.machine() not in ("x86_64", "AMD64") or platform.libc_ver()[0] != "glibc":
        return f"instructions are counted on x86-64 with glibc (this is {platform.machine()})"
    if not (ROOT / "csrc").is_dir():
        return "instructions are counted in a checkout: the kernels' sources are not here"
    for tool in ("valgrind", _compiler()):
        if shutil.which(tool) is None:
            return f"{tool} was not found"
    return None


def counts(shape: MapShape = COUNTED_MAP) -> tuple[str, dict[str, int]]:
    """The compiler and C library that the code comes from, and the instructions of one call of each kernel.

    Only counts of the same ones can be compared: Clang 22 makes the offset warp of 36 % more instructions than GCC 12,
    its backward of 15 % more. Of the rest, 7 % are the C library's memset.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = _build(Path(folder))
        toolchain, *kernels = _run(program).splitlines()
        return toolchain, {name: _instructions(program, name, shape) for name in kernels}


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def _build(folder: Path) -> Path:
    flags = ["-std=c++20", *_flags("kernel_flags"), f"-I{ROOT / 'csrc'}", f"-DMOTIONRNN_EXT_ISA={ISA}"]

    def compile_one(source: str) -> str:
        made = str(folder / f"{Path(source).stem}.o")
        for_isa = _flags(f"flags_{ISA}") if source in SOURCES else []
        _run(_compiler(), *flags, *for_isa, "-c", ROOT / source, "-o", made)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*SOURCES, "benchmarks/measuring/callgrind.cpp"]))
    _run(_compiler(), *objects, "-o", folder / "callgrind")
    return folder / "callgrind"


def _flags(name: str) -> list[str]:
    """A list of CMakeLists.txt."""
    found = re.search(rf"^set\({name} (.*)\)$", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"CMakeLists.txt has no line 'set({name} ...)' with the flags of the CPU kernels")
    return found[1].split()


def _instructions(program: Path, kernel: str, shape: MapShape) -> int:
    # nothing of the environment that malloc or the dynamic linker would act on
    clean = {"PATH": os.environ.get("PATH", os.defpath), "LD_BIND_NOW": "1"}
    said = _run(
        "valgrind", "--tool=callgrind", "--toggle-collect=counted_call", "--callgrind-out-file=/dev/null",
        program, kernel, shape.batch, shape.channels, shape.size, env=clean,
    )  # fmt: skip
    collected = re.search(r"Collected : (\d+)", said)
    if collected is None:
        raise RuntimeError(f"callgrind collected nothing of {kernel}: {said}")
    return int(collected[1])


def _run(*command: object, env: dict[str, str] | None = None) -> str:
    """What a program says; an error with it where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env=env, capture_output=True, text=True, errors="replace")
    said = done.stdout + done.stderr
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} failed with {done.returncode}: {said[-4000:]}")
    return said


if __name__ == "__main__":
    if why := unavailable_reason():
        raise SystemExit(f"error: {why}")
    made_by, found = counts()
    print(f"instructions of one call at {COUNTED_MAP}, {ISA}, {made_by}")
    for name, number in found.items():
        print(f"{name:24} {number:12,}")
