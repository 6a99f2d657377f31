"""The registration of one op: the bases of the classes in the other files."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import reference
from ..layouts import new_like
from ..torch_private import argument_names, count_tensor_arguments, is_differentiating_forward
from . import direct, flops, shapes, vmap
from .second import reference_gradients, register_second_derivative
from .vmap import as_tuple
from .wanted import Wanted


class Registration:
    """The op `<namespace>::<name>`, the op `<name>_backward` that computes its gradients, and what torch asks of both.

    A subclass defines `fake` and `fake_backward` (the shapes of results), `setup_context` and `backward` (as
    `torch.library.register_autograd` takes them), and `reference_backward` (the backward op in plain PyTorch).
    """

    name: ClassVar[str]
    fake: Callable[..., Any]
    fake_backward: Callable[..., Any]
    setup_context: Callable[..., None]
    backward: Callable[..., tuple[Any, ...]]
    reference_backward: Callable[..., tuple[Any, ...]]

    def __init__(self, namespace: str) -> None:
        ops = getattr(torch.ops, namespace)
        self.namespace = namespace
        self.op, self.backward_op = getattr(ops, self.name), getattr(ops, f"{self.name}_backward")

    @cached_property
    def inputs(self) -> Any:
        """The class of named tuples of the op's arguments, in the order of its schema."""
        return _named_arguments(self.op)

    @cached_property
    def backward_inputs(self) -> Any:
        """The class of named tuples of the backward op's arguments."""
        return _named_arguments(self.backward_op)

    def register(self) -> None:
        """Tell torch the shapes, the gradient and the second gradient of the op."""
        name = f"{self.namespace}::{self.name}"
        shapes.register(name, self.fake)
        torch.library.register_autograd(name, self.backward, setup_context=self.setup_context)
        direct.register(self.namespace, self.name, self.op.default, self.setup_context, self.backward)
        shapes.register(f"{name}_backward", self.fake_backward)
        register_second_derivative(f"{name}_backward", self.reference_backward)
        self.register_batches(name)

    def register_batches(self, name: str) -> None:
        """Tell torch how both ops are mapped by `torch.vmap`."""
        vmap.register(name, self.op)
        vmap.register(f"{name}_backward", self.backward_op)

    def run_backward(self, *arguments: Any) -> tuple[Any, ...]:
        """Run the backward op, or the reference in its place where the kernel would drop the gradients' tangents."""
        if is_differentiating_forward():
            return self.reference_backward(*arguments)
        # Under create_graph the registered op records how its gradients are differentiated.
        if torch.is_grad_enabled() or not direct.is_direct(arguments):
            return as_tuple(self.backward_op(*arguments))
        return as_tuple(direct.run(self.backward_op.default, arguments))

    @staticmethod
    def needed(ctx: Any, gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Return the gradients that autograd asks for, one per input, None for the others and for numbers."""
        needs = ctx.needs_input_grad
        numbers = [None] * (len(needs) - len(gradients))
        if all(needs[: len(gradients)]):
            return (*gradients, *numbers)
        return (*[g if need else None for g, need in zip(gradients, needs)], *numbers)


def _named_arguments(op: Any) -> Any:
    """Return the class of named tuples of an op's arguments."""
    return namedtuple("Arguments", argument_names(op))


class Pointwise(Registration):
    """A pointwise op `<name>(*tensors, *numbers)` with `<name>_backward(*grads, *tensors, *numbers)`."""

    # For each output, the input that has its shape and dtype.
    outputs: ClassVar[Sequence[str]]
    # For each result of the backward op, the argument of it that has its shape and dtype.
    gradients: ClassVar[Sequence[str]]

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        self.n_tensors = count_tensor_arguments(self.op)
        # The first input, whose memory format all results follow.
        self.leader = argument_names(self.op)[0]

    def fake(self, *arguments: Any) -> Any:
        return self._like(self.outputs, self.inputs(*arguments))

    def fake_backward(self, *arguments: Any) -> Any:
        return self._like(self.gradients, self.backward_inputs(*arguments))

    def _like(self, names: Sequence[str], given: Any) -> Any:
        leader = getattr(given, self.leader)
        likes = [getattr(given, name) for name in names]
        made = tuple(leader.new_empty(0) if t is None else new_like(t, layout=leader) for t in likes)
        return made[0] if len(made) == 1 else made

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[: self.n_tensors])
        ctx.numbers = inputs[self.n_tensors :]

    def backward(self, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return self.needed(ctx, self.run_backward(*grads, *ctx.saved_tensors, *ctx.numbers))

    def reference_backward(self, *arguments: Any) -> tuple[Any, ...]:
        grads, inputs = arguments[: len(self.outputs)], arguments[len(self.outputs) :]
        tensors, numbers = inputs[: self.n_tensors], inputs[self.n_tensors :]
        return reference_gradients(getattr(reference, self.name), tensors, numbers, grads)


class Weighted(Registration):
    """An op with weights: images keep the memory format of x, and gradients are computed only where wanted."""

    # The bit of each gradient, by input, in the order of the op's inputs and of the backward op's results.
    gradients: ClassVar[Mapping[str, Wanted]]
    # The weights that are a factor of a matrix product, each with the wanted gradients for which backward needs the
    # gradient of the other factor.
    products: ClassVar[Mapping[str, Wanted]]

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        # Plain numbers: torch.compile writes an argument of an op into its code, where it does not know the flags.
        self._bits = [int(bit) for bit in self.gradients.values()]

    def register_batches(self, name: str) -> None:
        """Tell torch how both ops are mapped by `torch.vmap`, and how many FLOPs they take."""
        weights = [name for name, bit in self.gradients.items() if bit == Wanted.WEIGHTS]
        for suffix, op in (("", self.op), ("_backward", self.backward_op)):
            vmap.register(name + suffix, op, weights)
            flops.register(op, self.products)

    def wanted(self, ctx: Any) -> int:
        """Return the bits of the gradients that autograd asks for."""
        wanted = 0
        for bit, need in zip(self._bits, ctx.needs_input_grad):
            if need:
                wanted |= bit
        return wanted

    def only_wanted(self, gradients: Sequence[Tensor], wanted: int) -> tuple[Tensor, ...]:
        """Return the gradients with an empty tensor in place of each that is not wanted."""
        return tuple(g if wanted & bit else g.new_empty(0) for g, bit in zip(gradients, self._bits))


def new_weight(like: Tensor) -> Tensor:
    """Return an empty gradient of a weight, which is always contiguous."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)
