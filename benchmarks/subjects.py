"""From an implementation's calls to a subject of the timing: what does not depend on the time is counted first."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import counting, timing

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler tells of every peak that is counted
Call = Callable[[], Any]
Result = TypeVar("Result")


class Unavailable(Exception):
    """What this machine lacks for an implementation."""


def first(call: Callable[[], Result], row: dict[str, Any]) -> Result:
    """Run what makes and calls an implementation for the first time, loading and compiling included, without tf32."""
    allow_tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    started = time.perf_counter()
    try:
        made = call()
    finally:
        torch.backends.cudnn.allow_tf32 = allow_tf32
    row["first_call_s"] = time.perf_counter() - started
    return made


def check(row: dict[str, Any], limit: float) -> None:
    """Stop, with what the row gets as its error, where results are too far from float64."""
    difference = row["difference"]
    if not difference <= limit:
        raise ArithmeticError(f"differs from float64 by {difference:.2g}, more than {limit:g}: not timed")


def subject(
    calls: Sequence[Call],
    row: dict[str, Any],
    *,
    forward: Call | None,
    known: Sequence[Tensor],
    on_gpu: bool,
    compiled: bool = False,
    can_be_captured: bool = True,
) -> timing.Subject:
    """Ready to be timed. `forward` is the pass whose kept tensors count, those of `known` left out; none without a
    backward. Of compiled code there are no dispatched ops to count."""
    row["kept_bytes"] = None if forward is None else counting.kept_bytes(forward, known)
    row["peak_bytes"] = counting.peak_bytes(calls[0], "cuda" if on_gpu else "cpu")
    row["aten_ops"] = None if compiled else counting.aten_ops(calls[0])
    made = timing.Subject(calls, on_gpu, can_be_captured)
    made.prepare()
    if made.graph is not None:
        row["nodes"] = {kind: n / made.in_graph for kind, n in timing.nodes(made.graph).items()}
    return made
