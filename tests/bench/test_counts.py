"""Bytes, ops, launches and instructions are those that benchmarks/results/counts.json has: none grows unseen.

    MOTIONRNN_EXT_COUNTS_UPDATE=1 pytest tests/bench/test_counts.py    writes that file anew

Counts, unlike times, are the same in every run. One that falls fails as well, so that the better one is recorded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import counted
import pytest
import torch
from counted import Count
from repository import ROOT

from motionrnn_ext import backends
from motionrnn_ext.benchmarks.measuring import callgrind, counting

TABLE = ROOT / "benchmarks" / "results" / "counts.json"
UPDATE = bool(os.environ.get("MOTIONRNN_EXT_COUNTS_UPDATE"))
ACCEPT = (
    "If that is meant, MOTIONRNN_EXT_COUNTS_UPDATE=1 pytest tests/bench/test_counts.py records it; commit "
    "benchmarks/results/counts.json with what you changed."
)
TORCH = torch.__version__.partition("+")[0]
LAUNCHES = "launches of Triton kernels"
INSTRUCTIONS_BOUND = 1e-3  # relative; a compiler's are the same in every run, but for what malloc does


def read() -> dict[str, Any]:
    return json.loads(TABLE.read_text()) if TABLE.is_file() else {}


def write(**changed: Any) -> None:
    TABLE.write_text(json.dumps(read() | changed, indent=1) + "\n")


def difference(name: str, count: str, before: Count | None, now: Count, bound: float = 0.0) -> str | None:
    """What changed, in a sentence; None if nothing did. bound: of a total's relative change that is none."""
    if before is None:
        return f"{name}: {count}: {now} is not recorded yet"
    totals = [sum(c.values()) if isinstance(c, dict) else c for c in (before, now)]
    if before == now or (bound and abs(totals[1] - totals[0]) <= bound * totals[0]):
        return None
    how = "changed" if totals[0] == totals[1] else "grew" if totals[1] > totals[0] else "fell"
    said = f"{name}: {count} {how} from {totals[0]} to {totals[1]}"
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = {part: (before.get(part, 0), now.get(part, 0)) for part in sorted(before | now)}
        said += ": " + ", ".join(f"{part} {b} -> {n}" for part, (b, n) in pairs.items() if b != n)
    return said


def check(complaints: list[str | None]) -> None:
    if found := [complaint for complaint in complaints if complaint]:
        pytest.fail("\n".join([*found, ACCEPT]), pytrace=False)


# ---- Of steps


@pytest.fixture(scope="module")
def steps() -> dict[str, dict[str, Count]]:
    """What tests/support/counted.py counts here, by step."""
    if why := backends.unavailable_reason("cpu"):
        pytest.skip(f"the CPU kernels are not there: {why}")
    done = subprocess.run(
        [sys.executable, counted.__file__],
        env=os.environ | counted.ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if UPDATE:
        before = read().get("steps", {})  # a machine without Triton keeps its launches
        write(torch=TORCH, steps={name: before.get(name, {}) | counts for name, counts in found.items()})
    return found


@pytest.mark.parametrize("count", ["bytes kept for backward", "bytes at the peak", "ops", LAUNCHES])
def test_counts_of_a_step(count: str, steps: dict[str, dict[str, Count]]):
    recorded = read()
    if count == LAUNCHES and not all(count in counts for counts in steps.values()):
        pytest.skip("launches of Triton kernels are counted where Triton is installed")
    if count != LAUNCHES and recorded["torch"] != TORCH:
        pytest.skip(f"the recorded counts are those of torch {recorded['torch']}, this is {TORCH}")
    before = {name: recorded["steps"].get(name, {}) for name in steps}
    check([difference(name, count, before[name].get(count), now[count]) for name, now in steps.items()])


# ---- Of kernels


@pytest.mark.slow
def test_instructions_of_the_cpu_kernels():
    if why := callgrind.unavailable_reason():
        pytest.skip(why)
    toolchain, found = callgrind.counts()
    if UPDATE:
        write(toolchain=toolchain, instructions=found)
    recorded = read()
    if recorded["toolchain"] != toolchain:
        pytest.skip(f"the recorded instructions are those of {recorded['toolchain']}, this is {toolchain}")
    before, bound = recorded["instructions"], INSTRUCTIONS_BOUND
    check([difference(name, "instructions", before.get(name), now, bound) for name, now in found.items()])


# ---- What counts


def test_a_difference_is_named():
    assert difference("cell", "bytes", 100, 100) is None
    assert difference("cell", "bytes", 100, 120) == "cell: bytes grew from 100 to 120"
    assert difference("cell", "bytes", 100, 80) == "cell: bytes fell from 100 to 80"
    assert difference("cell", "ops", {"add": 2, "mul": 1}, {"add": 3}) == (
        "cell: ops changed from 3 to 3: add 2 -> 3, mul 1 -> 0"
    )
    assert difference("warp", "instructions", 10_000, 10_010, 1e-3) is None
    assert difference("warp", "instructions", 10_000, 10_011, 1e-3) is not None
    assert "not recorded" in (difference("cell", "bytes", None, 1) or "")


def test_kept_bytes():
    x, weight = (torch.zeros(n, requires_grad=True) for n in (1000, 1000))
    assert counting.kept_bytes(lambda: x * weight, [x, weight]) == 0
    assert counting.kept_bytes(lambda: (x * weight).exp(), [x, weight]) == 4000  # the result
    assert (
        counting.kept_bytes(lambda: (x + 1).view(10, 100) * (x + 1)[:1], [x, weight]) == 8000
    )  # whole storages


def test_peak_bytes():
    there = [torch.zeros(5000)]

    def call() -> torch.Tensor:
        there.clear()  # what was there before does not count
        a = torch.zeros(1000)
        b = a + 1  # both
        del a
        c = b.to(torch.float64)  # b and c: the peak
        del b
        return c[:1] + 1

    assert counting.peak_bytes(call, "cpu") == 4000 + 8000
    assert counting.peak_bytes(lambda: None, "cpu") == 0


def test_ops_count_in_backward_and_views_do_not():
    x = torch.ones(4, 3, requires_grad=True)

    def step() -> None:
        copy = torch.empty(3, 4).copy_(x.t()).view(12)
        torch.autograd.grad((copy * x.reshape(12)).sum(), x, torch.ones(()))

    # the gradients of both factors, and their sum
    assert counting.ops_by_name(step) == {"copy_": 1, "mul": 1 + 2, "sum": 1, "ones": 1, "add": 1}
    assert counting.aten_ops(step) == 7


def test_flops_of_a_step():
    """Forward, and in backward as many for each of two factors, by `torch.autograd.grad` within a module."""
    layer, x = torch.nn.Linear(5, 7, bias=False), torch.ones(3, 5, requires_grad=True)
    assert counting.flops(lambda: torch.autograd.grad(layer(x).sum(), [x, layer.weight])) == 3 * 2 * 3 * 5 * 7
