"""What the events of a profiled training step add up to: by kind of work, by part of the model, by op.

On a CPU an event's time is its own, its children's taken off; all of them together are the step's. On a GPU it is that
of the kernels it launched, and what is left of the step is the GPU's idle time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.autograd import DeviceType

STEP, FORWARD, BACKWARD = "training step", "forward", "backward"  # the names of the outer ranges
CELLS, PATCHES, PROJECTIONS = "predictor cells", "patches", "frame projections"
ENCODE, MOTION, DECODE, BLEND = "MotionGRU encode", "MotionGRU cell", "MotionGRU decode", "MotionGRU gate"
REST = "the rest"  # initial states, packed weights, stacked predictions, the loss
PARTS = (CELLS, ENCODE, MOTION, DECODE, BLEND, PROJECTIONS, PATCHES, REST)
MOTION_GRU = (ENCODE, MOTION, DECODE, BLEND)

CONVOLUTIONS = "convolutions, matrix products"
WARP = "warp"
GATES = "fused gates, their convolutions inside"
FUSED = "other fused kernels"
ELEMENTWISE = "elementwise, reductions"
COPIES = "copies, concatenation, allocation"
AUTOGRAD = "autograd"
CALLS = "op calls: views, dispatch"
PYTHON = "Python between the ops"
IDLE = "GPU idle"
KINDS = (CONVOLUTIONS, WARP, GATES, FUSED, ELEMENTWISE, COPIES, AUTOGRAD, CALLS, PYTHON, IDLE)

_OURS = "motionrnn_ext::"
_ENGINE = "autograd::engine::evaluate_function: "
# the Function around a kernel, in whose time PyTorch's profiler puts the kernel's; its backward's name ends otherwise
_FUNCTION = re.compile(r"GeneratedBackwardFor_motionrnn_ext_(\w+)_default")
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "matmul_backward", "addmm_", "baddbmm_"}
_COPYING = {"copy_", "clone", "cat", "_cat", "stack", "_to_copy", "resize_", "resize_as_", "fill_", "zero_", "set_",
            "index", "index_select", "constant_pad_nd", "slice_backward", "select_backward"}  # fmt: skip
_ALLOCATING = ("empty", "new_", "zeros", "ones", "full", "scalar_tensor")


@dataclass
class Spent:
    """An event's own time."""

    name: str  # a range's, an op's
    kind: str
    part: str
    way: str  # FORWARD or BACKWARD
    microseconds: float
    calls: int = 1  # 0: inside one that is counted

    @property
    def of_range(self) -> bool:
        return is_range(self.name)


@cache
def kind(name: str) -> str:
    """What work an event of this name does by itself: an op of ATen, one of ours, a node of autograd, a range."""
    if name == BACKWARD or name.startswith(_ENGINE):
        return AUTOGRAD
    name = _op(name)
    if name.startswith(_OURS):
        return WARP if "warp" in name else GATES if "motion_gates" in name else FUSED
    if name.startswith("aten::"):
        return _kind_of_aten(name.removeprefix("aten::"))
    if "mkldnn" in name or "cudnn" in name:
        return CONVOLUTIONS
    if name == IDLE:
        return IDLE
    if name.endswith(("Backward", "AccumulateGrad")) or re.search(r"Backward\d+$", name):
        return AUTOGRAD
    return PYTHON if is_range(name) else CALLS


def _op(name: str) -> str:
    function = _FUNCTION.fullmatch(name)
    return name if function is None else _OURS + function[1]


def _kind_of_aten(op: str) -> str:
    """By its schema, where the name does not say it: a view or an op composed of others has no work of its own."""
    if "conv" in op or op in _PRODUCTS:
        return CONVOLUTIONS
    if op in _COPYING or op.startswith(_ALLOCATING):
        return COPIES
    packet = getattr(torch.ops.aten, op, None)
    overloads = list(_overloads(packet)) if packet is not None else []
    if not overloads or any(overload.is_view for overload in overloads):
        return CALLS
    composed = "CompositeImplicitAutograd"
    if any(torch._C._dispatch_has_kernel_for_dispatch_key(o.name(), composed) for o in overloads):
        return CALLS
    returns_tensors = any("Tensor" in str(r.type) for o in overloads for r in o._schema.returns)
    return ELEMENTWISE if returns_tensors else CALLS


def _overloads(packet: Any) -> Iterator[Any]:
    for name in packet.overloads():
        overload = getattr(packet, name)
        if torch._C._dispatch_has_kernel(overload.name()):  # others are TorchScript's alone
            yield overload


def is_range(name: str) -> bool:
    return name in (STEP, FORWARD, BACKWARD) or part_of(name) is not None


def part_of(name: str) -> str | None:
    """The part that a range is of: its name, and the layer's number behind it."""
    part = name.rstrip("0123456789").rstrip()
    return part if part in PARTS else None


def spent(events: Iterable[Any], on_gpu: bool = False) -> list[Spent]:
    """Of the events of one profiled step (torch.profiler's `events()`), whose ranges have the names above."""
    events = [e for e in events if e.device_type == DeviceType.CPU and not e.is_async]
    step = next(e for e in events if e.name == STEP)
    events = [e for e in events if _within(e, step)]
    part_of_node = _parts_of_nodes(events)
    found = []
    for event in events:
        node = _ancestor(event, lambda e: e.name.startswith(_ENGINE))
        backward = node is not None or _ancestor(event, lambda e: e.name == BACKWARD) is not None
        part = part_of_node.get(node.sequence_nr) if node is not None else _range(event)
        own = sum(k.duration for k in event.kernels) if on_gpu else event.self_cpu_time_total
        if on_gpu and is_range(event.name):
            own = 0.0  # a range has no kernels of its own
        op, way = _op(event.name), BACKWARD if backward else FORWARD
        found.append(Spent(op, kind(op), part or REST, way, own, calls=int(op == event.name)))
    if on_gpu:
        idle = step.time_range.elapsed_us() - sum(s.microseconds for s in found)
        found.append(Spent(IDLE, IDLE, REST, FORWARD, max(idle, 0.0)))
    return found


def _within(event: Any, step: Any) -> bool:
    times = event.time_range
    return step.time_range.start <= times.start and times.end <= step.time_range.end


def _parts_of_nodes(events: Iterable[Any]) -> dict[int, str | None]:
    """By a node's sequence number. An op notes the number that its node would get; the last with a number made it."""
    forward = [e for e in events if e.sequence_nr >= 0 and e.scope == 0 and not e.name.startswith(_ENGINE)]
    return {e.sequence_nr: _range(e) for e in sorted(forward, key=lambda e: e.time_range.start)}


def _range(event: Any) -> str | None:
    found = _ancestor(event, lambda e: part_of(e.name) is not None)
    return part_of(found.name) if found is not None else None


def _ancestor(event: Any, wanted: Any) -> Any:
    """The innermost event around this one, itself included, that is wanted."""
    while event is not None and not wanted(event):
        event = event.cpu_parent
    return event


def totals(times: Iterable[Spent], *keys: str) -> dict[Any, float]:
    """Microseconds by the named fields; by one field, its values are the keys."""
    sums: dict[Any, float] = defaultdict(float)
    for time in times:
        key = tuple(getattr(time, name) for name in keys)
        sums[key if len(keys) > 1 else key[0]] += time.microseconds
    return dict(sums)
