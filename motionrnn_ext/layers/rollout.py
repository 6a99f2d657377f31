"""Convolutions of a rollout: their weights are laid out once, and their gradients are computed once for many steps.

A recurrent net applies the same weights at every time step. Called as modules, its convolutions would lay out and cast
a weight at every step, and backward would compute a gradient of it at every step, and add them up. Inside of
`rollout(...)`, `convolve` does otherwise:

    Laid          autograd node of a weight, once per rollout: the weight as the steps read it
    Convolution   autograd node of a step: backward computes the gradient of x, and leaves (gradient, x) behind
    Laid          its backward, which runs after those of all steps: the weight's gradient, from all that was left

The numbers are those of the modules up to the order of sums. Modules with hooks or of a user's class are called.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

from ..backends.layouts import memory_format
from ..backends.torch_private import current_backward, transforms, will_run
from ..backends.transforms import is_transformed
from .initial_values import Resettable
from .plain import is_plain, keeps_parameters

# The pixels of all steps whose gradients are joined for one product, by device. More make the product faster up to
# this size, and keep more of the steps' gradients in memory until then.
_JOINED_PIXELS = {"cpu": 4096}
_JOINED_PIXELS_ELSEWHERE = 65536

_local = threading.local()


@contextmanager
def rollout(*parts: nn.Module | None) -> Iterator[None]:
    """Let `convolve` share the weights of these modules between the calls of this thread in the `with` block.

    It has no effect while torch.compile or torch.jit traces, and inside of transforms, which need the modules as such.
    """
    before = getattr(_local, "rollout", None)
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or transforms() or is_transformed()
    _local.rollout = None if traced else _Rollout(parts)
    try:
        yield
    finally:
        _local.rollout = before


def convolve(module: nn.Module, x: Tensor) -> Tensor:
    """Return module(x), with the weights that the rollout in force has laid out, if there is one."""
    if torch.compiler.is_compiling():
        return cast(Tensor, module(x))
    active = getattr(_local, "rollout", None)
    return cast(Tensor, module(x) if active is None else active.convolve(module, x))


class _Rollout:
    """The weights laid out so far, by the module that they belong to."""

    def __init__(self, parts: Sequence[nn.Module | None]) -> None:
        self._plain: set[nn.Module] = set()
        self._weights: dict[tuple[nn.Module, torch.dtype], Weights] = {}
        for part in parts:
            if part is not None:
                self._add(part)

    def _add(self, module: nn.Module) -> None:
        """Note a module and its parts as plain. The parts of others, whose hooks may move parameters, are left out."""
        is_known = isinstance(module, Resettable) or type(module).__module__.startswith("torch.nn.modules.")
        if is_known and is_plain(module, type(module)):
            self._plain.add(module)
            for part in module.children():
                self._add(part)

    def convolve(self, module: nn.Module, x: Tensor) -> Tensor:
        if module not in self._plain:
            return cast(Tensor, module(x))
        if isinstance(module, nn.Sequential):
            for part in module:
                x = self.convolve(part, x)
            return x
        if not (type(module) in (nn.Conv2d, nn.ConvTranspose2d) and _is_shared(module)):
            return cast(Tensor, module(x))
        assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        device = x.device.type
        dtype = x.dtype
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        weights = self._weights.get((module, dtype))
        if weights is None:
            formats = memory_format(x), memory_format(module.weight)
            layout = torch.channels_last if torch.channels_last in formats else torch.contiguous_format
            weights = self._weights[module, dtype] = Weights(module, dtype, layout)
        return weights.convolve(x)


def _is_shared(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    return keeps_parameters(conv) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


class Geometry(NamedTuple):
    """The arguments of `aten.convolution` behind weight and bias."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


class Weights:
    """The weights of one convolution as the steps of a rollout read them, and what their gradients are made of."""

    def __init__(
        self, conv: nn.Conv2d | nn.ConvTranspose2d, dtype: torch.dtype, layout: torch.memory_format
    ) -> None:
        transposed = isinstance(conv, nn.ConvTranspose2d)
        self.geometry = Geometry(
            list(conv.stride),
            list(cast("tuple[int, ...]", conv.padding)),
            list(conv.dilation),
            transposed,
            list(conv.output_padding) if transposed else [0, 0],
            conv.groups,
        )
        self.dtype, self.layout = dtype, layout
        # By backward pass: what the steps have left, and the sums of what was joined so far.
        self.left: dict[int, _Left] = {}
        parameters = [conv.weight] if conv.bias is None else [conv.weight, conv.bias]
        self.laid: tuple[Tensor, ...] = _Laid.apply(self, *parameters)

    def convolve(self, x: Tensor) -> Tensor:
        """Return the convolution of x by the laid-out weights."""
        x = x.to(self.dtype)
        if torch.is_grad_enabled():
            return cast(Tensor, _Convolution.apply(self, x, *self.laid))
        return self.forward(x, *self.laid)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.ops.aten.convolution(x, weight, bias, *self.geometry)

    def gradients(
        self, grad: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of x, weight and bias, those that the mask asks for."""
        bias_size = [grad.shape[1]] if mask[2] else None
        return torch.ops.aten.convolution_backward(grad, x, weight, bias_size, *self.geometry, mask)


class _Left:
    """What the steps of one backward pass have left for the gradients of weight and bias."""

    def __init__(self) -> None:
        self.grads: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.sums: list[Tensor | None] = [None, None]

    def pixels(self) -> int:
        return sum(grad.shape[0] * grad.shape[2] * grad.shape[3] for grad in self.grads)


def _join(weights: Weights, left: _Left, weight: Tensor, needs: tuple[bool, bool]) -> None:
    """Compute the gradients of what was left so far, and add them to the sums in at least float32."""
    if not left.grads:
        return
    grad, x = (_cat(maps) for maps in (left.grads, left.inputs))
    left.grads, left.inputs = [], []
    found = weights.gradients(grad, x, weight, (False, *needs))[1:]
    for i, part in enumerate(found):
        if part is None:
            continue
        before = left.sums[i]
        if before is None:
            left.sums[i] = part.to(torch.promote_types(part.dtype, torch.float32))
        else:
            left.sums[i] = before + part if torch.is_grad_enabled() else before.add_(part)


def _cat(maps: list[Tensor]) -> Tensor:
    return maps[0] if len(maps) == 1 else torch.cat(maps)


class _Laid(Function):
    """Weight and bias, in the dtype and layout of a rollout, and their gradients after those of all steps."""

    @staticmethod
    def forward(ctx: Any, weights: Weights, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.weights = weights
        ctx.dtypes = [p.dtype for p in parameters]
        ctx.set_materialize_grads(False)
        laid = []
        for parameter in parameters:
            source = parameter.detach()
            layout = weights.layout if parameter.dim() == 4 else torch.contiguous_format
            made = source.to(weights.dtype).contiguous(memory_format=layout)
            # A view shares the version of its parameter, by which autograd sees changes in place.
            laid.append(parameter.view_as(parameter) if made is source else made)
        ctx.save_for_backward(*parameters, laid[0])
        return tuple(laid)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        weights: Weights = ctx.weights
        weight = ctx.saved_tensors[-1]
        left = weights.left.pop(current_backward(), None)
        found: list[Tensor | None] = [None, None]
        if left is not None:
            needs = ctx.needs_input_grad[1], len(ctx.dtypes) > 1 and ctx.needs_input_grad[2]
            _join(weights, left, weight, needs)
            found = left.sums
        # Only the second derivative of a step's gradient hands gradients to this node.
        both = [g if f is None else f if g is None else f + g for f, g in zip(found, given)]
        return None, *[None if g is None else g.to(dtype) for g, dtype in zip(both, ctx.dtypes)]


class _Convolution(Function):
    """The convolution of one step, whose backward leaves the gradients of its weights to the rollout."""

    @staticmethod
    def forward(ctx: Any, weights: Weights, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.weights = weights
        ctx.save_for_backward(x, weight)
        return weights.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights: Weights = ctx.weights
        x, weight = ctx.saved_tensors
        needs_x, needs = ctx.needs_input_grad[1], ctx.needs_input_grad[2:]
        if any(needs):
            leave(ctx, weights, grad, x, weight, (needs[0], len(needs) > 1 and needs[1]))
        grad_x = weights.gradients(grad, x, weight, (True, False, False))[0] if needs_x else None
        return None, grad_x, *[None for _ in needs]


def leave(ctx: Any, weights: Weights, grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool]) -> None:
    """Leave the gradient of a convolution and its input for the gradients of its weights."""
    # A pass that does not ask for the gradients of the weights would never collect what is left.
    laid = next(node for node, _ in ctx.next_functions if node is not None and node.name() == "_LaidBackward")
    if not will_run(laid):
        return
    left = weights.left.setdefault(current_backward(), _Left())
    left.grads.append(grad)
    left.inputs.append(x)
    if left.pixels() >= _JOINED_PIXELS.get(grad.device.type, _JOINED_PIXELS_ELSEWHERE):
        _join(weights, left, weight, needs)
