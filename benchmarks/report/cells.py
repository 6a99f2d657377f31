"""Make the cells of a row's table, for the pages and for the console."""

from __future__ import annotations

from .. import wording
from .measured import CPU, WALL, Row, Run, launches, operations

LOST = ": we lose"  # the end of a ratio below 1
NOISY = "too noisy"  # in place of a ratio


def row_header(on_gpu: bool) -> tuple[str, ...]:
    clocks = ("device", "p10 to p90", "wall", "CPU") if on_gpu else ("time", "p10 to p90", "CPU")
    calls = "launches" if on_gpu else "ops"
    return ("implementation", *clocks, "ratio", "kept", "peak", calls, "FLOPs", "bytes", "roofline", "off by",
            "first")  # fmt: skip


def row_cells(run: Run, row: Row) -> tuple[str, ...]:
    """Return the cells below `row_header`."""
    wall = wording.duration(row["eager_us"])
    if run.on_gpu:
        spread = wording.span(row.get("graph_p10_us"), row.get("graph_p90_us"))
        clocks = [wording.duration(row["graph_us"]), spread, wall]
    else:
        clocks = [wall, wording.span(row.get("eager_p10_us"), row.get("eager_p90_us"))]
    clocks.append(wording.duration(row.get("cpu_us")))
    calls = launches(row) if run.on_gpu else row.get("aten_ops")
    work, first = row.get("work"), row.get("first_call_s")
    return (
        implementation_of(row), *clocks, _ratio(run, row), wording.size(row.get("kept_bytes")),
        wording.size(row.get("peak_bytes")), wording.number(calls), wording.amount(operations(row), ""),
        wording.size(None if work is None else work["bytes"]), _roofline(row),
        wording.NONE if row.get("difference") is None else f"{row['difference']:.0e}",
        wording.duration(None if first is None else 1e6 * first),
    )  # fmt: skip


def implementation_of(row: Row) -> str:
    return row["implementation"] + ("" if row["layout"] == "NCHW" else f" ({row['layout']})")


def _ratio(run: Run, row: Row) -> str:
    if run.is_noisy(row):
        return NOISY
    if row is run.ours_beside(row):
        return "1"
    text = wording.times(run.ratio(row))
    text += "" if text == wording.NONE else clock_of(run, row)
    return text + LOST if run.loses(row) else text


def clock_of(run: Run, row: Row) -> str:
    """Return which clock a ratio compares, unless it is the usual one of the run."""
    clock = run.clock(row)
    return " (CPU)" if clock == CPU else " (wall)" if run.on_gpu and clock == WALL else ""


def _roofline(row: Row) -> str:
    reached = row.get("roofline")
    return wording.NONE if reached is None else f"{wording.share(reached)} {row['bound']}"
