"""Ops, cell and models beside what they replace: times, counts, bytes. `motionrnn bench` shows them as they come; on a
GPU `on_gpu` has

    python -m motionrnn_ext.benchmarks.measuring.rows --json ROWS [--ceilings CEILINGS] [--seconds 240] [--experiments]
    python -m motionrnn_ext.benchmarks.measuring.rows --device cpu --dry-run --json ROWS
    python -m benchmarks.rows --fill-compile-cache --part 0/4       # from the repository, nothing built

A comparison is one case (op, direction, shape, dtype) by several implementations: results are compared with float64
first, then all are timed in turns. Comparisons stand in the order of what they decide; those that the seconds do not
reach are listed as not run. ROWS is written after each one. The last form only compiles what the comparisons will
compile (torch.compile, Triton), so that several processes can do it while something else is built.

On a GPU, inputs rotate through 2 to 16 sets, enough for twice the L2 cache where 16 do; `cold` says whether they did.
float32 convolutions may use tf32 while timed (PyTorch's default), in every implementation; never while compared.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import motionrnn_ext

from . import model_cases, subjects, timing
from .implementations import Implementation, Results, implementation
from .machine import description, gpu_description
from .model_cases import ModelCase
from .op_cases import BACKWARD, FORWARD, Case, exact_results, largest_difference
from .plan import Comparison, gpu_plan
from .roofline import Work, cpu_floors, floors, lane_bytes, matrix_rate, share, work

if TYPE_CHECKING:
    from .official import Program

Row = dict[str, Any]


def main() -> int:
    options = arguments()
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU; --device cpu --dry-run tries this program without one")
    comparisons = gpu_plan(options.dry_run, options.experiments)
    if options.fill_compile_cache:
        part, parts = map(int, options.part.split("/"))
        return fill_compile_cache(comparisons[part::parts], options.device)
    motionrnn_ext.set_backend(options.device)
    gc.freeze()  # what is imported stays: each capture collects the rest
    ceilings = json.loads(options.ceilings.read_text()) if options.ceilings else None
    report = empty_report(options.device, ceilings)
    effort = timing.DRY_RUN if options.dry_run else timing.ON_GPU
    measure(comparisons, report, effort, options.json, options.seconds, print_lines)
    failures = sum("error" in row for row in report["rows"])
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
    parser.add_argument("--experiments", action="store_true", help="offset scales, single gradients")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, nothing compiled")
    parser.add_argument("--fill-compile-cache", action="store_true", help="compile and measure nothing")
    parser.add_argument("--part", default="0/1", help="which of how many parts of the comparisons to compile")
    options = parser.parse_args()
    if not (options.json or options.fill_compile_cache):
        parser.error("--json is needed to measure")
    return options


def empty_report(device: str, ceilings: dict[str, Any] | None, quick: bool = False) -> dict[str, Any]:
    """What a run's JSON says beside its rows."""
    return {
        "kind": "bench",
        "date": time.strftime("%Y-%m-%d"),
        "device": device,
        "quick": quick,
        **description(),
        "gpu": gpu_description() if device == "cuda" else None,
        "ceilings": ceilings,
        "rows": [],
        "not_run": [],
    }


# ---- The loop


def measure(
    comparisons: Sequence[Comparison],
    report: dict[str, Any],
    effort: timing.Effort,
    json_path: Path | None,
    seconds: float,
    show: Callable[[list[Row]], None],
    program: Program | None = None,
) -> None:
    """Measure in order, show and write after each, and start none after `seconds`."""
    started, on_gpu = time.monotonic(), report["device"] == "cuda"
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size if on_gpu else 0
    report["not_run"] = [str(c) for c in comparisons]  # as it is if the run is interrupted
    write(report, json_path)
    for i, comparison in enumerate(comparisons):
        if time.monotonic() - started > seconds:
            break
        try:
            rows = compared(comparison, report["device"], effort, l2_bytes, program)
        except Exception as error:
            rows = [
                {
                    **comparison.identity(),
                    "implementation": "all",
                    "layout": "all",
                    "error": subjects.told(error),
                }
            ]
        rows = [{"comparison": i, **row, **_roofline(row, report["ceilings"])} for row in rows]
        report["rows"] += rows
        report["not_run"] = [str(c) for c in comparisons[i + 1 :]]
        show(rows)
        write(report, json_path)
        if on_gpu:
            torch.cuda.synchronize()  # after an illegal access nothing more can be measured: stop with its message
            torch.cuda.empty_cache()


def write(report: dict[str, Any], json_path: Path | None) -> None:
    if json_path is not None:
        part = json_path.with_name(json_path.name + ".part")  # a full disk leaves the rows before
        part.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(part, json_path)


def compared(
    comparison: Comparison,
    device: str,
    effort: timing.Effort,
    l2_bytes: int = 0,
    program: Program | None = None,
) -> list[Row]:
    """A row per implementation: with an `error` where it failed or differs, `unavailable` where it cannot run."""
    torch.compiler.reset()  # no case counts towards another's limit of recompilations
    case, implementations = comparison.case, comparison.implementations
    if isinstance(case, ModelCase):
        made = model_cases.prepared(case, implementations, device, program)
    else:
        made = prepared(case, implementations, device, l2_bytes, program)
    return subjects.timed(made, effort)


def prepared(
    case: Case,
    implementations: Sequence[tuple[str, str]],
    device: str,
    l2_bytes: int,
    program: Program | None,
) -> list[subjects.Prepared]:
    """The rows of an op or the cell, and what is to be timed."""
    count = case.sets(l2_bytes) if l2_bytes else 2
    sets = [case.inputs(device, seed) for seed in range(count)]
    expected = exact_results(case, sets[0])
    least = work(case.op, case.shape, case.dtype, case.direction)
    common = {
        **case.identity(), "sets": count, "cold": count * least.bytes > 2 * l2_bytes if l2_bytes else None,
        "lane_bytes": lane_bytes(case.shape, case.dtype), "work": asdict(least), "flops": None,
    }  # fmt: skip
    return subjects.prepared(
        implementations, common,
        lambda name, layout, row: _prepared(case, name, layout, device, sets, expected, row, program),
    )  # fmt: skip


def _prepared(
    case: Case,
    name: str,
    layout: str,
    device: str,
    sets: Sequence[list[torch.Tensor]],
    expected: Results,
    row: Row,
    program: Program | None,
) -> timing.Subject:
    """The implementation's calls, ready to be timed; its row says how far off they are and what they take."""

    def begin() -> Any:
        made = implementation(name, layout, case, device, program)
        call, leaves = made.call(case, sets[0])
        return made, call, leaves, made.results(case, call, leaves)

    made, call, leaves, results = subjects.first(begin, row)
    row["difference"] = deviation(case, made, results, expected)
    subjects.check(row, case.tolerance if made.tolerance is None else made.tolerance)
    forward = None if case.direction in (FORWARD, BACKWARD) else lambda: made.forward(leaves)
    calls = [call, *[made.call(case, inputs)[0] for inputs in sets[1:]]]
    return subjects.subject(
        calls, row, forward=forward, known=leaves, on_gpu=device == "cuda", compiled=made.compiled,
        can_be_captured=made.can_be_captured,
    )  # fmt: skip


def deviation(case: Case, made: Implementation, results: Results, expected: Results) -> float:
    outputs, grads = results
    exact_outputs, exact_grads = expected
    if made.name.endswith("without grad_x"):
        grads, exact_grads = grads[1:], exact_grads[1:]
    pairs = [*zip(grads, exact_grads, strict=True)]
    if case.direction != BACKWARD:
        pairs += zip(outputs, exact_outputs, strict=True)
    return largest_difference([a for a, _ in pairs], [e for _, e in pairs])


def _roofline(row: Row, ceilings: dict[str, Any] | None) -> Row:
    """The share of the roofline that a row reaches: of device time on a GPU, of wall time on a CPU, of a model's
    multiply-adds alone."""
    none = {"roofline": None, "bound": None}
    if ceilings is None or "eager_us" not in row:
        return none
    on_cpu = "matmul_flops" in ceilings
    microseconds = row["eager_us"] if on_cpu else row["graph_us"]
    if microseconds is None:
        return none
    if row["work"] is None:
        terms = {"matrix": 1e6 * row["flops"] / matrix_rate(ceilings, row["dtype"])}
    elif on_cpu:
        terms = cpu_floors(Work(**row["work"]), ceilings)
    else:
        terms = floors(Work(**row["work"]), ceilings, row["dtype"], row["lane_bytes"])
    reached, bound = share(terms, microseconds)
    return {"roofline": reached, "bound": bound}


# ---- For the log, and for the compilers


def print_lines(rows: Iterable[Row]) -> None:
    for row in rows:
        print(line(row), flush=True)


def line(row: Row) -> str:
    what = f"{row['op']:18} {row['direction']:16} {row['shape']:15} {row['dtype']:8} {row['layout']:13}"
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
        case = comparison.case
        if isinstance(case, ModelCase):
            continue
        for name, layout in comparison.implementations:
            if name.endswith(("compiled", "CUDA graphs")) or name.startswith("triton"):
                started = time.monotonic()
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
