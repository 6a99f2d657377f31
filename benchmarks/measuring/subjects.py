"""Make a subject of the timing from an implementation's calls; what does not depend on time is counted first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from . import counting, timing
from .machine import without_folders

if TYPE_CHECKING:
    from .official import Program
    from .openstl import OpenSTL

Row = dict[str, Any]
Call = Callable[[], Any]
Prepared = tuple[Row, timing.Subject | None]  # None if the row says why there is nothing to time
Prepare = Callable[[str, str, Row], timing.Subject]  # takes name, layout and row
Result = TypeVar("Result")


class Programs(NamedTuple):
    """The public programs of which checkouts were named."""

    official: Program | None = None
    openstl: OpenSTL | None = None


NO_PROGRAMS = Programs()


class Unavailable(Exception):
    """Raised where this machine lacks what an implementation needs."""


def prepared(implementations: Sequence[tuple[str, str]], common: Row, prepare: Prepare) -> list[Prepared]:
    """Return a row per implementation and layout, each with its subject of the timing.

    The row has an `error` if `prepare` failed or results differ, `unavailable` if the implementation cannot run.
    """
    made: list[Prepared] = []
    for name, layout in implementations:
        row, ready = {**common, "implementation": name, "layout": layout}, None
        try:
            ready = prepare(name, layout, row)
        except Unavailable as why:
            row["unavailable"] = str(why)
        except Exception as error:
            row["error"] = told(error)
        made.append((row, ready))
    return made


def timed(made: Sequence[Prepared], effort: timing.Effort) -> list[Row]:
    """Time the subjects in turns, and return the rows with their times."""
    timing.interleave([ready for _, ready in made if ready is not None], effort)
    for row, ready in made:
        row.update(ready.result() if ready is not None else {})
    return [row for row, _ in made]


def told(error: Exception) -> str:
    """Return the error in one line, without the folders of this machine."""
    return without_folders(" ".join(f"{type(error).__name__}: {error}".split()))[:300]


def first(call: Callable[[], Result], row: Row) -> Result:
    """Run an implementation's first call without tf32; the row gets its time, loading and compiling included."""
    allow_tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    started = time.perf_counter()
    try:
        made = call()
    finally:
        torch.backends.cudnn.allow_tf32 = allow_tf32
    row["first_call_s"] = time.perf_counter() - started
    return made


def check(row: Row, limit: float) -> None:
    """Raise an ArithmeticError, which becomes the row's error, if results are too far from float64."""
    difference = row["difference"]
    if not difference <= limit:
        raise ArithmeticError(f"differs from float64 by {difference:.2g}, more than {limit:g}: not timed")


def subject(
    calls: Sequence[Call],
    row: Row,
    *,
    forward: Call | None,
    known: Sequence[Tensor],
    on_gpu: bool,
    compiled: bool = False,
    can_be_captured: bool = True,
) -> timing.Subject:
    """Count what the calls take, and return a subject that is ready to be timed.

    `forward` is the pass whose kept tensors count, without those of `known`; None if there is no backward. Compiled
    code dispatches no ops that could be counted.
    """
    row["kept_bytes"] = None if forward is None else counting.kept_bytes(forward, known)
    row["peak_bytes"] = counting.peak_bytes(calls[0], "cuda" if on_gpu else "cpu")
    row["aten_ops"] = None if compiled else counting.aten_ops(calls[0])
    made = timing.Subject(calls, on_gpu, can_be_captured)
    made.prepare()
    if made.graph is not None:
        row["nodes"] = {kind: n / made.in_graph for kind, n in timing.nodes(made.graph).items()}
    return made
