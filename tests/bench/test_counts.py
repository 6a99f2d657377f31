"""Do bytes, ops and launches stay at or below the counts that benchmarks/results/counts.json records?

Counts, unlike times, are the same in every run. One that grows fails; one that falls passes with a warning, which says
how to record it (tests/support/counted.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import counted
import pytest
import torch
from counted import LAUNCHES, TORCH, Count, Counts

from motionrnn_ext import backends
from motionrnn_ext.benchmarks.measuring import counting

RECORD = "`python tests/support/counted.py --update` records the counts; commit them with what you changed."


@pytest.fixture(scope="module")
def steps() -> Counts:
    if why := backends.unavailable_reason("cpu"):
        pytest.skip(f"the CPU kernels are not there: {why}")
    done = subprocess.run([sys.executable, counted.__file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("count", ["bytes kept for backward", "bytes at the peak", "ops", LAUNCHES])
def test_counts_of_a_step(count: str, steps: Counts):
    recorded = counted.read()
    if count == LAUNCHES and not all(count in counts for counts in steps.values()):
        pytest.skip("launches of Triton kernels are counted where Triton is installed")
    if count != LAUNCHES and recorded["torch"] != TORCH:
        pytest.skip(f"the recorded counts are those of torch {recorded['torch']}, this is {TORCH}")
    worse, better = [], []
    for name, now in steps.items():
        before = recorded["steps"].get(name, {}).get(count)
        if before is None:
            worse.append(f"{name}: {count}: {now[count]} is not recorded yet")
        elif before != now[count]:
            grew = total(now[count]) > total(before)
            (worse if grew else better).append(f"{name}: {count}: {changes(before, now[count])}")
    if better:
        warnings.warn("\n".join(["no more than recorded:", *better, RECORD]), stacklevel=1)
    assert not worse, "\n".join([*worse, f"If that is meant, {RECORD}"])


def total(count: Count) -> int:
    return sum(count.values()) if isinstance(count, dict) else count


def changes(before: Count, now: Count) -> str:
    """Return what changed, such as "5 -> 4: add 2 -> 1"."""
    said = f"{total(before)} -> {total(now)}"
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = {part: (before.get(part, 0), now.get(part, 0)) for part in sorted(before | now)}
        said += ": " + ", ".join(f"{part} {b} -> {n}" for part, (b, n) in pairs.items() if b != n)
    return said


@pytest.mark.parametrize(
    "recorded, fails",
    [({"mul": 1}, True), ({"mul": 2}, False), ({"mul": 3}, False), ({"add": 2}, False), (None, True)],
)
def test_a_count_fails_where_it_grows(monkeypatch: pytest.MonkeyPatch, recorded: Count | None, fails: bool):
    table = {"torch": TORCH, "steps": {"cell": {} if recorded is None else {"ops": recorded}}}
    monkeypatch.setattr(counted, "read", lambda: table)
    now: Counts = {"cell": {"ops": {"mul": 2}}}
    if fails:
        with pytest.raises(AssertionError, match="mul 1 -> 2|not recorded yet"):
            test_counts_of_a_step("ops", now)
    elif recorded == now["cell"]["ops"]:
        test_counts_of_a_step("ops", now)
    else:
        with pytest.warns(UserWarning, match="no more than recorded"):
            test_counts_of_a_step("ops", now)


# ---- The counts themselves


def test_kept_bytes():
    x, weight = (torch.zeros(n, requires_grad=True) for n in (1000, 1000))
    assert counting.kept_bytes(lambda: x * weight, [x, weight]) == 0
    assert counting.kept_bytes(lambda: (x * weight).exp(), [x, weight]) == 4000  # exp keeps its result
    views = counting.kept_bytes(lambda: (x + 1).view(10, 100) * (x + 1)[:1], [x, weight])
    assert views == 8000  # a view keeps its whole storage


def test_peak_bytes():
    there = [torch.zeros(5000)]

    def call() -> torch.Tensor:
        there.clear()  # memory from before the call does not count
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.to(torch.float64)  # b and c are the peak
        del b
        return c[:1] + 1

    assert counting.peak_bytes(call, "cpu") == 4000 + 8000
    assert counting.peak_bytes(lambda: None, "cpu") == 0


def test_ops_count_in_backward_and_views_do_not():
    x = torch.ones(4, 3, requires_grad=True)

    def step() -> None:
        copy = torch.empty(3, 4).copy_(x.t()).view(12)
        torch.autograd.grad((copy * x.reshape(12)).sum(), x, torch.ones(()))

    # mul: forward and the gradients of both factors; add: their sum
    assert counting.ops_by_name(step) == {"copy_": 1, "mul": 1 + 2, "sum": 1, "ones": 1, "add": 1}
    assert counting.aten_ops(step) == 7


def test_flops_of_a_step():
    """Forward, and as many again in backward for each of the two factors."""
    layer, x = torch.nn.Linear(5, 7, bias=False), torch.ones(3, 5, requires_grad=True)
    assert counting.flops(lambda: torch.autograd.grad(layer(x).sum(), [x, layer.weight])) == 3 * 2 * 3 * 5 * 7
