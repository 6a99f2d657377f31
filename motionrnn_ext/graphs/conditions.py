"""The conditions of a graph: what its numbers and memory depend on, and which models it cannot hold.

A graph holds the kernels that ran when it was recorded, with their numbers and the addresses of their tensors. Whatever
chose these kernels is a part of the graph's key. Where a weight has moved, the graph is stale.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn

from .. import backends
from ..backends.torch_private import is_differentiating_forward, transforms, tree_leaves
from ..layers.cells import RecurrentCell
from ..models import MotionRNN

# Tests without a GPU replay on the CPU.
DEVICE = "cuda"
_CONTENTS = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def check_model(name: str, model: object) -> torch.device:
    """Return the device of a model's weights. `name` is the function that a message names.

    Raises:
        TypeError: the model is no `MotionRNN`.
        ValueError: a graph cannot hold the model: it has hooks, is not on one GPU, or keeps a state between calls.
    """
    if not isinstance(model, MotionRNN):
        raise TypeError(
            f"{name}: model is a {type(model).__name__}; it should be a MotionRNN: torch.compile makes graphs of its "
            "own, and in DistributedDataParallel the gradients of a graph would not be joined"
        )
    devices = {p.device for p in model.parameters()}
    if len(devices) != 1 or next(iter(devices)).type != DEVICE:
        found = " and ".join(sorted(map(str, devices)))
        raise ValueError(f"{name}: the weights are on {found}; they should be on one GPU: model.cuda()")
    hooked = [path or "model" for path, part in model.named_modules() if _has_hooks(part)]
    hooked += [path for path, p in model.named_parameters() if p._backward_hooks]
    if hooked:
        raise ValueError(
            f"{name}: {hooked[0]} has hooks; it should have none, because a graph does not call them: remove them, or "
            "call the model itself"
        )
    if any(isinstance(part, RecurrentCell) and part.keeps_state and part.compat for part in model.modules()):
        raise ValueError(
            f"{name}: the cells of {model.predictor!r} with compat='openstl' keep a state from call to call, which a "
            "graph would not renew; compat should be None, or call the model itself"
        )
    return next(iter(devices))


def settings() -> tuple[Any, ...]:
    """Return every setting of PyTorch and of this package that chooses kernels."""
    flags: Any = torch.backends
    deterministic: Any = torch.utils.deterministic
    cudnn = flags.cudnn
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(DEVICE),
        torch.get_autocast_dtype(DEVICE),
        backends.current_backend(),
        torch.are_deterministic_algorithms_enabled(),
        deterministic.fill_uninitialized_memory,
        (cudnn.enabled, cudnn.deterministic, cudnn.benchmark),
        (flags.fp32_precision, cudnn.conv.fp32_precision, flags.cuda.matmul.fp32_precision),
    )


class Watch:
    """Everything that a graph has read of a model: the memory of tensors, the numbers, parts and hooks of modules.

    It is looked at before every replay, hence compared object by object. It also keeps all of it alive, so that no new
    tensor has the address of an old one.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parts = list(model.modules())
        self.parameters = list(model.parameters())
        self.dicts = [getattr(part, name) for part in self.parts for name in (*_CONTENTS, *_HOOKS)]
        self.numbers = [(vars(part), _numbers(part)) for part in self.parts]
        self.objects = self._objects()
        self.tensors = [t for t in self.objects if isinstance(t, Tensor)]
        self.memory = self._memory()

    def is_stale(self) -> bool:
        """Return whether something has been replaced. Values of tensors that change in place do not count."""
        now = self._objects()
        is_same = len(now) == len(self.objects) and all(map(operator.is_, now, self.objects))
        return not is_same or self._memory() != self.memory

    def modes(self) -> tuple[Any, ...]:
        """Return the modes of the model that may change back: training, and which parameters need gradients."""
        return tuple(part.training for part in self.parts), tuple(p.requires_grad for p in self.parameters)

    def _objects(self) -> list[Any]:
        found: list[Any] = []
        for values in self.dicts:
            found += values.values()
        for own, names in self.numbers:
            found += [own.get(name) for name in names]
        return found

    def _memory(self) -> list[tuple[Any, ...]]:
        return [(t.data_ptr(), t.stride(), t.dtype, bool(t._backward_hooks)) for t in self.tensors]


def _numbers(part: nn.Module) -> list[str]:
    """Return the names of the public numbers, and of the tensors that are neither parameters nor buffers."""
    kinds, own = (int, float, bool, str, type(None)), vars(part)
    public = [n for n, v in own.items() if isinstance(v, kinds) and n[0] != "_" and n != "training"]
    return public + [n for n, v in own.items() if isinstance(v, Tensor)]


def _has_hooks(part: nn.Module) -> bool:
    return any(getattr(part, hooks) for hooks in _HOOKS)


def structure(value: Any) -> tuple[Any, ...]:
    """Return the leaves of nested tuples and lists; a tensor is given by shape, dtype, device and requires_grad."""
    return tuple(
        (t.shape, t.dtype, t.device, t.requires_grad) if isinstance(t, Tensor) else t
        for t in tree_leaves(value)
    )


def can_replay(*tensors: Any) -> bool:
    """Return whether these arguments can be copied into a graph, and nothing else traces or records the call."""
    return (
        not torch.compiler.is_compiling()
        and all(type(t) in (Tensor, nn.Parameter) and t.device.type == DEVICE for t in tensors)
        and not (transforms() or is_differentiating_forward())
        and not torch.cuda.is_current_stream_capturing()
    )
