"""The short way to an op: an `autograd.Function` above the dispatcher, for plain tensors in eager mode.

What `torch.library` registers reaches every feature of PyTorch, but costs 20 us a call that wants gradients, and as
much again in backward. A hand-written `autograd.Function` has the same two functions, `setup_context` and `backward`,
and costs a quarter of that. `is_direct` is the one rule that decides between the two ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from ..torch_private import FakeTensor, below_autograd, plain_apply, transforms

_PLAIN = {Tensor, nn.Parameter, FakeTensor, type(None), float, int, bool}
# The ops that may be called directly, by namespace and name, each with the call that records its gradient.
_CALLS: dict[tuple[str, str], tuple[Any, Callable[..., Any]]] = {}


def is_direct(arguments: tuple[Any, ...]) -> bool:
    """Return whether an op with these arguments may leave out what `torch.library` registered.

    It may not while torch.compile, torch.export or torch.jit traces, inside of torch.func's transforms, and with
    subclasses of Tensor, such as those of distributed tensors.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or transforms():
        return False
    return _PLAIN.issuperset(map(type, arguments))


def run(op: Any, arguments: tuple[Any, ...]) -> Any:
    """Run the overload of an op below autograd, which then records nothing."""
    with below_autograd():
        return op(*arguments)


def register(namespace: str, name: str, op: Any, setup_context: Callable[..., None], backward: Any) -> None:
    """Make an op known to `call`, with the functions that `torch.library.register_autograd` takes."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = run(op, arguments)
        setup_context(ctx, arguments, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    # The name is that of the node in profiles and graphs.
    _CALLS[namespace, name] = op, plain_apply(type(f"{namespace}::{name}", (Function,), members))


def call(namespace: str, name: str, arguments: tuple[Any, ...]) -> Any:
    """Call an op, directly where that is allowed."""
    if not is_direct(arguments):
        return getattr(getattr(torch.ops, namespace), name)(*arguments)
    op, recorded = _CALLS[namespace, name]
    return recorded(*arguments) if torch.is_grad_enabled() else run(op, arguments)
