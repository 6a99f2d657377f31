"""Measure this machine's GPU: its ceilings, then the rows of `plan.gpu_plan`.

    python -m motionrnn_ext.benchmarks.gpu.measure ROWS [--seconds 240]
    python -m motionrnn_ext.benchmarks.gpu.measure ROWS --dry-run     # tiny shapes on the CPU, nothing compiled

`motionrnn bench --device cuda` measures the same rows, but needs the packages of the console.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import motionrnn_ext

from ..measuring import rows, timing
from ..measuring.plan import gpu_plan
from . import ceilings


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path, metavar="ROWS", help="write the rows to this JSON file")
    parser.add_argument("--seconds", type=float, default=240, help="start no comparison after this time")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, nothing compiled")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    motionrnn_ext.set_backend(device)
    report = rows.empty_report(device, None if options.dry_run else ceilings.measure())
    effort = timing.DRY_RUN if options.dry_run else timing.ON_GPU
    rows.measure(gpu_plan(options.dry_run), report, effort, options.rows, options.seconds, _print)
    failures = sum("error" in row for row in report["rows"])
    print(f"{len(report['rows'])} rows, {failures} failed, {len(report['not_run'])} comparisons not run")
    return 1 if failures else 0


def _print(measured: Iterable[rows.Row]) -> None:
    for row in measured:
        print(_line(row), flush=True)


def _line(row: rows.Row) -> str:
    what = f"{row['op']:18} {row['direction']:16} {row['shape']:15} {row['dtype']:8} {row['layout']:13}"
    what += f" {row['implementation']:24}"
    for reason in ("error", "unavailable"):
        if reason in row:
            return f"{what} {reason}: {row[reason]}"
    device = f"{row['graph_us']:10.2f}" if row["graph_us"] is not None else f"{'-':>10}"
    return f"{what} graph {device} us   eager {row['eager_us']:10.2f} us   off by {row['difference']:.1e}"


if __name__ == "__main__":
    sys.exit(main())
