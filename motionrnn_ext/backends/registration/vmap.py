"""`torch.vmap` of the kernels' ops, forward and backward: the mapped dimension becomes part of the batch, one call.

Where what is summed over the batch is mapped as well, weights or their gradients, there is a call per slice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .places import PLACES


def register_vmap(name: str) -> None:
    """Of the op `namespace::op`."""
    namespace, op = name.split("::")
    call = getattr(getattr(torch.ops, namespace), op)
    places = PLACES.get(op)  # None of an op without weights
    weights = places.weights if places else ()

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        n = info.batch_size
        apart = places and (any(in_dims[w] is not None for w in weights) or places.wants_weights(arguments))
        if apart or n == 0:  # of nothing, shapes are those of a slice of zeros
            calls = [call(*[_slice(a, d, i) for a, d in zip(arguments, in_dims)]) for i in range(max(n, 1))]
            stacked = [torch.stack(r)[:n] for r in zip(*map(as_tuple, calls))]
            return _results(stacked, [0] * len(stacked))
        folded = [
            _fold(a, d, n) if isinstance(a, Tensor) and i not in weights else a
            for i, (a, d) in enumerate(zip(arguments, in_dims))
        ]
        results = as_tuple(call(*folded))
        mapped = [r.dim() > 1 for r in results]  # what was not wanted is an empty vector, also of a batch
        unfolded = [r.unflatten(0, (n, r.shape[0] // n)) if m else r for r, m in zip(results, mapped)]
        return _results(unfolded, [0 if m else None for m in mapped])

    torch.library.register_vmap(name, rule)


def as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _results(values: list[Any], out_dims: list[int | None]) -> tuple[Any, Any]:
    return (values[0], out_dims[0]) if len(values) == 1 else (tuple(values), tuple(out_dims))


def _slice(argument: Any, dim: int | None, i: int) -> Any:
    if dim is None:
        return argument
    return argument.select(dim, i) if argument.shape[dim] else argument.sum(dim)


def _fold(t: Tensor, dim: int | None, n: int) -> Tensor:
    """The mapped dimension, or n times the same, into the batch."""
    mapped = t.expand(n, *t.shape) if dim is None else t.movedim(dim, 0)
    return mapped.flatten(0, 1)
