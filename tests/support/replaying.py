"""CUDA graphs without a GPU: what runs while a graph is recorded is kept, op by op with its tensors, and done again.

As on a GPU, a replay reads and writes the memory of the recording, with its numbers: what Python has computed meanwhile
is not seen. An op that needs a value on the host fails, as in a capture, and what was recorded holds nan until it is
replayed. Unlike on a GPU, no memory of the forward is used again by the backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from motionrnn_ext.graphs import conditions

ASKS_THE_HOST = {"_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique2"}


class Recording(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._opname not in ASKS_THE_HOST, func
        out = func(*args, **(kwargs or {}))
        self.graph.ops.append((func, args, kwargs or {}, out))
        return out


class Graph:
    """Stands for torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.ops: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def pool(self) -> Graph:
        return self

    @torch.no_grad()
    def forget(self) -> None:
        """Fill the memory that was allocated during the recording with nan."""
        for _, args, kwargs, out in self.ops:
            read = {_memory(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            for t in pytree.tree_leaves(out):
                if isinstance(t, Tensor) and _memory(t) not in read and t.is_floating_point():
                    # By `data`, which the versions that autograd compares do not count.
                    t.data.fill_(math.nan)

    # What autocast has cast is recorded as it was.
    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.ops:
            read = {_memory(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            for kept, new in zip(pytree.tree_leaves(out), pytree.tree_leaves(func(*args, **kwargs))):
                if isinstance(kept, Tensor) and _memory(kept) not in read:
                    kept.copy_(new)


def _memory(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


@contextmanager
def replaying() -> Iterator[list[Graph]]:
    """Record and replay graphs of CPU tensors; yield the graphs as they are made."""
    capturing, made = False, list[Graph]()

    def make() -> Graph:
        made.append(Graph())
        return made[-1]

    @contextmanager
    def recorded(graph: Graph, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        nonlocal capturing
        assert not capturing
        capturing = True
        try:
            with Recording(graph):
                yield
            graph.forget()
        finally:
            capturing = False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditions, "DEVICE", "cpu")
        patch.setattr(torch.cuda, "CUDAGraph", make)
        patch.setattr(torch.cuda, "graph", recorded)
        patch.setattr(torch.cuda, "Stream", lambda device: None)
        patch.setattr(torch.cuda, "device", lambda device: nullcontext())
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        yield made
