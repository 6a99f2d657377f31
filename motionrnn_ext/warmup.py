"""A trial run of a module, after which everything that happens only on the first call has happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .backends.torch_private import tree_leaves, tree_map, uncompiled, version

# The number of calls, as in torch.cuda.make_graphed_callables: the first one chooses algorithms, later ones use them.
_PASSES = 3


def warmup(module: nn.Module | Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """Call `module(*args, **kwargs)`, with its backward where gradients are enabled, and leave everything as it was.

    The call loads libraries, compiles Triton's kernels (and tunes them, with MOTIONRNN_EXT_AUTOTUNE=1), chooses the
    algorithms of convolutions, and lets torch.compile compile. Use it before a CUDA graph is captured, in which none of
    that may happen, or before a clock starts.

        model = MotionRNN("predrnn", in_channels=1, hidden_channels=(64,) * 4, patch_size=4).cuda()
        motionrnn_ext.warmup(model, frames, 10)
        with torch.no_grad():
            motionrnn_ext.warmup(model.step, frame)
        with torch.cuda.graph(graph), torch.no_grad():
            prediction, state = model.step(frame)

    The module runs three times, on a GPU on a side stream, as CUDA graphs need it, and `warmup` waits for the end. Make
    the call with the shapes, dtypes, backend, autocast and training mode of the real one. Gradients, parameters,
    buffers, tensors that modules keep, training modes and the state of random generators are the same afterwards as
    before, also after an error. Arguments are copied, and gradients do not go beyond them.

    Args:
        module: a module, or a method of one, such as `model.step`.
        args, kwargs: the arguments of the call; tensors may be in tuples, lists and dicts.

    Raises:
        TypeError: `module` is neither a module nor a method of one.
        RuntimeError: a CUDA graph is being captured. An error of the call itself is raised as it is.
    """
    method = uncompiled(module)
    owner = module if isinstance(module, nn.Module) else getattr(method, "__self__", None)
    if not isinstance(owner, nn.Module):
        raise TypeError(
            f"warmup: module is {module!r}; it should be a torch.nn.Module or a method of one, such as model.step"
        )
    leaves = [*owner.parameters(), *owner.buffers(), *tree_leaves((args, kwargs))]
    devices = sorted({t.device.index for t in leaves if isinstance(t, Tensor) and t.device.type == "cuda"})
    if devices and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("warmup: a CUDA graph is being captured; warmup should come before")
    with torch.random.fork_rng(devices), _unchanged(owner), _side_streams(devices):
        for _ in range(_PASSES):
            own_args, own_kwargs = tree_map(_copy, (args, kwargs))
            outputs = tree_leaves(module(*own_args, **own_kwargs))
            outputs = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
            if outputs and torch.is_grad_enabled():
                torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])


def _copy(value: Any) -> Any:
    """Return a leaf with the values and strides of a tensor, or a generator in the same state."""
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


@contextmanager
def _unchanged(owner: nn.Module) -> Iterator[None]:
    """Put back everything that a call may change in a module."""
    parameters = list(owner.parameters())
    values = [(t, version(t), t.detach().clone()) for t in parameters if not t.is_inference()]
    statistics = [(t, t.detach().clone()) for t in owner.buffers() if not t.is_inference()]
    kept = [(part, part.training, _tensors_of(part), dict(part._buffers)) for part in owner.modules()]
    # An attribute that is no Parameter may gather a gradient, too, such as a tensor that was given as alpha.
    attributes_of_all = [t for _, _, attributes, _ in kept for t in attributes.values() if t is not None]
    leaves = [t for t in (*parameters, *attributes_of_all) if t.is_leaf]
    gradients = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, gradient in zip(leaves, gradients):
            leaf.grad = gradient
        for part, training, attributes, buffers in kept:
            for name in _tensors_of(part).keys() - attributes.keys():
                del vars(part)[name]
            vars(part).update(attributes)
            part._buffers.clear()
            part._buffers.update(buffers)
            part.training = training
        # A needless copy would spoil a graph that still waits for its backward, so that only tensors that have changed
        # are written. Batch norm writes its statistics without a new version, so that they are compared.
        changed: list[tuple[Tensor, Tensor]]
        changed = [(t, value) for t, before, value in values if version(t) != before]
        changed += [(t, value) for t, value in statistics if not t.equal(value)]
        with torch.no_grad():
            for t, value in changed:
                t.copy_(value)
        # Autocast may have kept casts of weights without gradient, or casts that a side stream made.
        torch.clear_autocast_cache()


def _tensors_of(part: nn.Module) -> dict[str, Tensor | None]:
    """Return the attributes that are neither parameters nor buffers, such as a state kept from one call to the next."""
    return {name: value for name, value in vars(part).items() if value is None or isinstance(value, Tensor)}


@contextmanager
def _side_streams(devices: list[int]) -> Iterator[None]:
    """Run the block on a new stream of each device, after everything that is queued there, and wait for its end."""
    if not devices:
        yield
        return
    before = torch.cuda.current_device()
    try:
        with ExitStack() as stack:
            for device in devices:
                torch.cuda.synchronize(device)
                stack.enter_context(torch.cuda.stream(torch.cuda.Stream(device)))
            # A stream makes its device the current one.
            stack.enter_context(torch.cuda.device(before))
            yield
    finally:
        for device in devices:
            torch.cuda.synchronize(device)
        # Memory of the side stream could not be used by any other stream.
        torch.cuda.empty_cache()
