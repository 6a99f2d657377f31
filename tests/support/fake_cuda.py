"""CUDA tensors where there is no GPU: shapes, dtypes and devices, no values, no gradients.

On a PyTorch without CUDA, moving a fake tensor there fails, and one that requires a gradient ends the process: tensors
are made there, under `torch.no_grad()`. What Python's `Tensor.contiguous` and indexing do before they call an op fails
as well; `fake_cuda` replaces both.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from under_test import CPU, NOT_TESTED

from motionrnn_ext import backend
from motionrnn_ext.backends import native, triton


@contextmanager
def fake_cuda(name: str) -> Iterator[None]:
    """A GPU on which "reference", "cuda" or "triton" runs; what the CUDA ops return is known with the CPU library."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "cuda":
            if CPU.name in NOT_TESTED:
                pytest.skip(f"the ops are not declared: {NOT_TESTED['cpu']}")
            patch.delitem(native._missing, "cuda", raising=False)
        if name == "triton":
            if triton.INTERPRETED or not triton._IS_INSTALLED:
                pytest.skip("Triton is not installed, or interpreted")
            importlib.import_module("motionrnn_ext.backends.triton.ops")
            patch.setattr(triton, "unavailable_reason", lambda: None)
        patch.setattr(Tensor, "contiguous", _contiguous)
        patch.setattr(Tensor, "__getitem__", _item)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)  # raises without CUDA
        with backend(name), torch.no_grad(), FakeTensorMode():
            yield


def _contiguous(t: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    return t if t.is_contiguous(memory_format=memory_format) else t.clone(memory_format=memory_format)


def _item(t: Tensor, index: Any) -> Tensor:
    """Index by whole numbers, slices, None and an ellipsis."""
    index, dim = index if isinstance(index, tuple) else (index,), 0
    for n, i in enumerate(index):
        if i is Ellipsis:
            dim = t.dim() - sum(rest is not None for rest in index[n + 1 :])
        elif isinstance(i, int):
            t = t.select(dim, i)
        else:
            t = t.unsqueeze(dim) if i is None else torch.ops.aten.slice(t, dim, i.start, i.stop, i.step or 1)
            dim += 1
    return t


def like(t: Tensor) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")


def moved(module: nn.Module) -> nn.Module:
    """The module with fake parameters and buffers."""
    for part in module.modules():
        for name, p in part._parameters.items():
            part._parameters[name] = p if p is None else nn.Parameter(like(p), requires_grad=False)
        for name, b in part._buffers.items():
            part._buffers[name] = b if b is None else like(b)
    return module


@contextmanager
def autocast(dtype: torch.dtype) -> Iterator[None]:
    """torch.autocast("cuda") turns itself off where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()
