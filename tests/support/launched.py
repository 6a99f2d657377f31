"""Which kernels the CUDA sources make, and which of them tests launched.

A record of launches is a file with a line for each: the kernel's place in its library, as the emulator writes it where
MOTIONRNN_EXT_LAUNCHES names the file, or its mangled name.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from repository import ROOT

SOURCES = ROOT / "csrc" / "cuda"


@cache
def _pattern() -> re.Pattern[str]:
    """Return what finds a kernel's name and template arguments in its demangled symbol."""
    sources = "".join(path.read_text() for path in sorted(SOURCES.glob("**/*.cu*")))
    names = re.findall(r"__global__ void\b.*?(\w+)\(const ", sources, re.DOTALL)
    assert names and len(names) == sources.count("__global__")
    return re.compile(rf"::((?:{'|'.join(names)})<.*>)\(")


def _names(symbols: Iterable[str]) -> dict[str, str]:
    """Return the kernels among mangled symbols, by symbol: `warp_forward<float, 8, true, false>`."""
    symbols = list(symbols)
    demangled = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    found = zip(symbols, map(_pattern().search, demangled.stdout.splitlines()), strict=True)
    return {
        symbol: match[1].replace("motionrnn_ext::", "").replace("math::", "")
        for symbol, match in found
        if match
    }


def built(library: Path) -> dict[int, str]:
    """Return the kernels of a library that the host compiler made of the sources, by their places in it."""
    lines = subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout.splitlines()
    places = {
        symbol: int(place, 16)
        for place, kind, symbol in (line.split() for line in lines if line[0] != " ")
        if kind in "tT" and "." not in symbol
    }
    return {places[symbol]: name for symbol, name in _names(places).items()}


def launched(record: Path, kernels: dict[int, str]) -> set[str]:
    """Return the kernels of a record; `kernels` are those of the library whose places it holds."""
    lines = set(record.read_text().split())
    places = {line for line in lines if line.isdigit()}
    return {kernels[int(place)] for place in places} | set(_names(lines - places).values())
