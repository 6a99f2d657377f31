"""Measure ops, the cell and models beside what they replace: times, counts, bytes.

A comparison is one case (op, direction, shape, dtype) by several implementations: results are compared with float64
first, then all are timed in turns. The comparisons that decide most come first; those that the seconds do not reach are
listed as not run. The rows are written after each comparison.

On a GPU, inputs rotate through 2 to 16 sets, as many as fill twice the L2 cache; `cold` says whether 16 were enough.
float32 convolutions may use tf32 while timed (PyTorch's default), in every implementation; never while compared.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from . import model_cases, subjects, timing
from .implementations import Implementation, Results, implementation
from .machine import description, gpu_description
from .model_cases import ModelCase
from .op_cases import BACKWARD, FORWARD, Case, exact_results, largest_difference
from .plan import Comparison
from .roofline import Work, cpu_floors, floors, lane_bytes, matrix_rate, share, work
from .subjects import NO_PROGRAMS, Programs

Row = dict[str, Any]


def empty_report(device: str, ceilings: dict[str, Any] | None, quick: bool = False) -> dict[str, Any]:
    """Return a run's JSON without its rows: the machine, the versions, the ceilings."""
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


def measure(
    comparisons: Sequence[Comparison],
    report: dict[str, Any],
    effort: timing.Effort,
    json_path: Path | None,
    seconds: float,
    show: Callable[[list[Row]], None],
    programs: Programs = NO_PROGRAMS,
) -> None:
    """Measure in order, show and write after each comparison, and start none after `seconds`."""
    started, on_gpu = time.monotonic(), report["device"] == "cuda"
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size if on_gpu else 0
    # Freezing keeps imported objects out of the garbage collection that each capture makes.
    gc.freeze()
    report["not_run"] = [str(c) for c in comparisons]  # correct if the run is interrupted
    write(report, json_path)
    for i, comparison in enumerate(comparisons):
        if time.monotonic() - started > seconds:
            break
        try:
            rows = compared(comparison, report["device"], effort, l2_bytes, programs)
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
            torch.cuda.synchronize()  # raises after an illegal access: nothing more can be measured
            torch.cuda.empty_cache()


def write(report: dict[str, Any], json_path: Path | None) -> None:
    if json_path is not None:
        part = json_path.with_name(json_path.name + ".part")  # a full disk leaves the earlier rows
        part.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(part, json_path)


def compared(
    comparison: Comparison,
    device: str,
    effort: timing.Effort,
    l2_bytes: int = 0,
    programs: Programs = NO_PROGRAMS,
) -> list[Row]:
    """Return a row per implementation: with an `error` if it failed or differs, `unavailable` if it cannot run."""
    torch.compiler.reset()  # no case counts towards another's limit of recompilations
    case = comparison.case
    if isinstance(case, ModelCase):
        common, prepare = model_cases.preparation(case, device, programs)
    else:
        common, prepare = preparation(case, device, l2_bytes, programs)
    return subjects.timed(subjects.prepared(comparison.implementations, common, prepare), effort)


def preparation(case: Case, device: str, l2_bytes: int, programs: Programs) -> tuple[Row, subjects.Prepare]:
    """Return the columns that all rows of an op or the cell share, and what prepares an implementation."""
    count = case.sets(l2_bytes) if l2_bytes else 2
    sets = [case.inputs(device, seed) for seed in range(count)]
    expected = exact_results(case, sets[0])
    least = work(case.op, case.shape, case.dtype, case.direction)
    common = {
        **case.identity(), "sets": count, "cold": count * least.bytes > 2 * l2_bytes if l2_bytes else None,
        "lane_bytes": lane_bytes(case.shape, case.dtype), "work": asdict(least), "flops": None,
    }  # fmt: skip

    def prepare(name: str, layout: str, row: Row) -> timing.Subject:
        def begin() -> Any:
            made = implementation(name, layout, case, device, programs.official)
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

    return common, prepare


def deviation(case: Case, made: Implementation, results: Results, expected: Results) -> float:
    """Return how far the results are from the expected ones, see `largest_difference`."""
    outputs, grads = results
    exact_outputs, exact_grads = expected
    if made.name.endswith("without grad_x"):
        grads, exact_grads = grads[1:], exact_grads[1:]
    pairs = [*zip(grads, exact_grads, strict=True)]
    if case.direction != BACKWARD:
        pairs += zip(outputs, exact_outputs, strict=True)
    return largest_difference([a for a, _ in pairs], [e for _, e in pairs])


def _roofline(row: Row, ceilings: dict[str, Any] | None) -> Row:
    """Return the share of the roofline that a row reaches: with device time on a GPU, with wall time on a CPU; a
    model's roofline is that of its multiply-adds alone."""
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
