"""Convolutions of a rollout: their weights are laid out once, and their gradients are computed once for many steps.

A recurrent net applies the same weights at every time step. Called as modules, its convolutions would lay out and cast
a weight at every step, and backward would compute a gradient of it at every step, and add them up. Inside of
`rollout(...)` the steps use `SharedWeights` instead:

    forward, once      `_Laid` hands the weights to the steps, in their dtype and memory format
    forward, a step    reads them
    backward, a step   computes the gradients of its maps, and leaves what its weights' gradients are made of
    backward, once     `_Laid` runs after all steps, and computes the weights' gradients from what they left

The numbers are those of the modules up to the order of sums. Modules with hooks or of a user's class are called.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

from ..backends.convolution import Convolution, Geometry
from ..backends.layouts import memory_format
from ..backends.torch_private import current_backward, foreach_add, transforms, version, will_run
from ..backends.transforms import is_transformed
from ..name import PACKAGE
from .initial_values import Resettable
from .plain import has_hooks_inside, is_as_its_class, is_plain, keeps_parameters
from .states import under_autocast

_local = threading.local()
# On one core of an AMD EPYC with AVX-512, a step of PredRNN (64 channels, 4 layers) by itself took 1.3 to 1.5 times as
# long with shared weights on 16x16 pixels, 0.9 times on four maps of that size, and 0.7 times on 32x32.
_LEAST_PIXELS = 512


@contextmanager
def rollout(
    owner: nn.Module, steps: int | None = None, pixels: int = 0, recomputes: bool = False
) -> Iterator[None]:
    """Share the weights of the parts of a module between their calls in this thread and this `with` block.

    It has no effect while torch.compile or torch.jit traces, and inside of transforms, which need the modules as such;
    and none for one step on few pixels, where laying out the weights would take longer than it saves.

    Args:
        owner: the module.
        steps: the number of time steps; None if it is not known.
        pixels: the pixels of the maps of one step, those of a batch together.
        recomputes: whether backward computes the steps again, in order to keep little.
    """
    is_short = steps == 1 and pixels < _LEAST_PIXELS
    active = None if is_short or is_composed() else Rollout(owner, recomputes)
    try:
        with resumed(active):
            yield
    finally:
        if active is not None:
            active.end()


def is_composed() -> bool:
    """Return whether modules have to be called as such: while traced, inside of transforms and of `composed`."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return bool(is_traced or transforms() or is_transformed() or getattr(_local, "is_composed", False))


def resumed(active: Rollout | None) -> AbstractContextManager[None]:
    """Put a rollout in force, or none: a step that backward computes again reads the weights of its first time."""
    return _set("rollout", active)


def composed() -> AbstractContextManager[None]:
    """Call every module at every step of this thread, as the cells' `forward` is written, for comparison."""
    return _set("is_composed", True)


@contextmanager
def _set(name: str, value: Any) -> Iterator[None]:
    """Give a setting of this thread a value within a `with` block."""
    before = getattr(_local, name, None)
    setattr(_local, name, value)
    try:
        yield
    finally:
        # Blocks of generators that take turns do not end in the reverse order of their beginnings.
        setattr(_local, name, None if getattr(before, "has_ended", False) else before)


def current_rollout() -> Rollout | None:
    """Return the rollout in force in this thread, or None."""
    return None if torch.compiler.is_compiling() else getattr(_local, "rollout", None)


def convolve(module: nn.Module, x: Tensor) -> Tensor:
    """Return module(x), with shared weights if a rollout is in force that has the module."""
    active = current_rollout()
    return cast(Tensor, module(x)) if active is None else active.convolve(module, x)


class Rollout:
    """The weights that the steps of a rollout share, laid out at their first use."""

    has_ended = False

    def __init__(self, owner: nn.Module, recomputes: bool = False) -> None:
        self.owner, self.recomputes = owner, recomputes
        self._plain: set[nn.Module] = set()
        self._shared: dict[Hashable, Any] = {}
        # What holds packed weights.
        self.packed: list[Any] = []
        # The parameters and their versions, where a user's code runs between the steps.
        self.noted: list[tuple[Tensor, int]] | None = None
        # A hook of any part may change the weights of every other one from step to step.
        if not has_hooks_inside(owner):
            self._plain.add(owner)
            for part in owner.children():
                self._add(part)

    def _add(self, module: nn.Module) -> None:
        """Note a module and its parts as plain; the parts of a class that is not known here are left out."""
        of_torch_or_ours = type(module).__module__.startswith(("torch.nn.modules.", f"{PACKAGE}."))
        if (of_torch_or_ours or isinstance(module, Resettable)) and is_as_its_class(module):
            self._plain.add(module)
            for part in module.children():
                self._add(part)

    def has(self, module: nn.Module) -> bool:
        """Return whether a module's parameters may be read once for all steps."""
        return module in self._plain

    def has_conv(self, module: nn.Module, x: Tensor) -> bool:
        """Return whether `module` is a convolution whose parameters may be read once for all steps, to convolve x."""
        kind = type(module)
        is_conv = kind in (nn.Conv2d, nn.ConvTranspose2d) and is_plain(module, kind)
        if not (is_conv and self.has(module) and keeps_parameters(module)):
            return False
        assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        # Another dtype than the weight's is an error of PyTorch's.
        fits = module.weight.dtype == x.dtype or under_autocast(x)
        return fits and module.padding_mode == "zeros" and not isinstance(module.padding, str)

    def share(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make()` returned for this key, which is called once in a rollout and gradient mode."""
        key = key, torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    @property
    def is_block(self) -> bool:
        """Return whether this is a `with model.rollout()` block, in which a user's code runs between the steps."""
        return self.noted is not None

    def note(self, owner: nn.Module) -> None:
        """Note the parameters as they are, for `has_other_weights`."""
        self.noted = [(parameter, version(parameter)) for parameter in owner.parameters()]

    def has_other_weights(self, owner: nn.Module) -> bool:
        """Return whether parameters were changed in place or replaced, or hooks were registered, since `note`."""
        if self.noted is None:
            return False
        now = list(owner.parameters())
        same = len(now) == len(self.noted) and all(
            p is before and version(p) == number for p, (before, number) in zip(now, self.noted)
        )
        return not same or (owner in self._plain and has_hooks_inside(owner))

    def end(self) -> None:
        """Free what only forward needs; a step that backward computes again makes it anew."""
        self.has_ended = True
        for holder in self.packed:
            holder.free_forward()

    def convolve(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return module(x), which is a convolution or a sequence of modules."""
        if isinstance(module, nn.Sequential) and self.has(module):
            for part in module:
                x = self.convolve(part, x)
            return x
        if not self.has_conv(module, x):
            return cast(Tensor, module(x))
        assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        dtype = dtype_of_convolutions(x)
        weights: SharedWeights = self.share(
            (module, dtype), lambda: SharedWeights(geometry_of(module), x, dtype, module.weight, module.bias)
        )
        return weights.convolve(x)


def dtype_of_convolutions(x: Tensor) -> torch.dtype:
    """Return the dtype in which autocast runs a convolution of x; the dtype of x without autocast."""
    return (
        torch.get_autocast_dtype(x.device.type) if under_autocast(x) and x.dtype != torch.float64 else x.dtype
    )


def geometry_of(conv: nn.Conv2d | nn.ConvTranspose2d) -> Geometry:
    """Return the geometry of a convolution whose padding is given in numbers."""
    transposed = isinstance(conv, nn.ConvTranspose2d)
    padding = cast("tuple[int, ...]", conv.padding)
    output_padding = conv.output_padding if transposed else (0, 0)
    return Geometry(conv.stride, padding, conv.dilation, transposed, output_padding, conv.groups)


class Joined(NamedTuple):
    """A weight that `join` makes of parameters, whenever it is read."""

    join: Callable[..., Tensor]
    parts: tuple[Tensor, ...]


class SharedWeights:
    """The weights of a convolution as the steps of a rollout read them.

    Attributes:
        conv: what computes the convolution and its gradients. It holds no tensor of the graph, so that an autograd
            node may hold it.
        laid: the laid-out weight and, if there is one, bias: arguments of every node that uses them. Where the
            convolution reads packed weights alone, zeros that take no memory stand for the weight.
    """

    def __init__(
        self,
        geometry: Geometry,
        x: Tensor,
        dtype: torch.dtype,
        weight: Tensor | Joined,
        bias: Tensor | None = None,
    ) -> None:
        """Lay the weights out for inputs of the size, device and memory format of x, and for convolutions in `dtype`.

        A weight is not kept where it is `Joined`, and only packed copies of it are read.
        """
        join, parts = weight if isinstance(weight, Joined) else (_same, (weight,))
        joined = join(*parts)
        formats = memory_format(x), memory_format(joined)
        layout = torch.channels_last if torch.channels_last in formats else torch.contiguous_format
        active = current_rollout()
        assert active is not None
        source = Joined(join, tuple(t.detach() for t in parts))
        self.conv = SharedConvolution(geometry, dtype, layout, source, active.recomputes)
        self.conv.choose(joined.shape, x)
        active.packed.append(self.conv)
        parameters = (joined,) if bias is None else (joined, bias)
        with _saved_as_they_are():
            self.laid: tuple[Tensor, ...] = _Laid.apply(self.conv, *parameters)

    def convolve(self, x: Tensor) -> Tensor:
        """Return the convolution of x, with gradients where they are enabled."""
        x = x.to(self.conv.dtype)
        if torch.is_grad_enabled():
            return cast(Tensor, _Convolution.apply(self.conv, x, *self.laid))
        return self.conv.run(x, *self.laid)


class SharedConvolution(Convolution):
    """A convolution with shared weights, and what steps have left for the gradients of these."""

    def __init__(
        self,
        geometry: Geometry,
        dtype: torch.dtype,
        layout: torch.memory_format,
        source: Joined,
        recomputes: bool,
    ) -> None:
        super().__init__(geometry)
        self.dtype, self.layout, self.source, self.recomputes = dtype, layout, source, recomputes
        self._versions = [_version(part) for part in source.parts]
        # What steps have left, by backward pass.
        self.left: dict[int, _Left] = {}
        # The last backward pass, and whether it collects.
        self.collected_in = (-1, False)

    def choose(self, shape: torch.Size, x: Tensor) -> None:
        """Choose the way of a convolution by a weight of that shape, for maps of the size of x."""
        self.is_packed = self.is_winograd(x.to(self.dtype), x.new_empty((), dtype=self.dtype).expand(shape))

    def lay_out(self, weight: Tensor) -> Tensor:
        """Return a weight in the dtype and memory format of the rollout."""
        return weight.to(self.dtype).contiguous(memory_format=self.layout)

    def read(self, weight: Tensor) -> Tensor:
        """Return the weight that a laid-out weight stands for, joined anew if it is not kept."""
        if not self.is_packed:
            return weight
        if [_version(part) for part in self.source.parts] != self._versions:
            raise RuntimeError(
                "a weight of a convolution was modified by an inplace operation between forward and backward; "
                "it should be as forward has read it"
            )
        made = self.lay_out(self.source.join(*self.source.parts))
        # The sum carries the gradients by a gradient, under create_graph.
        return made + weight if torch.is_grad_enabled() else made

    def leave(self, ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, needs: Sequence[bool]) -> None:
        """Leave a step's gradient of the convolution and its input x for the gradients of the weights.

        Args:
            ctx: the context of the step's node.
            grad: the gradient of the convolution.
            x: the input of the convolution.
            weight: the laid-out weight, as the node has saved it.
            needs: whether the gradients of weight and bias are needed, as the node knows it.
        """
        if not (any(needs) and _is_collected(ctx, self)):
            return
        left = self.left.setdefault(current_backward(), _Left())
        wanted = needs[0], len(needs) > 1 and needs[1]
        if left.xs and left.xs[0].shape != x.shape:
            self.join(left, weight, wanted)
        left.grads.append(grad)
        left.xs.append(x)
        left.pixels += grad.shape[0] * grad.shape[2] * grad.shape[3]
        where = "winograd" if self.is_winograd(x, weight) else "cpu" if grad.device.type == "cpu" else "gpu"
        where = "recomputed" if self.recomputes else where
        if left.pixels >= _JOINED_PIXELS[where]:
            self.join(left, weight, wanted)

    def join(self, left: _Left, weight: Tensor, needs: tuple[bool, bool]) -> None:
        """Compute the gradients of what was left so far, and add them to the sums, in at least float32."""
        if not left.grads:
            return
        found = self.weight_gradients(left.grads, left.xs, weight, needs)
        left.grads, left.xs, left.pixels = [], [], 0
        for i, part in enumerate(found):
            before = left.sums[i]
            if part is not None and before is None:
                left.sums[i] = part.to(torch.promote_types(part.dtype, torch.float32))
            elif part is not None and before is not None:
                left.sums[i] = before + part if torch.is_grad_enabled() else before.add_(part)


def _is_collected(ctx: Any, owner: Any) -> bool:
    """Return whether the backward pass at hand will collect what the node of `ctx` leaves with `owner`.

    A pass that does not ask for the gradients of the weights does not run the node that collects. The answer is kept
    for the other steps of the pass, because looking through the graph takes as long as a small kernel.
    """
    number = current_backward()
    if owner.collected_in[0] != number:
        will = any(will_run(node) for node, _ in ctx.next_functions if getattr(node, "owner", None) is owner)
        owner.collected_in = number, will
    return bool(owner.collected_in[1])


def _saved_as_they_are() -> Any:
    """Return a context in which no hook packs what autograd saves.

    Activation checkpointing counts what a step saves, and weights are laid out in the first step that reads them alone.
    A tensor is packed without its node: a node that holds its own output by a hook is never freed.
    """
    return torch.autograd.graph.saved_tensors_hooks(Tensor.detach, _same)


def _same(t: Tensor) -> Tensor:
    return t


def _version(t: Tensor) -> int:
    """Return how often t was written in place; a tensor of inference mode does not count it."""
    return 0 if t.is_inference() else version(t)


class _Left:
    """The maps that the steps of one backward pass have left for the gradients of weight and bias."""

    def __init__(self) -> None:
        self.grads: list[Tensor] = []
        self.xs: list[Tensor] = []
        self.pixels = 0
        self.sums: list[Tensor | None] = [None, None]


# The pixels at which what steps have left is joined: where PyTorch joins it by a copy, where Winograd's algorithm reads
# it in place, and on a GPU, whose matrix products are fastest by then. More would keep more gradients in memory. Where
# steps are computed again, they keep less than they leave.
# With 2048 for "cpu" a step of MotionRNN-PredRNN took 1.00 times as long: one core of an AMD EPYC with AVX-512, 64x64
# frames in patches of 4, batch 1, in float32 and in bfloat16.
_JOINED_PIXELS = {"cpu": 1024, "winograd": 8192, "gpu": 65536, "recomputed": 1024}


class _Laid(Function):
    """Weight and bias, in the dtype and memory format of a rollout. Backward runs after that of every step."""

    @staticmethod
    def forward(ctx: Any, conv: SharedConvolution, *parameters: Tensor) -> tuple[Tensor, ...]:
        weight, *bias = (parameter.detach() for parameter in parameters)
        if conv.is_packed:
            conv.pack(weight.to(conv.dtype), transposed=False)
            laid = [weight.new_zeros((), dtype=conv.dtype).expand(weight.shape)]
        else:
            laid = [conv.lay_out(weight)]
        # What is laid out as it was shares the version of its parameter, by which autograd sees changes in place.
        laid += [b.to(conv.dtype).contiguous() for b in bias]
        ctx.owner, ctx.dtypes = conv, [p.dtype for p in parameters]
        # The parameters are saved for their versions.
        ctx.save_for_backward(*conv.source.parts, *bias, laid[0])
        ctx.set_materialize_grads(False)
        return tuple(laid)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        conv: SharedConvolution = ctx.owner
        weight = ctx.saved_tensors[-1]
        left = conv.left.pop(current_backward(), None)
        sums: list[Tensor | None] = [None, None]
        if left is not None:
            needs = ctx.needs_input_grad[1], len(ctx.dtypes) > 1 and ctx.needs_input_grad[2]
            conv.join(left, weight, needs)
            sums = left.sums
        conv.free()
        return None, *_added(sums, given, ctx.dtypes)


class _Convolution(Function):
    """The convolution of one step."""

    @staticmethod
    def forward(ctx: Any, conv: SharedConvolution, x: Tensor, *laid: Tensor) -> Tensor:
        ctx.conv = conv
        ctx.save_for_backward(x, *laid)
        return conv.run(x, *laid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        conv: SharedConvolution = ctx.conv
        (x, *laid), needs = ctx.saved_tensors, ctx.needs_input_grad
        conv.leave(ctx, grad, x, laid[0], needs[2:])
        return None, conv.data_gradient(grad, x, laid[0]) if needs[1] else None, *[None] * len(laid)


def shared_tensors(sums: SummedGradients, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
    """Return parameters as the steps of a rollout read them, contiguous in `dtype`; `sums` adds up their gradients."""
    with _saved_as_they_are():
        return cast("tuple[Tensor, ...]", _Summed.apply(sums, dtype, *parameters))


class SummedGradients:
    """The gradients of parameters that a kernel computes at every step, added up in place, by backward pass."""

    def __init__(self) -> None:
        self.sums: dict[int, list[Tensor]] = {}
        # The last backward pass, and whether it collects.
        self.collected_in = (-1, False)

    def add(self, ctx: Any, grads: list[Tensor], needs: Sequence[bool]) -> None:
        """Add the gradients of one step. `ctx` is the context of its node, which knows what it `needs`."""
        if any(needs) and _is_collected(ctx, self):
            self._add(current_backward(), grads)

    def take(self, number: int) -> list[Tensor] | None:
        """Return the sums of a backward pass, once, or None if no step has added to them."""
        return self.sums.pop(number, None)

    def _add(self, number: int, grads: Sequence[Tensor]) -> None:
        before = self.sums.get(number)
        if before is None:
            self.sums[number] = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in grads]
        else:
            add_in_place(before, grads)


class LeftGradients(SummedGradients):
    """The gradients of parameters that a kernel computes at once from maps that many steps have left."""

    # The pixels at which what steps have left is read: more would keep more maps in memory, and gain nothing.
    _MOST_PIXELS = 512

    def __init__(self, compute: Callable[..., Sequence[Tensor]]) -> None:
        """`compute` returns the gradients from the maps of one step, or of many steps joined along the batch."""
        super().__init__()
        self._compute = compute
        self._left: dict[int, list[tuple[Tensor, ...]]] = {}

    def leave(self, ctx: Any, maps: tuple[Tensor, ...], needs: Sequence[bool]) -> None:
        """Leave the maps (B, C, h, w) of one step. `ctx` is the context of its node, which knows what it `needs`."""
        if not (any(needs) and _is_collected(ctx, self)):
            return
        number, first = current_backward(), maps[0]
        if number in self._left and self._left[number][0][0].shape != first.shape:
            self._join(number)
        left = self._left.setdefault(number, [])
        left.append(maps)
        if len(left) * first.shape[0] * first.shape[2] * first.shape[3] >= self._MOST_PIXELS:
            self._join(number)

    def take(self, number: int) -> list[Tensor] | None:
        self._join(number)
        return super().take(number)

    def _join(self, number: int) -> None:
        if left := self._left.pop(number, None):
            joined = left[0] if len(left) == 1 else map(torch.cat, zip(*left))
            self._add(number, self._compute(*joined))


class _Summed(Function):
    """Parameters in the dtype of a rollout. Backward runs after that of every step."""

    @staticmethod
    def forward(
        ctx: Any, sums: SummedGradients, dtype: torch.dtype, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.owner, ctx.dtypes = sums, [p.dtype for p in parameters]
        ctx.save_for_backward(*parameters)
        ctx.set_materialize_grads(False)
        # Contiguous, since a kernel would copy other weights at every step.
        return tuple(p.detach().to(dtype).contiguous() for p in parameters)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        # The parameters are saved for their versions, which this checks.
        ctx.saved_tensors  # noqa: B018
        sums = ctx.owner.take(current_backward()) or [None] * len(given)
        return None, None, *_added(sums, given, ctx.dtypes)


def _added(
    sums: Sequence[Tensor | None], given: Sequence[Tensor | None], dtypes: Sequence[torch.dtype]
) -> list[Tensor | None]:
    """Return the sums in the parameters' dtypes, with what came in by the graph, as it does under create_graph."""
    both = [g if s is None else s if g is None else s + g for s, g in zip(sums, given)]
    return [None if g is None else g.to(dtype) for g, dtype in zip(both, dtypes)]


def add_in_place(sums: Sequence[Tensor], addends: Sequence[Tensor]) -> None:
    """Add each addend to its sum, in one call."""
    try:
        foreach_add(list(sums), list(addends))
    # PyTorch has no rule for this call where `is_grads_batched` maps a backward pass.
    except RuntimeError:
        for total, addend in zip(sums, addends):
            total.add_(addend)
