"""Divide a model's training step into parts: ranges around its modules, and the time and FLOPs within them."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from motionrnn_ext import MotionGRU, MotionRNN
from motionrnn_ext.layers.rollout import composed
from motionrnn_ext.models import motion_rnn

# The names of the outer ranges.
STEP, FORWARD, BACKWARD = "training step", "forward", "backward"
CELLS, PATCHES, PROJECTIONS = "predictor cells", "patches", "frame projections"
ENCODE, MOTION, DECODE, BLEND = "MotionGRU encode", "MotionGRU cell", "MotionGRU decode", "MotionGRU gate"
# Initial states, packed weights, stacked predictions, the loss; on a GPU, also the time that no kernel takes.
REST, IDLE = "the rest", "GPU idle"
PARTS = (CELLS, ENCODE, MOTION, DECODE, BLEND, PROJECTIONS, PATCHES, REST)
MOTION_GRU = (ENCODE, MOTION, DECODE, BLEND)

_ENGINE = "autograd::engine::evaluate_function: "
Ranged = Callable[[str], AbstractContextManager[Any]]
Times = dict[tuple[str, str], float]  # microseconds by part and by FORWARD or BACKWARD


def modules_of_parts(model: MotionRNN) -> Iterator[tuple[nn.Module, str, str]]:
    """Yield a module, its part, and the name of its range."""
    interfaces = [m for m in model.interfaces if isinstance(m, MotionGRU)]
    layered: dict[str, Sequence[nn.Module]] = {CELLS: list(model.cells)}
    layered[ENCODE] = [i.encoder for i in interfaces]
    layered[MOTION] = [i.cell for i in interfaces]
    layered[DECODE] = [i.decoder for i in interfaces]
    layered[BLEND] = interfaces  # contains the three above; its own time is that of the gate
    for part, modules in layered.items():
        for level, module in enumerate(modules):
            yield module, part, f"{part} {level + 1}"
    for projection in (model.conv_first, model.conv_last):
        if projection is not None:
            yield projection, PROJECTIONS, PROJECTIONS


@contextlib.contextmanager
def ranges(model: MotionRNN, ranged: Ranged) -> Iterator[None]:
    """Put ranges around the parts of the model's forward pass for as long as this context lasts.

    Every module is called, as the cells' `forward` is written: the nodes of a rollout have no parts.
    """
    opened: list[AbstractContextManager[Any]] = []

    def opens(name: str) -> Callable[..., None]:
        def hook(*unused: Any) -> None:
            opened.append(ranged(name))
            opened[-1].__enter__()

        return hook

    def closes(*unused: Any) -> None:
        opened.pop().__exit__(None, None, None)

    def folding(name: str) -> Callable[..., Tensor]:
        fold = getattr(motion_rnn, name)

        def folded(*arguments: Any) -> Tensor:
            with ranged(PATCHES):
                return fold(*arguments)

        return folded

    with contextlib.ExitStack() as stack:
        stack.enter_context(composed())
        for module, _, name in modules_of_parts(model):
            stack.callback(module.register_forward_pre_hook(opens(name)).remove)
            stack.callback(module.register_forward_hook(closes, always_call=True).remove)
        for name in ("fold_patches", "unfold_patches"):
            stack.enter_context(mock.patch.object(motion_rnn, name, folding(name)))
        yield


# ---- Time


def times_by_part(events: Iterable[Any], on_gpu: bool = False) -> Times:
    """Sum the events of one profiled step (torch.profiler's `events()`), whose ranges have the names above.

    On a CPU an event's time is its own, without its children's; together they are the step's. On a GPU it is that of
    the kernels that it launched, and the rest of the step is IDLE.
    """
    events = [e for e in events if e.device_type == DeviceType.CPU and not e.is_async]
    step = next(e for e in events if e.name == STEP)
    events = [e for e in events if _is_within(e, step)]
    # An op notes the sequence number that its node would get; the last op with a number made the node.
    ops = [e for e in events if e.sequence_nr >= 0 and e.scope == 0 and not e.name.startswith(_ENGINE)]
    part_of_node = {e.sequence_nr: _part_around(e) for e in sorted(ops, key=lambda e: e.time_range.start)}
    times: Times = defaultdict(float)
    for event in events:
        node = _ancestor(event, lambda e: e.name.startswith(_ENGINE))
        is_backward = node is not None or _ancestor(event, lambda e: e.name == BACKWARD) is not None
        part = part_of_node.get(node.sequence_nr) if node is not None else _part_around(event)
        own = event.self_cpu_time_total if not on_gpu else _kernel_time(event)
        times[part or REST, BACKWARD if is_backward else FORWARD] += own
    if on_gpu:
        times[IDLE, FORWARD] = max(step.time_range.elapsed_us() - sum(times.values()), 0.0)
    return dict(times)


def _is_within(event: Any, step: Any) -> bool:
    times = event.time_range
    return step.time_range.start <= times.start and times.end <= step.time_range.end


def _kernel_time(event: Any) -> float:
    """Return the time of the event's kernels; a range lists those of its ops again, and counts as 0."""
    is_range = event.name in (STEP, FORWARD, BACKWARD) or _part_of(event.name) is not None
    return 0.0 if is_range else sum(kernel.duration for kernel in event.kernels)


def _part_of(name: str) -> str | None:
    """Return the part that a range is named after, with or without a layer's number."""
    part = name.rstrip("0123456789").rstrip()
    return part if part in PARTS else None


def _part_around(event: Any) -> str | None:
    found = _ancestor(event, lambda e: _part_of(e.name) is not None)
    return _part_of(found.name) if found is not None else None


def _ancestor(event: Any, wanted: Callable[[Any], bool]) -> Any:
    """Return the innermost wanted event around this one, or the event itself, or None."""
    while event is not None and not wanted(event):
        event = event.cpu_parent
    return event


# ---- FLOPs


def flops_by_part(model: MotionRNN, forward: Callable[[], object]) -> dict[str, int]:
    """Return the FLOPs of convolutions and matrix products in one forward pass, counted by FlopCounterMode.

    Backward is left out: there FlopCounterMode counts some FLOPs for modules that they do not belong to.
    """
    with composed(), FlopCounterMode(display=False) as counter:
        forward()
    names = {module: name for name, module in model.named_modules()}
    counts = counter.get_flop_counts()
    flops = dict.fromkeys(PARTS, 0)
    for module, part, _ in modules_of_parts(model):
        flops[part] += sum(counts.get(f"{type(model).__name__}.{names[module]}", {}).values())
    flops[BLEND] -= flops[ENCODE] + flops[MOTION] + flops[DECODE]  # these are nested in it
    flops[REST] = counter.get_total_flops() - sum(flops.values())
    return flops
