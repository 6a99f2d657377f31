"""A rollout that lasts as long as a forward of a user's model, whose parts `convert` has changed.

A `Rollout` belongs to a model of this package, which knows its own loop over time. A user's model is not known. What it
does is watched instead: a part joins if the last forward called it often enough, and every call checks that the weights
are those that were laid out, and that gradients go where they went. A call that does not fit goes as it always did.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..backends.torch_private import has_saved_tensor_hooks, is_traced, tree_leaves, version
from .plain import is_as_its_class
from .rollout import Rollout, SharedWeights, current_rollout, is_composed, resumed

# Laying a weight out takes as long as one to two calls, see `motionrnn_ext.backends.convolution`.
_LEAST_CALLS = 3
_local = threading.local()


def joined_rollout(module: nn.Module, x: object) -> ForwardRollout | None:
    """Return the rollout in force if `module`, which is called with x, may share its weights in it, or None."""
    active = current_rollout()
    return active if isinstance(active, ForwardRollout) and active.takes(module, x) else None


class ForwardRollout(Rollout):
    """The weights that the calls within one forward of a user's model share.

    Attributes:
        calls: how often each part that can share weights was called.
    """

    def __init__(self, calls_before: Counter[nn.Module]) -> None:
        """Take the parts that the forward before this one called often enough."""
        self._plain: set[nn.Module] = set()
        self._shared: dict[Hashable, _Laid] = {}  # type: ignore[assignment]
        self._joins: dict[Hashable, bool] = {}
        self._like: torch.Size | None = None  # the size of the maps at hand
        self.packed = []
        self.noted = None
        self.recomputes = False
        self.calls: Counter[nn.Module] = Counter()
        for module, n in calls_before.items():
            if n >= _LEAST_CALLS and all(map(_is_counted, module.parameters())):
                self._add(module)

    def takes(self, module: nn.Module, x: object) -> bool:
        """Count a call of `module`, and return whether it may share its weights with other calls for maps like x.

        What checkpointing computes again is computed outside of this rollout, and has to be what was saved.
        """
        self.calls[module] += 1
        self._like = x.shape if isinstance(x, Tensor) else None
        return module in self._plain and not has_saved_tensor_hooks() and not is_composed()

    def joins(self, module: nn.Module, dtype: torch.dtype, decide: Callable[[], bool]) -> bool:
        """Return what `decide()` returns for maps of the size at hand, which is called once."""
        key = module, dtype, self._like
        if key not in self._joins:
            self._joins[key] = decide()
        return self._joins[key]

    def share(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make()` returned for this key, whose first entry is a module, and for maps of this size.

        It is made anew if a parameter has changed, or gradients no longer go where they went.
        """
        assert isinstance(key, tuple)
        key = *key, self._like
        laid, stamp = self._shared.get(key), self._stamp(key[0])
        if laid is None or laid.stamp != stamp or laid.used:
            laid = self._shared[key] = _Laid(make(), stamp, _parameters(key[0]), [])
            _note_backward(laid)
        return laid.value

    def _stamp(self, module: nn.Module) -> tuple[object, ...]:
        """Return what differs once a parameter was replaced or written to, or autograd or the stream was switched."""
        stamp: list[object] = [torch.is_grad_enabled()]
        for p in _parameters(module):
            # Writes to a tensor of inference mode are not counted: it is laid out at every call.
            counted = object() if p.is_inference() else version(p)
            stamp += (id(p), counted, p.data_ptr(), p.requires_grad)
            if p.is_cuda:
                stamp.append(torch.cuda.current_stream(p.device))
        return tuple(stamp)


class _Laid(NamedTuple):
    """The value that calls of a module share, as long as its stamp is the same and no backward pass has used it."""

    value: Any
    stamp: tuple[object, ...]
    parameters: list[Tensor]  # held, because a stamp has their ids
    used: list[bool]


def _parameters(module: nn.Module) -> list[Tensor]:
    """Return the parameters of a module and its parts, in less time than `module.parameters()` takes."""
    own: list[Tensor] = [p for p in module._parameters.values() if p is not None]
    for part in module._modules.values():
        if part is not None:
            own += _parameters(part)
    return own


def _is_counted(p: Tensor) -> bool:
    """Return whether a parameter has numbers, and a version that tells of writes to them."""
    return not (p.is_inference() or p.is_meta or is_traced(p))


def _note_backward(laid: _Laid) -> None:
    """Note a backward pass through what was laid out, which frees its graph: later calls need another."""
    of_weights = laid.value.laid if isinstance(laid.value, SharedWeights) else laid.value
    nodes = {leaf.grad_fn for leaf in tree_leaves(of_weights) if isinstance(leaf, Tensor)}
    for node in filter(None, nodes):
        node.register_prehook(lambda _, used=laid.used: used.append(True))


class Steps:
    """The hooks of a user's model that open a `ForwardRollout` before each forward, and end it afterwards.

    The first forward in training and in eval mode is watched: it shares nothing, and shows which parts are called many
    times, and whether weights change in a way that PyTorch does not see (through `.data`). If they do, nothing is ever
    shared. Copies of a model are watched anew.
    """

    def __init__(self) -> None:
        self.calls: dict[bool, Counter[nn.Module]] = {}  # by training mode
        self.is_off = False

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.calls, self.is_off = {}, False

    def register(self, module: nn.Module) -> None:
        """Add the hooks to a model."""
        module.register_forward_pre_hook(self.open, prepend=True)
        module.register_forward_hook(self.close, always_call=True)

    def open(self, module: nn.Module, args: Any) -> None:
        """Open a rollout, unless a model around this one has opened one, or the parts have to be called as such."""
        if self.is_off or is_composed() or has_saved_tensor_hooks():
            return
        opened = _opened()
        # An interrupt of the last forward has left it open.
        while any(each.module is module for each in opened):
            opened.pop().context.__exit__(None, None, None)
        if isinstance(current_rollout(), ForwardRollout):
            return
        calls = self.calls.get(module.training)
        active = ForwardRollout(calls or Counter())
        copies = _copies(module) if calls is None else []
        opened.append(_Opened(module, active, resumed(active), copies))
        opened[-1].context.__enter__()

    def close(self, module: nn.Module, args: Any, output: Any) -> None:
        """End the rollout that `open` has opened for this module, if it has."""
        opened = _opened()
        if not (opened and opened[-1].module is module):
            return
        _, active, context, copies = opened.pop()
        context.__exit__(None, None, None)
        active.end()
        self.calls[module.training] = active.calls
        if any(_has_changed_unseen(*copy) for copy in copies):
            self.is_off = True
            warnings.warn(
                f"the weights of {type(module).__name__} change within its forward, written to by .data; its layers "
                "are called as before, and gain nothing",
                stacklevel=2,
            )


def steps_of(module: nn.Module) -> list[int]:
    """Return the ids of the hooks of `module` that belong to a `Steps`."""
    hooks = (*module._forward_pre_hooks.items(), *module._forward_hooks.items())
    return [key for key, hook in hooks if isinstance(getattr(hook, "__self__", None), Steps)]


def remove_steps(module: nn.Module) -> None:
    """Remove the hooks of a `Steps` from a module, if it has them."""
    for key in steps_of(module):
        for hooks in (module._forward_pre_hooks, module._forward_hooks, module._forward_hooks_always_called):
            hooks.pop(key, None)  # type: ignore[call-overload]


class _Opened(NamedTuple):
    module: nn.Module
    rollout: ForwardRollout
    context: AbstractContextManager[None]
    copies: list[tuple[Tensor, int, Tensor]]


def _opened() -> list[_Opened]:
    """Return the rollouts that are open in this thread, the outermost first."""
    if not hasattr(_local, "opened"):
        _local.opened = []
    return _local.opened  # type: ignore[no-any-return]


def _copies(module: nn.Module) -> list[tuple[Tensor, int, Tensor]]:
    """Return the parameters of a model with their versions and copies."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return []
    parts = (part for part in module.modules() if is_as_its_class(part))
    own = (p for part in parts for p in part._parameters.values() if p is not None)
    return [(p, version(p), p.detach().clone()) for p in own if _is_counted(p)]


def _has_changed_unseen(parameter: Tensor, version_before: int, before: Tensor) -> bool:
    """Return whether the numbers of a parameter have changed, and its version has not."""
    if version(parameter) != version_before or parameter.shape != before.shape:
        return False
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    # Bits are compared, as nan differs from itself.
    bits = (t.detach().view(integers[t.element_size()]) for t in (parameter, before))
    return parameter.dtype == before.dtype and parameter.device == before.device and not torch.equal(*bits)
