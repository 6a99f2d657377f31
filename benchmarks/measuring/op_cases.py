"""What a row measures: an op or the cell on maps of one shape; its inputs, and its results in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from motionrnn_ext import MotionGRUCell, backend
from motionrnn_ext.backends import reference

from ..cases import MapShape
from .roofline import K, M, work

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
SETS = (2, 16)

# Inputs in the op's order: channels as (of C, of taps), "f" for features or "s" for motion state (float32).
INPUTS: dict[str, dict[str, tuple[int, int, str]]] = {
    "motion_reset": {"reset_logits": (0, 2, "f"), "offset": (0, 2, "s")},
    "motion_update": {"update_logits": (0, 2, "f"), "candidate_logits": (0, 2, "f"),
                      "offset": (0, 2, "s"), "trend": (0, 2, "s")},
    "memory_update": {"gates_x": (3, 0, "f"), "gates_h": (3, 0, "f"), "memory": (1, 0, "f")},
    "highway_output": {"output_logits": (1, 0, "f"), "content": (1, 0, "f"), "highway": (1, 0, "f")},
    "gated_blend": {"gate_logits": (1, 0, "f"), "a": (1, 0, "f"), "b": (1, 0, "f")},
    "offset_warp": {"x": (1, 0, "f"), "offset": (0, 2, "s"), "mask_logits": (0, 1, "f")},
    "motion_warp": {"x": (1, 0, "f"), "update_logits": (0, 2, "f"), "candidate_logits": (0, 2, "f"),
                    "offset": (0, 2, "s"), "trend": (0, 2, "s"), "mask_logits": (0, 1, "f")},
    "motion_gates": {"x": (1, 0, "f"), "offset": (0, 2, "s"), "trend": (0, 2, "s")},
    "MotionGRUCell": {"x": (1, 0, "f"), "offset": (0, 2, "s"), "trend": (0, 2, "s")},
}  # fmt: skip
NUMBERS = {"motion_update": (0.5,), "memory_update": (1.0,), "motion_warp": (0.5,), "motion_gates": (0.5,)}


def weight_shapes(op: str, channels: int) -> list[tuple[int, ...]]:
    """Of what follows the maps."""
    if op in ("offset_warp", "motion_warp"):
        return [(channels, channels, 3, 3)]
    if op == "motion_gates":
        return [(3 * M + K, channels, 3, 3), (3 * M + K,), (2 * M, M, 3, 3), (M, M, 3, 3)]
    return []


@dataclass(frozen=True)
class Case:
    op: str
    shape: MapShape
    dtype: str  # of the features: "float32", "bfloat16", "float16"
    direction: str
    offset_scale: float = 1.0  # standard deviation of the motion, in pixels

    def identity(self) -> dict[str, Any]:
        """What the rows say of their case."""
        level = "cell" if self.op == "MotionGRUCell" else "op"
        return {"level": level, "op": self.op, "setting": None, "shape": str(self.shape), "dtype": self.dtype,
                "direction": self.direction, "offset_scale": self.offset_scale}  # fmt: skip

    def __str__(self) -> str:
        scale = "" if self.offset_scale == 1 else f" offsets x{self.offset_scale:g}"
        return f"{self.op} {self.direction} {self.shape} {self.dtype}{scale}"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def tolerance(self) -> float:
        """Of the norm of a result's difference from float64, relative to its norm.

        Where the motion is computed, its rounding moves some taps across an integer, where the gradient of a bilinear
        sample jumps; on the noise sampled here each such jump is as large as the gradient itself.
        """
        exact = {"float32": 5e-5, "bfloat16": 2e-2, "float16": 3e-3}[self.dtype]
        if self.op == "motion_warp":
            return max(exact, 3e-3)
        if self.op == "MotionGRUCell":
            return {"float32": 2e-2, "bfloat16": 0.15, "float16": 0.06}[self.dtype]
        return exact

    def sets(self, l2_bytes: int) -> int:
        """How many input sets make one pass over them too large for the L2 cache, within bounds."""
        bytes_of_one = work(self.op, self.shape, self.dtype, self.direction).bytes
        return min(max(2 * l2_bytes // bytes_of_one + 1, SETS[0]), SETS[1])

    def inputs(self, device: str, seed: int) -> list[Tensor]:
        """Standard normal values: maps, then the weights, N(0, 1/fan_in)."""
        generator = torch.Generator(device).manual_seed(seed)
        made = []
        for name, (of_channels, of_taps, kind) in INPUTS[self.op].items():
            channels = of_channels * self.shape.channels + of_taps * K
            size = (self.shape.batch, channels, self.shape.size, self.shape.size)
            t = torch.randn(size, generator=generator, device=device)
            t = t * self.offset_scale if name == "offset" else t
            made.append(t if kind == "s" else t.to(self.torch_dtype))
        for shape in weight_shapes(self.op, self.shape.channels):
            weight = torch.randn(shape, generator=generator, device=device) * math.prod(shape[1:]) ** -0.5
            made.append(weight.to(self.torch_dtype))
        return made

    def cell_weights(self) -> dict[str, Tensor]:
        """Of a MotionGRUCell, N(0, 1/fan_in): the official zeros would leave the gates shut."""
        generator = torch.Generator().manual_seed(1)
        cell = MotionGRUCell(self.shape.channels)
        made = {}
        for name, parameter in cell.state_dict().items():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 10
            made[name] = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
        return made


def as_tuple(value: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    """The same numbers for every implementation, in the layout of its outputs."""
    generator = torch.Generator(outputs[0].device).manual_seed(99)
    made = [torch.randn(o.shape, generator=generator, device=o.device) for o in outputs]
    # through bfloat16, which every dtype here holds but for float16's range
    return [torch.empty_like(o).copy_(c.to(torch.bfloat16)) for o, c in zip(outputs, made)]


def exact_results(case: Case, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and, if the direction has any, gradients by inputs (and the cell's parameters) in float64."""
    leaves = [t.detach().double().requires_grad_() for t in inputs]
    parameters: list[Tensor] = []
    if case.op == "MotionGRUCell":
        cell = MotionGRUCell(case.shape.channels).to(leaves[0])
        rounded = {name: t.to(case.torch_dtype) for name, t in case.cell_weights().items()}
        cell.load_state_dict(rounded)
        parameters = [p for _, p in sorted(cell.named_parameters())]
        with backend("reference"):
            outputs = cell(*leaves)
    else:
        outputs = as_tuple(reference_function(case.op)(*leaves))
    if case.direction == FORWARD:
        return [o.detach() for o in outputs], []
    grads = torch.autograd.grad(outputs, [*leaves, *parameters], cotangents(outputs))
    return [o.detach() for o in outputs], list(grads)


def reference_function(op: str) -> Callable[..., Any]:
    """The op by the package's plain PyTorch, without the checks of its public face."""
    numbers = NUMBERS.get(op, ())
    if op == "motion_warp":

        def both(x, update_logits, candidate_logits, offset, trend, mask_logits, weight):
            offset, trend = reference.motion_update(update_logits, candidate_logits, offset, trend, *numbers)
            return reference.offset_warp(x, offset, mask_logits, weight), offset, trend

        return both
    function = getattr(reference, op)
    return lambda *tensors: function(*tensors, *numbers)


def largest_difference(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative difference by norm; nan where a result is nan."""
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        norm = e.norm().item()
        difference = (a.detach().double() - e).norm().item() / (norm or 1.0)
        worst = difference if difference != difference or difference > worst else worst
        if worst != worst:
            return worst
    return worst
