"""Every op and the cell on a GPU, beside what they replace: times, kernels, bytes.

    python benchmarks/gpu_rows.py --json ROWS [--ceilings CEILINGS] [--seconds 240] [--experiments]
    python benchmarks/gpu_rows.py --device cpu --dry-run --json ROWS
    python benchmarks/gpu_rows.py --fill-compile-cache --part 0/4

A comparison is one case (op, direction, shape, dtype) by several implementations: results are compared with float64
first, then all are timed in turns. Comparisons stand in the order of what they decide; those that the seconds do not
reach are listed as not run. ROWS is written after each one. The last form only compiles what the comparisons will
compile (torch.compile, Triton), so that several processes can do it while something else is built.

Inputs rotate through 2 to 16 sets, enough for twice the L2 cache where 16 do; `cold` says whether they did. float32
convolutions may use tf32 while timed (PyTorch's default), in every implementation; never while compared.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gpu_timing as timing
import torch
from gpu_cases import BACKWARD, FORWARD, Case, exact_results, largest_difference
from gpu_implementations import Implementation, Unavailable, implementation
from gpu_plan import Comparison, plan
from gpu_training_step import TrainingStep
from machine import description, gpu_description
from roofline import lane_bytes, work

import motionrnn_ext


def main() -> int:
    options = arguments()
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU; --device cpu --dry-run tries this program without one")
    comparisons = plan(options.dry_run, options.experiments)
    if options.fill_compile_cache:
        part, parts = map(int, options.part.split("/"))
        compared_ops = [c for c in comparisons if isinstance(c, Comparison)]
        return fill_compile_cache(compared_ops[part::parts], options.device)
    motionrnn_ext.set_backend(options.device)
    gc.freeze()  # what is imported stays: each capture collects the rest
    report = {
        **description(),
        "gpu": gpu_description() if on_gpu else None,
        "ceilings": json.loads(options.ceilings.read_text()) if options.ceilings else None,
        "rows": [],
        "not_run": [],
    }
    failures = run(comparisons, options, report)
    print(f"{len(report['rows'])} rows, {failures} failed, {len(report['not_run'])} comparisons not run")
    return 1 if failures else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--ceilings", type=Path, help="what ceilings.py wrote; kept with the rows")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=240, help="start no comparison after this time")
    parser.add_argument(
        "--experiments", action="store_true", help="offset scales, single gradients, a training step"
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, nothing compiled")
    parser.add_argument("--fill-compile-cache", action="store_true", help="compile and measure nothing")
    parser.add_argument("--part", default="0/1", help="which of how many parts of the comparisons to compile")
    options = parser.parse_args()
    if not (options.json or options.fill_compile_cache):
        parser.error("--json is needed to measure")
    return options


def run(
    comparisons: Sequence[Comparison | TrainingStep], options: argparse.Namespace, report: dict[str, Any]
) -> int:
    """Measure in order, write after each, and stop at the time's end; the number of rows that failed."""
    started, failures = time.monotonic(), 0
    seconds = 0 if options.dry_run else timing.SECONDS
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size if options.device == "cuda" else 0
    for i, comparison in enumerate(comparisons):
        if time.monotonic() - started > options.seconds:
            report["not_run"] = [str(c) for c in comparisons[i:]]
            break
        try:
            rows = measured(comparison, options.device, l2_bytes, seconds)
        except Exception as error:
            rows = [{**comparison.identity(), "implementation": "all", "layout": "all", "error": told(error)}]
        for row in rows:
            report["rows"].append({"comparison": i, **row})
            failures += "error" in row
            print(line(row), flush=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
        if options.device == "cuda":
            torch.cuda.synchronize()  # after an illegal access nothing more can be measured: stop with its message
            torch.cuda.empty_cache()
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    return failures


def measured(
    comparison: Comparison | TrainingStep, device: str, l2_bytes: int, seconds: float
) -> list[dict[str, Any]]:
    if isinstance(comparison, TrainingStep):
        return comparison.rows(device, seconds)
    return compared(comparison, device, l2_bytes, seconds)


def told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def compared(comparison: Comparison, device: str, l2_bytes: int, seconds: float) -> list[dict[str, Any]]:
    """A row per implementation: with an `error` where it failed or differs, `unavailable` where it cannot run."""
    case = comparison.case
    torch.compiler.reset()  # no case counts towards another's limit of recompilations
    count = case.sets(l2_bytes) if l2_bytes else 2
    sets = [case.inputs(device, seed) for seed in range(count)]
    expected = exact_results(case, sets[0])
    counted = work(case.op, case.shape, case.dtype, case.direction)
    common = {
        **comparison.identity(), "sets": count, "cold": count * counted.bytes > 2 * l2_bytes,
        "lane_bytes": lane_bytes(case.shape, case.dtype), "work": asdict(counted),
    }  # fmt: skip
    rows, subjects = [], []
    for name, layout in comparison.implementations:
        row: dict[str, Any] = {**common, "implementation": name, "layout": layout}
        rows.append(row)
        subjects.append(None)
        try:
            subjects[-1] = prepared(case, implementation(name, layout, case, device), sets, expected, row)
        except Unavailable as why:
            row["unavailable"] = str(why)
        except Exception as error:
            row["error"] = told(error)
    del expected
    timing.interleave([s for s in subjects if s is not None], seconds)
    for row, subject in zip(rows, subjects):
        if subject is not None:
            row.update(subject.result())
    return rows


def prepared(
    case: Case,
    made: Implementation,
    sets: Sequence[list[torch.Tensor]],
    expected: tuple[list[torch.Tensor], list[torch.Tensor]],
    row: dict[str, Any],
) -> timing.Subject:
    """The implementation's calls, ready to be timed; its row says how far off they are and what they keep."""
    calls, leaves = zip(*[made.call(case, inputs) for inputs in sets])
    row["difference"] = difference = deviation(case, made, calls[0], leaves[0], expected)
    limit = case.tolerance if made.tolerance is None else made.tolerance
    if not difference <= limit:
        raise ArithmeticError(f"differs from float64 by {difference:.2g}, more than {limit:g}: not timed")
    if case.direction not in (FORWARD, BACKWARD):
        row["kept_bytes"] = timing.kept_bytes(lambda: made.forward(leaves[0]), leaves[0])
    row["peak_bytes"] = timing.peak_bytes(calls[0])
    subject = timing.Subject(calls)
    subject.prepare()
    if subject.graph is not None:
        nodes = timing.nodes(subject.graph)
        row["nodes"] = {kind: n / subject.in_graph for kind, n in nodes.items()}
    return subject


def deviation(case: Case, made: Implementation, call, leaves, expected) -> float:
    allow_tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        outputs, grads = made.results(case, call, leaves)
    finally:
        torch.backends.cudnn.allow_tf32 = allow_tf32
    exact_outputs, exact_grads = expected
    if made.name.endswith("without grad_x"):
        grads, exact_grads = grads[1:], exact_grads[1:]
    pairs = [*zip(grads, exact_grads, strict=True)]
    if case.direction != BACKWARD:
        pairs += zip(outputs, exact_outputs, strict=True)
    return largest_difference([a for a, _ in pairs], [e for _, e in pairs])


def line(row: dict[str, Any]) -> str:
    """One row, for the log."""
    what = f"{row['op']:14} {row['direction']:16} {row['shape']:15} {row['dtype']:8} {row['layout']:13}"
    what += f" {row['implementation']:24}"
    for reason in ("error", "unavailable"):
        if reason in row:
            return f"{what} {reason}: {row[reason]}"
    device = f"{row['graph_us']:10.2f}" if row["graph_us"] is not None else f"{'-':>10}"
    return f"{what} graph {device} us   eager {row['eager_us']:10.2f} us   off by {row['difference']:.1e}"


def fill_compile_cache(comparisons: Iterable[Comparison], device: str) -> int:
    warnings.filterwarnings("ignore")
    if device == "cuda":  # several such processes share the card with tests
        torch.cuda.set_per_process_memory_fraction(0.13)
    for comparison in comparisons:
        for name, layout in comparison.implementations:
            if name.endswith("compiled") or name.startswith("triton"):
                started = time.monotonic()
                case = comparison.case
                torch.compiler.reset()
                try:
                    made = implementation(name, layout, case, device)
                    call, leaves = made.call(case, case.inputs(device, 0))
                    made.results(case, call, leaves)
                except Exception as error:
                    print(f"{case} {name}: {type(error).__name__}: {error}", flush=True)
                print(f"{case} {name} {layout}: {time.monotonic() - started:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
