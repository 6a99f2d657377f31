"""Define what a row of an op or the cell measures: its case, its inputs, and its results in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from motionrnn_ext import backend
from motionrnn_ext.backends import reference

from ..cases import MapShape
from . import lstm_steps
from .cell_cases import CELLS
from .roofline import GATES, MOTION_GRUS, WITHOUT_HIGHWAY, K, M, work

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
SETS = (2, 16)  # the least and the most input sets of a case on a GPU

# Inputs in the op's order. (a, b, kind) means a*C + b*K channels of features ("f"), of features at twice the height and
# width ("F"), or of float32 motion state ("s").
INPUTS: dict[str, dict[str, tuple[int, int, str]]] = {
    "motion_reset": {"reset_logits": (0, 2, "f"), "offset": (0, 2, "s")},
    "motion_update": {"update_logits": (0, 2, "f"), "candidate_logits": (0, 2, "f"),
                      "offset": (0, 2, "s"), "trend": (0, 2, "s")},
    "memory_update": {"gates_x": (3, 0, "f"), "gates_h": (3, 0, "f"), "memory": (1, 0, "f")},
    "highway_output": {"output_logits": (1, 0, "f"), "content": (1, 0, "f"), "highway": (1, 0, "f")},
    "gated_blend": {"gate_logits": (1, 0, "f"), "a": (1, 0, "f"), "b": (1, 0, "f")},
    "st_lstm_update": {"gates": (4, 0, "f"), "memory_gates": (3, 0, "f"), "cell": (1, 0, "f"), "memory": (1, 0, "f")},
    "summed_output": {"a": (1, 0, "f"), "b": (1, 0, "f"), "content": (1, 0, "f"), "highway": (1, 0, "f")},
    "conv_lstm_update": {"gates": (4, 0, "f"), "cell": (1, 0, "f"), "highway": (1, 0, "f")},
    "offset_warp": {"x": (1, 0, "f"), "offset": (0, 2, "s"), "mask_logits": (0, 1, "f")},
    "motion_warp": {"x": (1, 0, "f"), "update_logits": (0, 2, "f"), "candidate_logits": (0, 2, "f"),
                    "offset": (0, 2, "s"), "trend": (0, 2, "s"), "mask_logits": (0, 1, "f")},
    "motion_gates": {"x": (1, 0, "f"), "offset": (0, 2, "s"), "trend": (0, 2, "s")},
    "convolution": {"x": (1, 0, "f")},
    "MotionGRUCell": {"x": (1, 0, "f"), "offset": (0, 2, "s"), "trend": (0, 2, "s")},
}  # fmt: skip
for _op in MOTION_GRUS:
    INPUTS[_op] = {"x": (4, 0, "F"), "offset": (0, 2, "s"), "trend": (0, 2, "s")}
_LSTM = dict.fromkeys(("x", "hidden", "cell", "memory", "highway"), (1, 0, "f"))
INPUTS["SpatioTemporalLSTMCell"] = _LSTM
INPUTS["ConvLSTMCell"] = {name: kind for name, kind in _LSTM.items() if name != "memory"}
for _op in ("highway_output", "conv_lstm_update", "ConvLSTMCell", "SpatioTemporalLSTMCell"):
    INPUTS[_op + WITHOUT_HIGHWAY] = {name: kind for name, kind in INPUTS[_op].items() if name != "highway"}
# What follows the tensors.
NUMBERS = {"motion_update": (0.5,), "memory_update": (1.0,), "motion_warp": (0.5,), "motion_gates": (0.5,),
           f"highway_output{WITHOUT_HIGHWAY}": (None,)}  # fmt: skip


def weight_shapes(op: str, channels: int) -> list[tuple[int, ...]]:
    """Return the shapes of the weights, which follow the maps."""
    if op in ("offset_warp", "motion_warp"):
        return [(channels, channels, 3, 3)]
    if op == "motion_gates":
        return [(3 * M + K, channels, 3, 3), (3 * M + K,), (2 * M, M, 3, 3), (M, M, 3, 3)]
    if op == "convolution":
        return [(GATES * channels, channels, 5, 5)]
    return []


@dataclass(frozen=True)
class Case:
    """An op or the cell in one direction, on maps of one shape.

    dtype is that of the features: "float32", "bfloat16" or "float16". offset_scale is the standard deviation of the
    motion in pixels.
    """

    op: str
    shape: MapShape
    dtype: str
    direction: str
    offset_scale: float = 1.0

    def identity(self) -> dict[str, Any]:
        """Return the columns of a row that name its case."""
        level = "cell" if self.op in CELLS else "op"
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
        """The limit of the norm of a result's difference from float64, relative to the result's norm.

        Where the motion is computed, rounding moves some taps across an integer, where the gradient of a bilinear
        sample jumps. As the maps are noise, each such jump is as large as the gradient itself.
        """
        exact = {"float32": 5e-5, "bfloat16": 2e-2, "float16": 3e-3}[self.dtype]
        if self.op == "motion_warp":
            return max(exact, 3e-3)
        if self.op in ("MotionGRUCell", *MOTION_GRUS):
            return {"float32": 2e-2, "bfloat16": 0.15, "float16": 0.06}[self.dtype]
        return exact

    def sets(self, l2_bytes: int) -> int:
        """Return how many input sets, within SETS, make one pass over them too large for the L2 cache."""
        bytes_of_one = work(self.op, self.shape, self.dtype, self.direction).bytes
        return min(max(2 * l2_bytes // bytes_of_one + 1, SETS[0]), SETS[1])

    def inputs(self, device: str, seed: int) -> list[Tensor]:
        """Return the maps, N(0, 1), then the weights, N(0, 1/fan_in)."""
        generator = torch.Generator(device).manual_seed(seed)
        made = []
        for name, (of_channels, of_taps, kind) in INPUTS[self.op].items():
            channels = of_channels * self.shape.channels + of_taps * K
            size = self.shape.size * (2 if kind == "F" else 1)
            t = torch.randn((self.shape.batch, channels, size, size), generator=generator, device=device)
            t = t * self.offset_scale if name == "offset" else t
            made.append(t if kind == "s" else t.to(self.torch_dtype))
        for shape in weight_shapes(self.op, self.shape.channels):
            weight = torch.randn(shape, generator=generator, device=device) * math.prod(shape[1:]) ** -0.5
            made.append(weight.to(self.torch_dtype))
        return made

    def cell_weights(self) -> dict[str, Tensor]:
        """Return a cell's weights, N(0, 1/fan_in): a MotionGRU's official zeros would leave the gates shut."""
        generator = torch.Generator().manual_seed(1)
        cell = CELLS[self.op].ours(self.shape.channels)
        made = {}
        for name, parameter in cell.state_dict().items():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 10
            made[name] = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
        return made


def as_tuple(value: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs' gradients: the same numbers for every implementation, in the layout of its outputs."""
    generator = torch.Generator(outputs[0].device).manual_seed(99)
    made = [torch.randn(o.shape, generator=generator, device=o.device) for o in outputs]
    # bfloat16 values are exact in every dtype here, within float16's range
    return [torch.empty_like(o).copy_(c.to(torch.bfloat16)) for o, c in zip(outputs, made)]


def exact_results(case: Case, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs in float64, and the gradients by inputs and the cell's parameters if the direction has any."""
    leaves = [t.detach().double().requires_grad_() for t in inputs]
    parameters: list[Tensor] = []
    if case.op in CELLS:
        cell = CELLS[case.op].ours(case.shape.channels).to(leaves[0])
        rounded = {name: t.to(case.torch_dtype) for name, t in case.cell_weights().items()}
        cell.load_state_dict(rounded)
        parameters = [p for _, p in sorted(cell.named_parameters())]
        with backend("reference"):
            outputs = CELLS[case.op].step(cell, *leaves)
    else:
        outputs = as_tuple(reference_function(case.op)(*leaves))
    if case.direction == FORWARD:
        return [o.detach() for o in outputs], []
    grads = torch.autograd.grad(outputs, [*leaves, *parameters], cotangents(outputs))
    return [o.detach() for o in outputs], list(grads)


def reference_function(op: str) -> Callable[..., Any]:
    """Return the op in the package's plain PyTorch, without the checks of its public function."""
    if op in lstm_steps.JOINTS:
        return lstm_steps.JOINTS[op][1]
    numbers = NUMBERS.get(op, ())
    if op == "motion_warp":

        def both(x, update_logits, candidate_logits, offset, trend, mask_logits, weight):
            offset, trend = reference.motion_update(update_logits, candidate_logits, offset, trend, *numbers)
            return reference.offset_warp(x, offset, mask_logits, weight), offset, trend

        return both
    if op == "convolution":
        return lambda x, weight: torch.nn.functional.conv2d(x, weight, padding=2)
    function = getattr(reference, op.removesuffix(WITHOUT_HIGHWAY))
    return lambda *tensors: function(*tensors, *numbers)


def largest_difference(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest relative difference by norm; nan if a result has one."""
    differences = [(a.detach().double() - e).norm() / (e.norm() or 1.0)
                   for a, e in zip(actual, expected, strict=True)]  # fmt: skip
    return torch.stack(differences).max().item()  # max is nan if any of them is
