"""Counts of a call that do not depend on the machine's mood: bytes, dispatched ops, kernel launches, FLOPs.

`tests/bench/test_counts.py` compares those of the cell and of whole models with committed ones. What a captured CUDA
graph launches is counted by `timing.nodes`, the instructions of the CPU kernels by `callgrind`.
"""

from __future__ import annotations

import collections
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

Call = Callable[[], Any]


def kept_bytes(call: Call, known: Sequence[torch.Tensor]) -> int:
    """Bytes that backward keeps alive, beside inputs and parameters."""
    return sum(kept_storages(call, known))


def kept_storages(call: Call, known: Sequence[torch.Tensor]) -> list[int]:
    """The sizes of the storages of what autograd saves, those of `known` left out, in bytes."""
    inputs = {t.untyped_storage().data_ptr() for t in known}
    saved: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in inputs:
            saved[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = call()
    sizes = [storage.nbytes() for storage in saved.values()]
    del outputs
    return sizes


# ---- The most memory at one time


def peak_bytes(call: Call, device: str | torch.device | None = None) -> int:
    """The most bytes that one call takes beside what is there already, its results included.

    device: "cuda", "cpu", or None for a GPU where there is one. What PyTorch's allocator hands out counts, on a GPU in
    multiples of 512; scratch memory that kernels and libraries get elsewhere does not.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cpu":
        return _peak_of(_cpu_allocations(call))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_allocations(call: Call) -> list[tuple[int, int]]:
    """(address, bytes) of every allocation in order, negative where memory is given back."""
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with _quiet():
        profile.start()
    try:
        call()
    finally:
        with _quiet():
            profile.stop()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    of_cpu = [e for e in events if e["name"] == "[memory]" and e["args"]["Device Type"] == 0]
    return [(e["args"]["Addr"], e["args"]["Bytes"]) for e in sorted(of_cpu, key=lambda e: e["ts"])]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the profiler's C++ library writes to stderr when it starts and stops, whatever its log level."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _peak_of(allocations: Sequence[tuple[int, int]]) -> int:
    """Memory that was there before counts neither while it is there nor when it is given back."""
    live: dict[int, int] = {}
    now = peak = 0
    for address, size in allocations:
        if size > 0:
            live[address] = size
            now += size
            peak = max(peak, now)
        else:
            now -= live.pop(address, 0)
    return peak


# ---- Ops and launches

# Allocations, and what no schema tells apart from computing: views that are not declared so, questions about dtypes.
BOOKKEEPING = (
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided",
    "_unsafe_view", "lift_fresh", "promote_types", "result_type",
)  # fmt: skip


class _Ops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._opname
        if not func.is_view and name not in BOOKKEEPING and func.namespace != "prim":
            self.found[name if func.namespace == "aten" else f"{func.namespace}.{name}"] += 1
        return func(*args, **(kwargs or {}))


def ops_by_name(call: Call) -> collections.Counter[str]:
    """How often a call dispatches each op that computes something, those of its backward included.

    Views and allocations compute nothing. An op counts once, whatever it is made of: what autograd or the composite ops
    of PyTorch turn it into counts in its place.
    """
    with _Ops() as ops:
        call()
    return ops.found


def aten_ops(call: Call) -> int:
    """How many ops a call dispatches that compute something: `ops_by_name`."""
    return ops_by_name(call).total()


def flops(call: Call) -> int:
    """Return the FLOPs of a call's matrix products and convolutions; for our ops, see `backends.registration.flops`."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with counter:
        call()
    return counter.get_total_flops()


class _NoModules(ModuleTracker):
    """Which module computes what is not asked, and the tracker's hooks cannot live with `torch.autograd.grad`."""

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *unused: Any) -> None:
        pass


def triton_launches(call: Call) -> collections.Counter[str]:
    """How often a call launches each of the package's Triton kernels. They are counted, not run: results are arbitrary.

    The call has to choose the backend "triton", which on a CPU needs TRITON_INTERPRET=1.
    """
    from motionrnn_ext.backends.triton import launch

    found: collections.Counter[str] = collections.Counter()

    class Counted:
        def __init__(self, kernel: Any) -> None:
            self.name = getattr(kernel, "fn", kernel).__name__.removesuffix("_kernel")

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return self.count

        def count(self, *arguments: Any, **constants: Any) -> None:
            found[self.name] += 1

    before, launch._launchable = launch._launchable, Counted
    try:
        call()
    finally:
        launch._launchable = before
    return found
