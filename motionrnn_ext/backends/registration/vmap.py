"""`torch.vmap` of the kernels' ops, forward and backward: the mapped dimension becomes part of the batch, in one call.

Weights have no batch. Where they are mapped, or their gradients are wanted, which are sums over the batch, there is a
call per slice.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from ..torch_private import argument_names
from .wanted import Wanted


def register(name: str, op: Any, weights: Collection[str] = ()) -> None:
    """Register the rule of `op`, whose qualified name is `name` and whose arguments `weights` have no batch."""
    names = argument_names(op)

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        n = info.batch_size
        dims, given = dict(zip(names, in_dims)), dict(zip(names, arguments))
        is_per_slice = any(dims[w] is not None for w in weights) or given.get("wanted", 0) & Wanted.WEIGHTS
        if is_per_slice or n == 0:
            # An empty batch has the shapes of a slice of zeros.
            calls = [op(*[_slice(a, d, i) for a, d in zip(arguments, in_dims)]) for i in range(max(n, 1))]
            stacked = [torch.stack(r)[:n] for r in zip(*map(as_tuple, calls))]
            return _results(stacked, [0] * len(stacked))
        folded = [
            _fold(a, dims[key], n) if isinstance(a, Tensor) and key not in weights else a
            for key, a in given.items()
        ]
        results = as_tuple(op(*folded))
        # A gradient that was not wanted is an empty vector, also of a batch.
        mapped = [r.dim() > 1 for r in results]
        unfolded = [r.unflatten(0, (n, r.shape[0] // n)) if m else r for r, m in zip(results, mapped)]
        return _results(unfolded, [0 if m else None for m in mapped])

    torch.library.register_vmap(name, rule)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return what an op returned as a tuple, also where it is one tensor."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _results(values: list[Any], out_dims: list[int | None]) -> tuple[Any, Any]:
    return (values[0], out_dims[0]) if len(values) == 1 else (tuple(values), tuple(out_dims))


def _slice(argument: Any, dim: int | None, i: int) -> Any:
    if dim is None:
        return argument
    return argument.select(dim, i) if argument.shape[dim] else argument.sum(dim)


def _fold(t: Tensor, dim: int | None, n: int) -> Tensor:
    """Move the mapped dimension into the batch; repeat a tensor that is not mapped n times there."""
    mapped = t.expand(n, *t.shape) if dim is None else t.movedim(dim, 0)
    return mapped.flatten(0, 1)
