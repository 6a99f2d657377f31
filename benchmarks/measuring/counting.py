"""Count what is the same in every run of a call: bytes, dispatched ops, kernel launches, FLOPs.

`tests/bench/test_counts.py` compares the counts of the cell and of whole models with committed ones. `timing.nodes`
counts the launches of a captured CUDA graph.
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
    """Return the bytes that are kept for backward, beside those of the `known` inputs and parameters."""
    return sum(kept_storages(call, known))


def kept_storages(call: Call, known: Sequence[torch.Tensor]) -> list[int]:
    """Return the sizes in bytes of the storages that autograd saves, without those of `known`."""
    inputs = {t.untyped_storage().data_ptr() for t in known}
    saved: dict[int, torch.UntypedStorage] = {}  # holding them keeps an address from being reused

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


# ---- Peak memory


def peak_bytes(call: Call, device: str | torch.device | None = None) -> int:
    """Return the most bytes that one call takes beside what is allocated already, its results included.

    device: "cuda", "cpu", or None for a GPU if there is one. Memory from PyTorch's allocator counts, on a GPU in
    multiples of 512 bytes; scratch memory that kernels and libraries get elsewhere does not.
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
    """Return (address, bytes) of every allocation in order; a release has negative bytes."""
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
    """Silence stderr, where the profiler's C++ library writes at start and stop, whatever its log level."""
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
    """Return the peak of live memory; memory from before the first allocation never counts."""
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

# Allocations, undeclared views and questions about dtypes, whose schemas look like those of computing ops.
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
    """Return how often a call dispatches each op that computes something, those of its backward included.

    Views and allocations compute nothing. Ops count as they are dispatched, after autograd and PyTorch's composite ops
    have been resolved.
    """
    with _Ops() as ops:
        call()
    return ops.found


def aten_ops(call: Call) -> int:
    """Return how many ops a call dispatches that compute something, see `ops_by_name`."""
    return ops_by_name(call).total()


def flops(call: Call) -> int:
    """Return the FLOPs of a call's matrix products and convolutions; for our ops, see `backends.registration.flops`."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with counter:
        call()
    return counter.get_total_flops()


class _NoModules(ModuleTracker):
    """A tracker that tracks nothing: its hooks do not work with `torch.autograd.grad`."""

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *unused: Any) -> None:
        pass


def triton_launches(call: Call) -> collections.Counter[str]:
    """Return how often a call launches each Triton kernel. Kernels are not run: the call's results are arbitrary.

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
