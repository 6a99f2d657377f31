"""Second derivatives: a backward op is differentiated as the same function written in the reference's PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .vmap import as_tuple


def reference_gradients(
    function: Callable[..., Any], tensors: Sequence[Any], numbers: Sequence[Any], grads: Sequence[Tensor]
) -> tuple[Any, ...]:
    """Return the gradients of a reference op by `tensors`; None for a tensor that is None.

    They are differentiable in `tensors` and `grads` where gradients are enabled.
    """
    leaves = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in tensors]
    higher = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs = as_tuple(function(*leaves, *numbers))
    wanted = [t for t in leaves if t is not None]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=higher, materialize_grads=True))
    return tuple(next(found) if t is not None else None for t in leaves)


def register_second_derivative(
    backward_name: str, reference_backward: Callable[..., tuple[Any, ...]]
) -> None:
    """Register the derivative of the op `backward_name`, which computes what `reference_backward` does."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_tensor = [isinstance(i, Tensor) for i in inputs]
        ctx.rest = [None if isinstance(i, Tensor) else i for i in inputs]
        ctx.save_for_backward(*[i for i in inputs if isinstance(i, Tensor)])

    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        # Gradients are enabled here under create_graph, where the third derivative is wanted, too.
        higher = torch.is_grad_enabled()
        with torch.enable_grad():
            arguments = [
                alias(next(saved), higher) if is_tensor else rest
                for is_tensor, rest in zip(ctx.is_tensor, ctx.rest)
            ]
            results = reference_backward(*arguments)
            pairs = [
                (r, g)
                for r, g in zip(results, grads)
                if r is not None and r.requires_grad and r.shape == g.shape
            ]
            leaves = [a for a in arguments if isinstance(a, Tensor)]
            found = iter(
                torch.autograd.grad(
                    [r for r, _ in pairs],
                    leaves,
                    [g for _, g in pairs],
                    allow_unused=True,
                    create_graph=higher,
                )
            )
        return tuple(next(found) if is_tensor else None for is_tensor in ctx.is_tensor)

    torch.library.register_autograd(backward_name, backward, setup_context=setup_context)


def alias(t: Tensor, keep_history: bool) -> Tensor:
    """Return t as an input to differentiate by, so that what other inputs owe to t does not count.

    With `keep_history` the alias is differentiable by t itself.
    """
    return t.view_as(t) if keep_history and t.requires_grad else t.detach().requires_grad_()
