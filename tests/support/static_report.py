"""The compiler's result for every CUDA kernel, read from the built library; no GPU is needed.

    python tests/support/static_report.py                    print every kernel's figures and what is wrong
    python tests/support/static_report.py --only warp_forward  the kernels with this in their name

The test fails on what `broken_promises` finds: spills, stack frames, lost vector accesses, lost tensor cores,
and products of a whole warp that part of its lanes may reach alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from cuda_binary import ROOT, Kernel, Row, Table, ToolMissing, read_library

LIBRARY = ROOT / "motionrnn_ext" / "lib" / "libmotionrnn_ext_cuda.so"

# ---- The rules

# Accesses of local memory by nvcc 13.0, on the architecture that has most; every other kernel has none. These are the
# ST-LSTM's backward on sm_120, and the warp's forms for many channels: by fewer registers a multiprocessor holds twice
# as many of their blocks.
SPILLS = {
    "pointwise_kernel<StLstmUpdateBackward, bf16, float, 8>": 2,
    "pointwise_kernel<StLstmUpdateBackward, half, float, 8>": 2,
    "warp_backward<float, 32, false, false, true>": 2,
    "warp_backward<float, 32, false, true, false>": 9,
    "warp_backward<float, 32, false, true, true>": 17,
    "warp_backward<float, 32, true, true, false>": 8,
    "warp_backward<float, 32, true, true, true>": 10,
}
# Global loads of 16 bytes, by the channels that a warp kernel for channels_last is compiled for. With fewer channels of
# 2 bytes a lane's share of a pixel is 8 bytes; backward loads x by 8 bytes, and grad_out by 16.
VECTOR_LOADS = {
    ("warp_forward", "float"): {8: 8, 16: 8, 32: 16, 64: 32},
    ("warp_forward", "bf16"): {32: 8, 64: 16},
    ("warp_forward", "half"): {32: 8, 64: 16},
    ("warp_backward", "float"): {8: 8, 16: 10, 32: 20},
    ("warp_backward", "bf16"): {32: 2},
    ("warp_backward", "half"): {32: 2},
}


# The kernels whose sums run on tensor cores, each with the most registers of a thread for its blocks.
TENSOR_CORES = {
    "warp_forward": 255,
    "packed_warp_forward": 96,
    "warp_backward": 255,
    "gates_forward": 64,
    "candidate_forward": 64,
    "reset_backward": 64,
    "inputs_backward": 64,
    "gated_warp_forward": 128,
    "finish_gates": 64,
    "decode_blend": 64,
    "blend_backward": 64,
}
# The most registers of a kernel for maps of the usual kind: halves in channels_last. At 64, eight blocks fit.
FAST = {("gated_warp_forward", channels): 64 for channels in ("8", "16", "32")}


def broken_promises(name: str, row: Row) -> list[str]:
    """Return what is wrong with a kernel's code on any architecture, a phrase each."""
    stem, arguments = Kernel.parse(name)
    broken = []
    if row.get("LDL/STL", 0) > SPILLS.get(name, 0):
        broken.append(f"{row['LDL/STL']} accesses of local memory (spills)")
    if row.get("stack", 0) and name not in SPILLS:
        broken.append(f"a stack frame of {row['stack']} bytes")
    if stem == "pointwise_kernel" and arguments[-1] != "1":
        for load in ("LDG", "STG"):
            if row.get(load, 0) == 0 or row.get(load, 0) != row.get(f"{load}.128", 0):
                broken.append(f"{row.get(load, 0)} {load}, {row.get(f'{load}.128', 0)} of them of 16 bytes")
    if divided := row.get("divided", 0):
        broken.append(f"{divided} instructions of a whole warp where its lanes may be apart")
    if stem in TENSOR_CORES:
        if row.get("HMMA", 0) == 0:
            broken.append("no HMMA")
        most = TENSOR_CORES[stem]
        if len(arguments) > 2 and arguments[0] != "float" and arguments[2] == "true":
            most = FAST.get((stem, arguments[1]), most)
        if row.get("registers", 0) > most:
            broken.append(f"{row['registers']} registers instead of at most {most}")
    if stem in ("warp_forward", "warp_backward"):
        wanted = VECTOR_LOADS[stem, arguments[0]].get(int(arguments[1]), 0) if arguments[2] == "true" else 0
        if (found := row.get("LDG.128", 0)) < wanted:
            broken.append(f"{found} global loads of 16 bytes instead of {wanted}")
    return broken


def problems(table: Table) -> list[str]:
    return [
        f"{name} on sm_{architecture}: {complaint}"
        for name, rows in table.items()
        for architecture, row in rows.items()
        for complaint in broken_promises(name, row)
    ]


# ---- The command

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


def markdown(
    columns: Mapping[str, Callable[[Row], str]], kernels: Iterable[tuple[str, Sequence[Row]]]
) -> str:
    """Return a table with a line per kernel; where its rows differ, each row's figure."""
    lines = ["| " + " | ".join(["kernel", *columns]) + " |", "|---" * (1 + len(columns)) + "|"]
    for name, rows in kernels:
        cells = [[show(row) for row in rows] for show in columns.values()]
        merged = [cell[0] if len(set(cell)) == 1 else " / ".join(cell) for cell in cells]
        lines.append("| " + " | ".join([f"`{name}`", *merged]) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", nargs="?", type=Path, default=LIBRARY, help="default: the installed one")
    parser.add_argument("--only", default="", help="only kernels whose name contains this")
    options = parser.parse_args()
    if not options.library.is_file():
        parser.error(f"{options.library} is not there: it is built where there is an nvcc")
    try:
        nvcc, table = read_library(options.library)
    except ToolMissing as error:
        parser.error(str(error))
    architectures = {architecture: None for rows in table.values() for architecture in rows}
    print(f"nvcc {nvcc}. Where several figures stand: sm_{' / sm_'.join(architectures)}.\n")
    print(markdown(COLUMNS, [(n, list(rows.values())) for n, rows in table.items() if options.only in n]))
    found = problems(table)
    print("", *found or [f"{len(table)} kernels: nothing is wrong"], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
