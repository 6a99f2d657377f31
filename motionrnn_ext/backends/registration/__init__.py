"""What torch must know of the kernels' ops, whoever compiles them: shapes, gradients, second gradients, vmap, FLOPs.

An op saves nothing but inputs for backward, and a new offset; those that join ops also what these hand on. Its backward
is an op of its own, `<op>_backward`. Second derivatives go through the reference's formulas, and so do tangents that
reach a backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import reference
from ..layouts import format_after, new_image
from . import flops
from .vmap import as_tuple, register_vmap


@dataclass(frozen=True)
class Op:
    """An op `name(*tensors, *parameters)` and `name_backward(*grads, *saved, *parameters)`."""

    name: str
    tensors: int
    outputs: Sequence[int]  # each output has the shape of this input ...
    dtypes: Sequence[int]  # ... and the dtype of this one
    of_output: bool = (
        False  # backward reads the first output in place of the last input, which it does not need
    )
    addends: bool = (
        False  # the first two inputs are added, so they have one gradient; backward returns it once
    )


_POINTWISE = (
    Op("motion_reset", 2, outputs=(0,), dtypes=(0,)),
    Op("motion_update", 4, outputs=(2, 3), dtypes=(2, 3), of_output=True),
    Op("memory_update", 3, outputs=(2,), dtypes=(2,), addends=True),
    Op("highway_output", 3, outputs=(0,), dtypes=(0,)),
    Op("gated_blend", 3, outputs=(0,), dtypes=(0,)),
)


def _single(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else tuple(values)


class _Registration:
    """What torch must know of the ops of one library's namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def op(self, name: str) -> Any:
        return getattr(getattr(torch.ops, self.namespace), name)

    def run_backward(self, op: str, by_reference: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
        if forward_ad._current_level >= 0:  # the kernel would drop the gradients' tangents
            return by_reference(*arguments)
        return as_tuple(self.op(f"{op}_backward")(*arguments))

    def new(self, like: Tensor, dtype: torch.dtype | None = None, layout: Tensor | None = None) -> Tensor:
        """An output of the shape of `like`, in the memory format that follows `layout` (`like` by default)."""
        memory_format = format_after(like if layout is None else layout)
        return torch.empty(
            like.shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format
        )

    def pointwise(self, op: Op) -> None:
        def fake(*arguments: Any) -> Any:
            first = arguments[0]
            return _single(
                [self.new(arguments[s], arguments[d].dtype, first) for s, d in zip(op.outputs, op.dtypes)]
            )

        def fake_backward(*arguments: Any) -> Any:
            inputs = arguments[len(op.outputs) :]
            tensors = inputs[op.addends : op.tensors]
            return _single(
                [
                    self.new(t, layout=inputs[0]) if t is not None else arguments[0].new_empty(0)
                    for t in tensors
                ]
            )

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            saved = (*inputs[: op.tensors - 1], output[0]) if op.of_output else inputs[: op.tensors]
            ctx.save_for_backward(*saved)
            ctx.parameters = inputs[op.tensors :]

        def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
            arguments = (*grads, *ctx.saved_tensors, *ctx.parameters)
            results = self.run_backward(op.name, reference_backward, *arguments)
            if op.addends:
                results = (results[0], *results)
            wanted = [r if want else None for r, want in zip(results, ctx.needs_input_grad)]
            return (*wanted, *[None] * len(ctx.parameters))

        def reference_backward(*arguments: Any) -> tuple[Any, ...]:
            if op.of_output:
                return _motion_update_reference_backward(*arguments)
            grads, inputs = arguments[: len(op.outputs)], arguments[len(op.outputs) :]
            tensors, parameters = inputs[: op.tensors], inputs[op.tensors :]
            return _reference_gradients(getattr(reference, op.name), tensors, parameters, grads)[op.addends :]

        self.declare(op.name, fake, setup_context, backward, fake_backward, reference_backward)

    def declare(
        self,
        op: str,
        fake: Callable[..., Any],
        setup_context: Callable[..., None],
        backward: Callable[..., Any],
        fake_backward: Callable[..., Any],
        reference_backward: Callable[..., tuple[Any, ...]],
    ) -> None:
        """An op with its gradient, the op `<op>_backward` that computes it, and the derivative of that."""
        name, backward_name = f"{self.namespace}::{op}", f"{self.namespace}::{op}_backward"
        torch.library.register_fake(name, fake)
        torch.library.register_autograd(name, backward, setup_context=setup_context)
        torch.library.register_fake(backward_name, fake_backward)
        _register_second_derivative(backward_name, reference_backward)
        register_vmap(name)
        register_vmap(backward_name)
        flops.register(self.op(op), self.op(f"{op}_backward"))

    # The ops with weights keep the memory format of x, and make gradients only where they are wanted.

    def offset_warp(self) -> None:
        def fake(x: Tensor, offset: Tensor, mask_logits: Tensor, weight: Tensor) -> Tensor:
            return new_image(x, weight.shape[0])

        def fake_backward(
            grad: Tensor, x: Tensor, offset: Tensor, mask_logits: Tensor, weight: Tensor, wanted: int, _: bool
        ) -> tuple[Tensor, ...]:
            made = (
                new_image(x, x.shape[1]),
                self.new(offset),
                self.new(mask_logits),
                _contiguous(weight),
            )
            return tuple(t if wanted & 1 << i else t.new_empty(0) for i, t in enumerate(made))

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            wanted = sum(1 << i for i, want in enumerate(ctx.needs_input_grad) if want)
            deterministic = torch.are_deterministic_algorithms_enabled()
            arguments = (grad, *ctx.saved_tensors, wanted, deterministic)
            grads = self.run_backward("offset_warp", _offset_warp_reference_backward, *arguments)
            return tuple(g if want else None for g, want in zip(grads, ctx.needs_input_grad))

        self.declare(
            "offset_warp", fake, setup_context, backward, fake_backward, _offset_warp_reference_backward
        )

    def motion_warp(self) -> None:
        def fake(
            x: Tensor,
            update: Tensor,
            candidate: Tensor,
            offset: Tensor,
            trend: Tensor,
            mask: Tensor,
            weight: Tensor,
            *_: float,
        ) -> tuple[Tensor, ...]:
            out = new_image(x, weight.shape[0])
            return out, self.new(offset, layout=update), self.new(trend, layout=update)

        def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
            x, update, candidate, offset, _, mask_logits, weight = arguments[3:10]
            wanted = arguments[12]
            motion = [self.new(t, layout=update) for t in (update, candidate, offset, offset)]
            made = (new_image(x, x.shape[1]), *motion, self.new(mask_logits), _contiguous(weight))
            bits = (1, 2, 2, 2, 2, 4, 8)
            return tuple(t if wanted & bit else t.new_empty(0) for t, bit in zip(made, bits))

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            x, update, candidate, offset, _, mask_logits, weight, *ctx.numbers = inputs
            ctx.save_for_backward(x, update, candidate, offset, output[1], mask_logits, weight)

        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            needs = ctx.needs_input_grad
            wanted = needs[0] | any(needs[1:5]) << 1 | needs[5] << 2 | needs[6] << 3
            deterministic = torch.are_deterministic_algorithms_enabled()
            arguments = (*grads, *ctx.saved_tensors, *ctx.numbers, wanted, deterministic)
            found = self.run_backward("motion_warp", _motion_warp_reference_backward, *arguments)
            return (*[g if want else None for g, want in zip(found, needs)], None, None)

        self.declare(
            "motion_warp", fake, setup_context, backward, fake_backward, _motion_warp_reference_backward
        )

    def motion_gates(self) -> None:
        """Also returned, for backward alone: the logits of u, r and z."""

        def fake(x: Tensor, offset: Tensor, trend: Tensor, x_weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
            motion = offset.shape[1]
            states = [self.new(offset, layout=x), self.new(offset, layout=x)]
            channels = (x_weight.shape[0] - 3 * motion, motion, motion, motion)
            return (
                *states,
                *[
                    torch.empty(
                        (x.shape[0], c, *x.shape[2:]),
                        dtype=x.dtype,
                        device=x.device,
                        memory_format=format_after(x),
                    )
                    for c in channels
                ],
            )

        def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
            x, offset, *weights = arguments[3:9]
            maps = [self.new(t, layout=x) for t in (x, offset, offset)]
            made = (*maps, *map(_contiguous, weights))
            bits = (1, 2, 2, 8, 8, 8, 8)
            return tuple(t if arguments[15] & bit else t.new_empty(0) for t, bit in zip(made, bits))

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            x, offset, _, *weights, alpha, max_offset = inputs
            ctx.numbers = alpha, max_offset
            ctx.save_for_backward(x, offset, *weights, *output[3:], output[0])
            ctx.set_materialize_grads(False)

        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            saved, needs = ctx.saved_tensors, ctx.needs_input_grad
            if any(g is not None for g in grads[3:]):
                raise RuntimeError(
                    "motion_gates: its logits have no gradient; they are there for its backward"
                )
            x, offset, x_weight = saved[:3]
            masks = (x.shape[0], x_weight.shape[0] - 3 * offset.shape[1], *x.shape[2:])
            missing = ((offset, offset.shape), (offset, offset.shape), (x, masks))
            given = [t.new_zeros(size) if g is None else g for g, (t, size) in zip(grads, missing)]
            wanted = needs[0] | any(needs[1:3]) << 1 | any(needs[3:7]) << 3
            found = self.run_backward(
                "motion_gates", _motion_gates_reference_backward, *given, *saved, *ctx.numbers, wanted
            )
            return (*[g if want else None for g, want in zip(found, needs)], None, None)

        self.declare(
            "motion_gates", fake, setup_context, backward, fake_backward, _motion_gates_reference_backward
        )


def _reference_gradients(
    function: Callable[..., Any], tensors: Sequence[Any], parameters: Sequence[Any], grads: Sequence[Tensor]
) -> tuple[Any, ...]:
    """The gradients of a reference op; differentiable in `tensors` and `grads` where gradients are enabled."""
    leaves = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in tensors]
    higher = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs = as_tuple(function(*leaves, *parameters))
    wanted = [t for t in leaves if t is not None]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=higher, materialize_grads=True))
    return tuple(next(found) if t is not None else None for t in leaves)


def _alias(t: Tensor, keep_history: bool) -> Tensor:
    """t as an input to differentiate by: what other inputs owe to t does not count. With t's own history if asked."""
    return t.view_as(t) if keep_history and t.requires_grad else t.detach().requires_grad_()


def _register_second_derivative(
    backward_name: str, reference_backward: Callable[..., tuple[Any, ...]]
) -> None:
    """Differentiate `<op>_backward` as the same function written in the reference's PyTorch."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_tensor = [isinstance(i, Tensor) for i in inputs]
        ctx.rest = [None if isinstance(i, Tensor) else i for i in inputs]
        ctx.save_for_backward(*[i for i in inputs if isinstance(i, Tensor)])

    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        higher = torch.is_grad_enabled()  # with create_graph: the third derivative is wanted, too
        with torch.enable_grad():
            arguments = [
                _alias(next(saved), higher) if is_tensor else rest
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


# ---- The ops with weights


def _contiguous(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _offset_warp_reference_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _reference_gradients(reference.offset_warp, arguments[:4], (), (grad,))


def _motion_update_reference_backward(
    grad_offset: Tensor,
    grad_trend: Tensor,
    update: Tensor,
    candidate: Tensor,
    offset: Tensor,
    new_offset: Tensor,
    alpha: float,
    max_offset: float,
) -> tuple[Tensor, ...]:
    motion = (update, candidate, offset, torch.zeros_like(offset))  # linear in the trend: any will do
    grads = reference.bounded_backward(grad_offset, new_offset, max_offset), grad_trend
    return _reference_gradients(reference.motion_update, motion, (alpha,), grads)


def _motion_warp_reference_backward(
    grad: Tensor, grad_offset: Tensor, grad_trend: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    x, update, candidate, offset, new_offset, mask_logits, weight, *numbers = arguments[:9]
    grad_x, by_warp, grad_mask, grad_weight = _reference_gradients(
        reference.offset_warp, (x, new_offset, mask_logits, weight), (), (grad,)
    )
    grads = _motion_update_reference_backward(
        grad_offset + by_warp, grad_trend, update, candidate, offset, new_offset, *numbers
    )
    return grad_x, *grads, grad_mask, grad_weight


def _motion_gates_reference_backward(*arguments: Any) -> tuple[Tensor, ...]:
    grad_offset, grad_trend, grad_mask = arguments[:3]
    (x, offset, *weights), (new_offset, alpha, max_offset) = arguments[3:9], arguments[12:15]
    grads = reference.bounded_backward(grad_offset, new_offset, max_offset), grad_trend, grad_mask
    tensors = (x, offset, torch.zeros_like(offset), *weights)  # linear in the trend: any will do
    return _reference_gradients(reference.motion_gates, tensors, (alpha,), grads)


def register(namespace: str, *, is_native: bool = True) -> None:
    """Register what torch must know of a namespace's ops, forward and backward; the native ones are more."""
    registration = _Registration(namespace)
    for op in _POINTWISE:
        registration.pointwise(op)
    registration.offset_warp()
    if is_native:
        registration.motion_warp()
        registration.motion_gates()
