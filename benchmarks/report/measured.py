"""Read the runs in `results`, and compare their rows.

A peer's ratio is its time over ours in the same comparison and layout (ours in NCHW where it was not timed in the
peer's layout): above 1 we are faster. It is that of device times in a CUDA graph if both have one, else of wall times.
On a CPU whose wall times are too noisy, it is that of CPU times. Where these are noisy as well, there is no ratio.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..measuring.roofline import MOTION_GRUS

Row = dict[str, Any]
OURS = "ours"
NOT_PEERS = ("ours", "base predictor")  # beginnings of names that are no replacement for ours
LEVELS = {"op": "Ops", "cell": "Cells", "model": "Whole models"}
DIRECTIONS = ("forward+backward", "training step", "forward", "inference", "backward")
WALL, DEVICE, CPU = "eager", "graph", "cpu"  # beginnings of the names of their columns
# The widest range from p10 to p90 of a usable time, as a share of the median. The widest of 191 rows of a quiet machine
# was 0.48, and that of 95 in 100 of them below 0.11.
WIDEST = 0.5


@dataclass(frozen=True)
class Run:
    """A JSON file of `motionrnn bench`, and its name without the ending."""

    name: str
    report: dict[str, Any]

    @property
    def on_gpu(self) -> bool:
        return self.report["device"] == "cuda"

    @property
    def machine(self) -> str:
        return self.report["gpu"]["name"] if self.on_gpu else self.report["cpu"]

    @property
    def title(self) -> str:
        """Return a title such as "GPU (NVIDIA H200)", short enough for the head of a column."""
        quick = ", quick" if self.report["quick"] else ""
        return f"{'GPU' if self.on_gpu else 'CPU'} ({self.machine}{quick})"

    @cached_property
    def rows(self) -> list[Row]:
        """The rows with times, in the order of what they measure."""
        measured = [row for row in self.report["rows"] if f"{WALL}_us" in row]
        return sorted(measured, key=_place)

    @cached_property
    def comparisons(self) -> dict[int, list[Row]]:
        found: dict[int, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row["comparison"], []).append(row)
        return found

    def where(self, **wanted: Any) -> list[Row]:
        return [row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())]

    def ours_beside(self, row: Row) -> Row | None:
        own = {r["layout"]: r for r in self.comparisons[row["comparison"]] if r["implementation"] == OURS}
        return own.get(row["layout"], own.get("NCHW"))

    def ratio(self, row: Row) -> float | None:
        ours = self.ours_beside(row)
        if ours is None or row is ours:
            return None
        clock = self.clock(row)
        return None if self.is_noisy(row) else row[f"{clock}_us"] / ours[f"{clock}_us"]

    def clock(self, row: Row) -> str:
        """Return which of a row's times its ratio compares: WALL, DEVICE or CPU."""
        pair = row, self.ours_beside(row) or row
        if all(_has(r, DEVICE) for r in pair):
            return DEVICE
        is_steady = all(_steady(r, WALL) for r in pair)
        return WALL if is_steady or self.on_gpu or not all(_steady(r, CPU) for r in pair) else CPU

    def is_noisy(self, row: Row) -> bool:
        """Return whether the times of a row, or of ours beside it, spread too far for a ratio."""
        return not all(_steady(r, self.clock(row)) for r in (row, self.ours_beside(row) or row))

    def loses(self, row: Row) -> bool:
        """Return whether ours is slower than this row's peer."""
        ratio = self.ratio(row)
        return is_peer(row) and ratio is not None and ratio < 1

    def within_spread(self, row: Row) -> bool:
        """Return whether p10 to p90 of the row's times and of ours overlap."""
        ours, clock = self.ours_beside(row) or row, self.clock(row)
        low, high = f"{clock}_p10_us", f"{clock}_p90_us"
        return row[low] <= ours[high] and ours[low] <= row[high]


def _has(row: Row, clock: str) -> bool:
    return row.get(f"{clock}_us") is not None


def _steady(row: Row, clock: str) -> bool:
    """Return whether a row has this clock's time, and its p10 to p90 are within WIDEST."""
    if not _has(row, clock):
        return False
    return row[f"{clock}_p90_us"] - row[f"{clock}_p10_us"] <= WIDEST * row[f"{clock}_us"]


def is_peer(row: Row) -> bool:
    return not row["implementation"].startswith(NOT_PEERS)


def read(results: Path) -> list[Run]:
    """Return the runs of every bench_*.json of a folder: those of CPUs first, quick ones last.

    Raises:
        ValueError: there is none, or one is no run of `motionrnn bench`.
    """
    runs = []
    for path in sorted(results.glob("bench_*.json")):
        report = json.loads(path.read_text())
        if not isinstance(report, dict) or report.get("kind") != "bench":
            raise ValueError(f'{path}: should be what `motionrnn bench` writes, with "kind": "bench"')
        runs.append(Run(path.stem, report))
    if not runs:
        raise ValueError(f"{results}: there is no bench_*.json to report; `motionrnn bench` writes one")
    return sorted(runs, key=lambda run: (run.report["quick"], run.on_gpu, run.name))


def newest(runs: Iterable[Run]) -> list[Run]:
    """Return one run per machine, the newest of the best kind: full, else cut short, else quick, else a part."""
    chosen: dict[str, Run] = {}
    for run in runs:
        before = chosen.get(run.machine)
        if before is None or _rank(run) > _rank(before):
            chosen[run.machine] = run
    return sorted(chosen.values(), key=lambda run: (run.on_gpu, run.name))


def _rank(run: Run) -> tuple[bool, bool, bool, str]:
    r = run.report
    return r.get("only") is None, not r["quick"], not r["not_run"], r["date"]


def _place(row: Row) -> tuple[Any, ...]:
    """Return a sort key: level, then op or setting as planned, then size; comparisons stay together."""
    return (
        list(LEVELS).index(row["level"]), OPS.index(row["op"]) if row["op"] in OPS else len(OPS), row["op"],
        row.get("setting") or "", row["dtype"] != "float32", row["dtype"], DIRECTIONS.index(row["direction"]),
        row.get("offset_scale", 1.0), size(row), row["comparison"],
    )  # fmt: skip


OPS = ("offset_warp", "motion_warp", "motion_gates", "motion_reset", "motion_update", "memory_update", "highway_output",
       "highway_output without highway", "gated_blend", "st_lstm_update", "summed_output", "conv_lstm_update",
       "conv_lstm_update without highway", "convolution", "MotionGRUCell", *MOTION_GRUS)  # fmt: skip


def size(row: Row) -> int:
    """Return the number of elements of a shape such as "B8 C16 32x32"."""
    return math.prod(map(int, re.findall(r"\d+", row["shape"])))


def operations(row: Row) -> int | None:
    """Return the FLOPs counted: all of an op, or those of a model's convolutions and matrix products."""
    if row.get("flops") is not None:
        return row["flops"]
    work = row.get("work")
    return None if work is None else work["matrix"] + work["vector"]


def launches(row: Row) -> float | None:
    """Return the kernels, copies and memsets of a call in a CUDA graph."""
    return sum(row["nodes"].values()) if row.get("nodes") else None
