"""Times and memory of a call on a device: in a CUDA graph, eager, interleaved with the calls it is compared with.

Device time is that of a graph of many calls, divided by their number: launch gaps of the host do not count, and the
graph's own start counts little. On a CPU there is wall time only.
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
GRAPH_US = 400.0  # a graph's start, some microseconds, is to be small beside its calls
GRAPH_CALLS = 256
BATCH_US = 3000.0  # of eager calls between two synchronisations
SECONDS = 0.35  # for all rounds of one comparison
ROUNDS = (7, 40)
# CUgraphNodeType of the driver
NODE_TYPES = {0: "kernel", 1: "memcpy", 2: "memset"}


@dataclass
class Subject:
    """One implementation's calls, each on inputs of its own, and what was measured of them."""

    calls: Sequence[Call]
    graph: torch.cuda.CUDAGraph | None = None
    in_graph: int = 0
    batch: int = 1
    graph_us: list[float] = field(default_factory=list)
    eager_us: list[float] = field(default_factory=list)

    def prepare(self) -> None:
        started = time.perf_counter()
        _timed(self.calls[0])  # the first compiles and loads
        first = time.perf_counter() - started
        once = first if first > 1 else 1e-6 * min(_timed(self.calls[i % len(self.calls)]) for i in range(3))
        self.batch = max(1, min(200, int(BATCH_US / (1e6 * once))))
        if torch.cuda.is_available():
            self.graph, self.in_graph = captured(self.calls)

    def round(self) -> None:
        if self.graph is not None:
            self.graph_us.append(_replay_us(self.graph) / self.in_graph)
        started = time.perf_counter()
        for i in range(self.batch):
            self.calls[i % len(self.calls)]()
        _synchronize()
        self.eager_us.append(1e6 * (time.perf_counter() - started) / self.batch)

    def result(self) -> dict[str, Any]:
        device = statistics.median(self.graph_us) if self.graph_us else None
        eager = statistics.median(self.eager_us)
        return {"graph_us": device, "eager_us": eager, "rounds": len(self.eager_us)}


def interleave(subjects: Sequence[Subject], seconds: float = SECONDS) -> None:
    """Rounds over all subjects, one after the other, as many as there is time for."""
    took, rounds = 0.0, 0
    while rounds < ROUNDS[0] or (took < seconds and rounds < ROUNDS[1]):
        started = time.perf_counter()
        for subject in subjects:
            subject.round()
        took += time.perf_counter() - started
        rounds += 1
        if took > 20 * SECONDS:  # so slow that a few rounds have to do
            break


def captured(calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of all calls, repeated until it is long enough to time, and the number of calls in it.

    Outputs are kept until the capture ends, so that calls write to memory of their own as they read it.
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
    """How many nodes of each type a graph has: kernels, memsets, copies."""
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


def kept_bytes(call: Call, known: Sequence[torch.Tensor]) -> int:
    """Bytes that backward keeps alive, beside inputs and parameters: the storages of what autograd saves."""
    inputs = {t.untyped_storage().data_ptr() for t in known}
    saved: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in inputs:
            saved[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = call()
    total = sum(storage.nbytes() for storage in saved.values())
    del outputs
    return total


def peak_bytes(call: Call) -> int | None:
    """The most memory that one call takes beside what is there already."""
    if not torch.cuda.is_available():
        return None
    _synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    _synchronize()
    return torch.cuda.max_memory_allocated() - before


def device_us(call: Call, repeats: int = 5) -> float:
    """Microseconds of a long-running call between two events, the median."""
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
