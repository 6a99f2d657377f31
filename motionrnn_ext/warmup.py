"""Run a module so that whatever happens only once has happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_PASSES = 3  # as torch.cuda.make_graphed_callables: the first chooses algorithms, later ones use them


def warmup(module: nn.Module | Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """Call `module(*args, **kwargs)`, with its backward where gradients are enabled, and leave everything as it was.

    Libraries are loaded then, Triton's kernels compiled (and tuned, with MOTIONRNN_EXT_AUTOTUNE=1), convolutions'
    algorithms chosen, and what torch.compile compiles is compiled: before a CUDA graph is captured, in which none
    of that may happen, or before a clock starts.

        model = MotionRNN("predrnn", in_channels=1, hidden_channels=(64,) * 4, patch_size=4).cuda()
        motionrnn_ext.warmup(model, frames, 10)
        with torch.no_grad():
            motionrnn_ext.warmup(model.step, frame)
        with torch.cuda.graph(graph), torch.no_grad():
            prediction, state = model.step(frame)

    It runs three times, on a GPU on a side stream, as CUDA graphs ask for, and waits for the end. Shapes, dtypes,
    backend, autocast and training mode are those of the real call. Gradients, parameters, buffers, tensors that modules
    keep, training modes and the state of random generators are afterwards as before, also after an error;
    arguments are copied, and gradients do not go beyond them.

    Args:
        module: a module, or a method of one, such as `model.step`.
        args, kwargs: what it is called with; tensors may be in tuples, lists and dicts.

    Raises:
        TypeError: neither a module nor a method of one.
        RuntimeError: a CUDA graph is being captured. Besides, whatever the call raises.
    """
    method = getattr(module, "_torchdynamo_orig_callable", module)  # of torch.compile(model.step)
    owner = module if isinstance(module, nn.Module) else getattr(method, "__self__", None)
    if not isinstance(owner, nn.Module):
        raise TypeError(
            f"warmup: module is {module!r}; it should be a torch.nn.Module or a method of one, such as model.step"
        )
    leaves = [*owner.parameters(), *owner.buffers(), *pytree.tree_leaves((args, kwargs))]
    devices = sorted({t.device.index for t in leaves if isinstance(t, Tensor) and t.device.type == "cuda"})
    if devices and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("warmup: a CUDA graph is being captured; warmup should come before")
    with torch.random.fork_rng(devices), _unchanged(owner), _side_streams(devices):
        for _ in range(_PASSES):
            own_args, own_kwargs = pytree.tree_map(_copy, (args, kwargs))
            outputs = pytree.tree_leaves(module(*own_args, **own_kwargs))
            outputs = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
            if outputs and torch.is_grad_enabled():
                torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])


def _copy(value: Any) -> Any:
    """A leaf with the values and strides of a tensor; a generator in the same state."""
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


@contextmanager
def _unchanged(owner: nn.Module) -> Iterator[None]:
    """Puts back what a call may change in a module."""
    parameters = list(owner.parameters())
    values = [(t, t._version, t.detach().clone()) for t in parameters if not t.is_inference()]
    statistics = [(t, t.detach().clone()) for t in owner.buffers() if not t.is_inference()]
    gradients = [p.grad for p in parameters]
    kept = [(part, part.training, _tensors_of(part), dict(part._buffers)) for part in owner.modules()]
    for p in parameters:
        p.grad = None
    try:
        yield
    finally:
        for p, gradient in zip(parameters, gradients):
            p.grad = gradient
        for part, training, attributes, buffers in kept:
            for name in _tensors_of(part).keys() - attributes.keys():
                del vars(part)[name]
            vars(part).update(attributes)
            part._buffers.clear()
            part._buffers.update(buffers)
            part.training = training
        # A copy for nothing would spoil a graph that still waits for its backward. Batch norm raises no version.
        changed: list[tuple[Tensor, Tensor]]
        changed = [(t, value) for t, version, value in values if t._version != version]
        changed += [(t, value) for t, value in statistics if not t.equal(value)]
        with torch.no_grad():
            for t, value in changed:
                t.copy_(value)
        torch.clear_autocast_cache()  # casts of weights that know no gradient, or that a side stream made


def _tensors_of(part: nn.Module) -> dict[str, Tensor | None]:
    """Attributes that are no parameters or buffers, such as a state that is kept from one call to the next."""
    return {name: value for name, value in vars(part).items() if value is None or isinstance(value, Tensor)}


@contextmanager
def _side_streams(devices: list[int]) -> Iterator[None]:
    """A new stream of each device, after all that is queued there; all that it does is done at the end."""
    if not devices:
        yield
        return
    before = torch.cuda.current_device()
    try:
        with ExitStack() as stack:
            for device in devices:
                torch.cuda.synchronize(device)
                stack.enter_context(torch.cuda.stream(torch.cuda.Stream(device)))
            stack.enter_context(torch.cuda.device(before))  # a stream makes its device the current one
            yield
    finally:
        for device in devices:
            torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # memory of the side stream, which no other could use
