"""A page that a human reads from the rows: targets, ceilings, ratios.

    python -m motionrnn_ext.benchmarks.gpu.summary ROWS --markdown PAGE [--steps STEPS] [--ceilings CEILINGS]

ROWS is what rows.py wrote; STEPS has a line per step of on_gpu.py: name, outcome, seconds. The steps and targets
are printed as well. --ceilings is needed only where ROWS was not written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..cases import GPU_MAPS
from .targets import Row, Rows, Target, targets

PEERS = ("triton", "reference", "reference, compiled", "torchvision", "plain", "plain, compiled")
EMPTY: dict[str, Any] = {"rows": [], "not_run": [], "ceilings": None, "gpu": None}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path)
    parser.add_argument("--markdown", type=Path, required=True)
    parser.add_argument("--steps", type=Path)
    parser.add_argument("--ceilings", type=Path)
    options = parser.parse_args()
    report = json.loads(options.rows.read_text()) if options.rows.is_file() else dict(EMPTY)
    if not report["ceilings"] and options.ceilings and options.ceilings.is_file():
        report["ceilings"] = json.loads(options.ceilings.read_text())
    steps = read_steps(options.steps) if options.steps else []
    short, page = render(report, steps)
    options.markdown.write_text(page)
    print(short)
    return 0


def read_steps(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def render(report: dict[str, Any], steps: Sequence[Sequence[str]] = ()) -> tuple[str, str]:
    """The short form, steps and targets, and the whole page."""
    rows = Rows(report)
    found = targets(rows, GPU_MAPS) if report.get("gpu") else []
    parts = [
        ("Steps", table(("step", "outcome", "seconds"), steps) if steps else ""),
        ("Targets", target_table(found) if found else "A GPU is needed to check them."),
        ("Ceilings of the card", ceiling_table(report["ceilings"]) if report["ceilings"] else ""),
        ("Adds into grad_x", red_table(report["ceilings"]) if report["ceilings"] else ""),
        ("Rows", ROWS_NOTE + row_table(rows) if rows.all else ""),
        ("Failed", problem_table(report["rows"], "error")),
        ("Unavailable", problem_table(report["rows"], "unavailable")),
        ("Not run for lack of time", "\n".join(f"- {c}" for c in report["not_run"])),
    ]
    sections = [f"## {title}\n\n{text}\n" for title, text in parts if text]
    page = "\n".join([f"# {headline(report)}\n", *sections])
    return "\n".join([headline(report), *sections[: 2 if steps else 1]]), page


ROWS_NOTE = """Medians. graph: device time of a call in a CUDA graph; eager: wall time of a call. nodes: of the graph,
per call. roofline: the largest of memory, gather, matrix and vector time at the ceilings, over graph time. Ratios are a
peer's time over ours, in the peer's faster layout: graph / eager. kept: bytes for backward beside inputs and
parameters. (hot): the inputs fit into twice the L2 cache.

"""


def headline(report: dict[str, Any]) -> str:
    gpu = report.get("gpu")
    if not gpu:
        return f"No GPU: torch {report.get('torch', '?')}, commit {report.get('commit', '?')}"
    return (
        f"{gpu['name']}, driver {gpu['driver']}, torch {report['torch']}, nvcc {gpu['nvcc']}, "
        f"triton {gpu['triton']}, torchvision {gpu['torchvision']}, commit {report['commit']}"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def target_table(found: Iterable[Target]) -> str:
    return table(("target", "measured", "verdict"), ((t.what, t.measured, t.verdict) for t in found))


def ceiling_table(ceilings: dict[str, Any]) -> str:
    rows = []
    for name, value in ceilings.items():
        if name.endswith("_bytes_per_s"):
            rows.append((name.removesuffix("_bytes_per_s"), f"{value / 1e12:.2f} TB/s"))
        elif name.endswith("_flops"):
            rows.append((name.removesuffix("_flops"), f"{value / 1e12:.1f} TFLOP/s"))
        elif name.endswith("_us"):
            rows.append((name.removesuffix("_us"), f"{value:.2f} us"))
    return table(("ceiling", "measured"), rows)


def red_table(ceilings: dict[str, Any]) -> str:
    rows = (
        (r["shape"], f"{r['offset_scale']:g}", r["kind"], f"{r['us']:.1f}", f"{r['bytes_per_s'] / 1e12:.2f}")
        for r in ceilings["red"]
    )
    return table(("shape", "offsets x", "adds", "us", "TB/s of sums"), rows)


def row_table(rows: Rows) -> str:
    header = ("op", "direction", "shape", "dtype", "layout", "graph us", "eager us", "nodes", "roofline", *PEERS,
              "kept", "peak")  # fmt: skip
    return table(header, _row_lines(rows))


def _row_lines(rows: Rows) -> Iterator[tuple[str, ...]]:
    """A line per case and layout of ours, with the peers of all its comparisons."""
    lines: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows.all:
        if row["implementation"].startswith("ours"):
            key = (*_case(row), row["layout"], row["implementation"])
            lines.setdefault(key, []).append(row)
    for same in lines.values():
        first = same[0]
        variant = first["implementation"].removeprefix("ours").replace(", ", " ")
        scale = f" x{first['offset_scale']:g}" if first["offset_scale"] != 1 else ""
        share = rows.share(first)
        yield (
            first["op"] + variant + scale, first["direction"], first["shape"], first["dtype"], first["layout"],
            _number(first["graph_us"]) + ("" if first["cold"] or first["graph_us"] is None else " (hot)"),
            _number(first["eager_us"]), _nodes(first), f"{share[0]:.0%} {share[1]}" if share else "-",
            *[_ratios(rows, same, name) for name in PEERS],
            _bytes(first.get("kept_bytes")), _bytes(first.get("peak_bytes")),
        )  # fmt: skip


def _case(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("op", "direction", "shape", "dtype", "offset_scale"))


def _ratios(rows: Rows, same: Sequence[Row], name: str) -> str:
    for row in same:
        ratios = [rows.ratio(row, name, clock) for clock in ("graph_us", "eager_us")]
        if any(r is not None for r in ratios):
            return " / ".join("-" if r is None else f"{r:.2f}x" for r in ratios)
    return ""


def _nodes(row: Row) -> str:
    return " + ".join(f"{n:g} {kind}" for kind, n in row.get("nodes", {}).items()) or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _bytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:.2f} MiB"


def problem_table(rows: Iterable[Row], kind: str) -> str:
    seen: dict[str, list[str]] = {}
    for row in rows:
        if kind in row:
            what = f"{' '.join(map(str, _case(row)[:4]))} {row['layout']} {row['implementation']}"
            seen.setdefault(row[kind], []).append(what)
    return "\n".join(f"- {reason}: {len(rows)} rows, first {rows[0]}" for reason, rows in seen.items())


if __name__ == "__main__":
    sys.exit(main())
