"""Time calls in turns: eagerly, and on a GPU in a CUDA graph as well.

Device time is that of a graph of many calls, divided by their number: the host's launch gaps do not count, and the
graph's own start counts little. Eager calls have a wall time and a CPU time, which is that of all threads of this
process: on a busy machine it leaves out the wait for a core, but not that of one thread for another.
"""

from __future__ import annotations

import collections
import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Call = Callable[[], Any]
# A graph takes at least about GRAPH_US, so that its start of some microseconds counts little, or has GRAPH_CALLS calls.
GRAPH_US = 400.0
GRAPH_CALLS = 256
BATCH_US = 3000.0  # eager calls between two synchronisations
# The driver's CUgraphNodeType
NODE_TYPES = {0: "kernel", 1: "memcpy", 2: "memset"}


@dataclass(frozen=True)
class Effort:
    """The effort of a comparison: at least `rounds[0]` and at most `rounds[1]` rounds, until `seconds` have passed.

    After `limit` seconds, `few` rounds are enough.
    """

    seconds: float
    rounds: tuple[int, int] = (7, 40)
    limit: float = 7.0
    few: int = 1


ON_GPU = Effort(0.35)
ON_CPU = Effort(2.0, (15, 60), limit=25.0, few=5)
QUICK = Effort(0.5, (7, 30), limit=5.0, few=3)
DRY_RUN = Effort(0.0, (3, 3))


@dataclass
class Subject:
    """An implementation's calls, each on inputs of its own, and their measured times."""

    calls: Sequence[Call]
    on_gpu: bool
    can_be_captured: bool = True
    graph: torch.cuda.CUDAGraph | None = None
    in_graph: int = 0
    batch: int = 1
    graph_us: list[float] = field(default_factory=list)
    eager_us: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def prepare(self) -> None:
        started = time.perf_counter()
        _timed(self.calls[0])  # the first call loads libraries that the counts did not need
        first = time.perf_counter() - started
        once = first if first > 1 else 1e-6 * min(_timed(self.calls[i % len(self.calls)]) for i in range(3))
        self.batch = max(1, min(200, int(BATCH_US / (1e6 * once))))
        if self.on_gpu and self.can_be_captured:
            self.graph, self.in_graph = captured(self.calls)

    def round(self) -> None:
        if self.graph is not None:
            self.graph_us.append(_replay_us(self.graph) / self.in_graph)
        started, cpu_started = time.perf_counter(), time.process_time()
        for i in range(self.batch):
            self.calls[i % len(self.calls)]()
        _synchronize()
        self.eager_us.append(1e6 * (time.perf_counter() - started) / self.batch)
        self.cpu_us.append(1e6 * (time.process_time() - cpu_started) / self.batch)

    def result(self) -> dict[str, Any]:
        """Return the medians and the 10th and 90th percentiles of the rounds' times."""
        return {
            **_summary("eager", self.eager_us),
            **_summary("cpu", self.cpu_us),
            **_summary("graph", self.graph_us),
            "rounds": len(self.eager_us),
        }


def _summary(clock: str, times: Sequence[float]) -> dict[str, float | None]:
    shares = {"us": 0.5, "p10_us": 0.1, "p90_us": 0.9}
    return {f"{clock}_{name}": quantile(times, share) if times else None for name, share in shares.items()}


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile, interpolated between the two nearest values."""
    place = share * (len(values) - 1)
    low, ordered = int(place), sorted(values)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def interleave(subjects: Sequence[Subject], effort: Effort) -> None:
    """Time all subjects in turns, round after round."""
    took, rounds = 0.0, 0
    while rounds < effort.rounds[0] or (took < effort.seconds and rounds < effort.rounds[1]):
        started = time.perf_counter()
        for subject in subjects:
            subject.round()
        took += time.perf_counter() - started
        rounds += 1
        if took > effort.limit and rounds >= effort.few:
            break


def captured(calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, int]:
    """Return a graph of all calls, repeated until it is long enough to time, and the number of calls in it.

    Outputs are kept until the capture ends, so that every call writes to memory of its own.
    """
    graph = _capture(calls)
    graph.replay()
    took = _replay_us(graph)
    repeats = max(1, min(int(GRAPH_US / max(took, 1e-3)), GRAPH_CALLS // len(calls)))
    if repeats > 1:
        graph = _capture(list(calls) * repeats)
        graph.replay()
    _synchronize()
    return graph, len(calls) * repeats


def _capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    kept = []
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            kept.append(call())
    return graph


def nodes(graph: torch.cuda.CUDAGraph) -> dict[str, int]:
    """Return how many nodes of each type a graph has: kernels, memsets, copies."""
    driver = ctypes.CDLL("libcuda.so.1")
    handle, count = ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t()
    _driver(driver.cuGraphGetNodes(handle, None, ctypes.byref(count)))
    found = (ctypes.c_void_p * count.value)()
    _driver(driver.cuGraphGetNodes(handle, found, ctypes.byref(count)))
    kinds: collections.Counter[str] = collections.Counter()
    for node in found:
        kind = ctypes.c_int()
        _driver(driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)))
        kinds[NODE_TYPES.get(kind.value, "other")] += 1
    return dict(kinds)


def _driver(status: int) -> None:
    if status:
        raise RuntimeError(f"the CUDA driver answered {status}")


def device_us(call: Call, repeats: int = 5) -> float:
    """Return the median time of a long-running call between two events, in microseconds."""
    call()
    return statistics.median(_event_us(call) for _ in range(repeats))


def _replay_us(graph: torch.cuda.CUDAGraph) -> float:
    return _event_us(graph.replay)


def _event_us(call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)


def _timed(call: Call) -> float:
    started = time.perf_counter()
    call()
    _synchronize()
    return 1e6 * (time.perf_counter() - started)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
