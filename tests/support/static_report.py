"""What the compiler made of every CUDA kernel, read from the built library; no GPU is needed.

    python tests/support/static_report.py           compare the library with the committed table, as the test does
    python tests/support/static_report.py --update  write its rows into the table, the short one into docs/kernels.md

The table, benchmarks/results/cuda_static.json, has a row per nvcc, kernel and architecture. Only rows of the library's
own nvcc are compared with: another compiler's registers are another's.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import static_table
from cuda_binary import ROOT, Kernel, Row, Table, ToolMissing, read_library
from static_table import Tables

LIBRARY = ROOT / "motionrnn_ext" / "lib" / "libmotionrnn_ext_cuda.so"
TABLE = ROOT / "benchmarks" / "results" / "cuda_static.json"
PAGE = ROOT / "docs" / "kernels.md"
MARKERS = ("<!-- static report -->\n", "<!-- end of static report -->\n")

# ---- the rules ---------------------------------------------------------------------------------------------


def broken_promises(name: str, row: Row) -> list[str]:
    """What a kernel's code must have or must not have on every architecture, whoever compiled it."""
    stem, arguments = kernel = Kernel.parse(name)
    broken = []
    many_channels = channels(kernel) > 32 or (stem == "warp_backward" and arguments[3] == "true")  # in chunks
    # The slow form for general layouts, at the most registers that a block of 9 warps can have: one is spilled.
    general = stem == "warp_backward" and arguments[2] == "false" and arguments[4] == "true"
    if row.get("LDL/STL", 0) > (2 if general else 0) and not many_channels:
        broken.append(f"{row['LDL/STL']} accesses of local memory (spills)")
    if stem == "pointwise_kernel" and arguments[-1] != "1":
        for load in ("LDG", "STG"):
            if row.get(load, 0) == 0 or row.get(load, 0) != row.get(f"{load}.128", 0):
                broken.append(f"{row.get(load, 0)} {load}, {row.get(f'{load}.128', 0)} of them of 16 bytes")
    if stem in ("warp_forward", "warp_backward"):
        if row.get("HMMA", 0) == 0:
            broken.append("no HMMA")
        wide = arguments[0] == "float" or channels(kernel) >= 32  # else a lane's share of a pixel is 8 bytes
        if wide and arguments[2] == "true" and row.get("LDG.128", 0) == 0:
            broken.append("no global load of 16 bytes")
    return broken


def channels(kernel: Kernel) -> int:
    """The channels that a warp kernel is compiled for; 0 for the others."""
    return int(kernel.arguments[1]) if kernel.stem.startswith("warp_") else 0


def problems(nvcc: str, table: Table, committed: Tables) -> list[str]:
    return static_table.problems(
        table, committed.get(nvcc), broken_promises, lambda name, a: f"{name} on sm_{a}", "in the library"
    )


# ---- the committed table, and its short form ---------------------------------------------------------------


def read_table() -> Tables:
    return static_table.read(TABLE, "nvcc", "architecture")


def write_table(tables: Tables) -> None:
    static_table.write(TABLE, tables, "nvcc", "architecture")


def updated(tables: Tables, nvcc: str, table: Table) -> Tables:
    """With a library's rows. Architectures that it was not built for keep theirs; kernels that are gone do not."""
    kept = tables.get(nvcc, {})
    return tables | {nvcc: {name: kept.get(name, {}) | rows for name, rows in table.items()}}


COLUMNS: dict[str, Callable[[Row], str]] = {
    "registers": lambda row: str(row["registers"]),
    "stack": lambda row: str(row["stack"]),
    "shared memory": lambda row: str(row["shared"]),
    "threads": lambda row: str(row["block"]),
    "occupancy": lambda row: f"{row['occupancy']:.0%}",
    "limited by": lambda row: row["limit"],
    "instructions": lambda row: str(row["instructions"]),
    "LDG (16 bytes)": lambda row: f"{row.get('LDG', 0)} ({row.get('LDG.128', 0)})",
    "HMMA": lambda row: str(row.get("HMMA", 0)),
    "RED": lambda row: str(row.get("RED", 0)),
}


def markdown(tables: Tables, architectures: tuple[str, ...] = ("90", "80")) -> str:
    """The newest compiler's rows of the fast kernels, for readers."""
    if not tables:
        return ""
    nvcc = max(tables, key=lambda version: [int(part) for part in re.findall(r"\d+", version)])
    heading = f"nvcc {nvcc}. Where two figures stand, sm_{architectures[0]} / sm_{architectures[1]}.\n\n"
    kernels = [
        (name, [rows[a] for a in architectures if a in rows])
        for name, rows in sorted(tables[nvcc].items())
        if not is_for_the_rest(Kernel.parse(name))
    ]
    return heading + static_table.markdown(COLUMNS, [(name, rows) for name, rows in kernels if rows])


def is_for_the_rest(kernel: Kernel) -> bool:
    """Kernels for what the fast ones cannot do, and those of float16, which are those of bfloat16 again."""
    scalar = kernel.stem == "pointwise_kernel" and kernel.arguments[-1] == "1"
    general = kernel.stem in ("warp_forward", "warp_backward") and kernel.arguments[2:4] != ("true", "false")
    return scalar or general or "half" in kernel.arguments


def page_with(table: str, page: str) -> str:
    return static_table.page_with(MARKERS, table, page)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", nargs="?", type=Path, default=LIBRARY, help="default: the installed one")
    parser.add_argument("--update", action="store_true", help="write the committed table and docs/kernels.md")
    options = parser.parse_args()
    if not options.library.is_file():
        parser.error(f"{options.library} is not there: it is built where there is an nvcc")
    try:
        nvcc, table = read_library(options.library)
    except ToolMissing as error:
        parser.error(str(error))
    tables = read_table()
    if options.update:
        tables = updated(tables, nvcc, table)
        write_table(tables)
        PAGE.write_text(page_with(markdown(tables), PAGE.read_text()))
    found = problems(nvcc, table, tables)
    print("\n".join(found) or f"{len(table)} kernels, nvcc {nvcc}: nothing is wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
