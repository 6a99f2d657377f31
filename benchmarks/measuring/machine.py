"""Describe what a timing depends on beside the code: the machine, its libraries, malloc."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def with_tuned_malloc() -> None:
    """Restart this program with a glibc malloc that keeps large blocks, unless it has one already.

    By default glibc maps every block above about 32 MiB anew, and the kernel zeroes its pages at first touch: a copy
    of 64 MB then takes 20 times as long as with warm memory.
    """
    if any(os.environ.get(name) != value for name, value in TUNED_MALLOC.items()):
        # malloc reads its variables once, at start. orig_argv has the options of Python too, such as -m.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **TUNED_MALLOC})


def description() -> dict[str, object]:
    """Return what the rows of a run say about the machine and the versions."""
    import torch

    from motionrnn_ext.backends import native

    return {
        "cpu": _cpu_model(),
        "instruction_set": native.cpu_instruction_set(),
        "threads": torch.get_num_threads(),
        "malloc": "tuned" if os.environ.items() >= TUNED_MALLOC.items() else "default",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "command": " ".join(["python", *map(without_folders, sys.argv)]),
    }


def gpu_description() -> dict[str, object]:
    """Return the first GPU, its driver, and the versions of the compilers for it."""
    import importlib.metadata

    import torch

    card = torch.cuda.get_device_properties(0)
    packages = {}
    for name in ("triton", "torchvision"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "name": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory_bytes": card.total_memory,
        "l2_bytes": card.L2_cache_size,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch_cuda": torch.version.cuda,
        "nvcc": _output("nvcc", "--version").rpartition("release ")[2].partition("\n")[0] or "unknown",
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        **packages,
    }


def without_folders(text: str) -> str:
    """Return a text with every absolute path cut to its last part."""
    return re.sub(r"(?<![\w.~-])/(?:\S*/)?(?=\S)", "", text)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    except FileNotFoundError:
        return "unknown"


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def commit() -> str:
    """Return the commit, with "-dirty" if files were changed; MOTIONRNN_EXT_COMMIT names it where there is no git."""
    return os.environ.get("MOTIONRNN_EXT_COMMIT") or _output(
        "git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"
    )
