"""The case table of every op: inputs by name, shared by every test of the op and every backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from motionrnn_ext import ops

STATE = {"offset", "trend"}  # float32 beside half features


@dataclass(frozen=True)
class Case:
    op: str
    name: str
    make: Callable[[torch.Generator], dict[str, Tensor | None]]  # float64 tensors by argument name
    parameters: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    def inputs(
        self, dtype: torch.dtype, device: str = "cpu", *, grad: bool = True
    ) -> dict[str, Tensor | None]:
        """The case's tensors in their dtypes, layouts kept; leaves that want gradients."""
        state = torch.float64 if dtype == torch.float64 else torch.float32
        made = self.make(torch.Generator().manual_seed(0))
        return {
            name: t if t is None else _like(t, state if name in STATE else dtype, device).requires_grad_(grad)
            for name, t in made.items()
        }

    def run(self, inputs: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
        out = getattr(ops, self.op)(**inputs, **self.parameters)
        return out if isinstance(out, tuple) else (out,)


def _like(t: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """A leaf with t's values and strides (also where those leave gaps)."""
    size = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride())) if t.numel() else 0
    storage = torch.empty(size, dtype=dtype, device=device)
    return storage.as_strided(t.shape, t.stride()).copy_(t.detach()).detach()


def normal(*shape: int, scale: float = 1.0) -> Callable[[torch.Generator], Tensor]:
    return lambda g: torch.randn(shape, generator=g, dtype=torch.float64) * scale


# ---- Pointwise: (B, C, *S) operands; a name ending in 3 holds three streams

POINTWISE = {
    "motion_reset": ("reset_logits", "offset"),
    "motion_update": ("update_logits", "candidate_logits", "offset", "trend"),
    "memory_update": ("gates_x:3", "gates_h:3", "memory"),
    "highway_output": ("output_logits", "content", "highway"),
    "gated_blend": ("gate_logits", "a", "b"),
}
SHAPES = {
    "plain": (2, 4, 6, 5),
    "prime": (3, 5, 7, 11),
    "one": (1, 1, 1, 1),
    "empty": (0, 4, 3, 3),
    "flat": (2, 7),
    "five": (2, 3, 2, 5, 3),
    "threaded": (2, 18, 32, 33),  # more than one grain
}


def _dense(names: tuple[str, ...], shape: tuple[int, ...], g: torch.Generator) -> dict[str, Tensor | None]:
    made: dict[str, Tensor | None] = {}
    for name in names:
        name, _, streams = name.partition(":")
        made[name] = normal(shape[0], shape[1] * int(streams or 1), *shape[2:], scale=2.0)(g)
    return made


def _split(names: tuple[str, ...], shape: tuple[int, ...], g: torch.Generator) -> dict[str, Tensor | None]:
    """Views of one tensor, as `split` gives them: a batch stride, the rest contiguous."""
    counts = [shape[1] * int(name.partition(":")[2] or 1) for name in names]
    joined = normal(shape[0], sum(counts), *shape[2:], scale=2.0)(g)
    return {name.partition(":")[0]: view for name, view in zip(names, joined.split(counts, 1))}


def _transposed(
    names: tuple[str, ...], shape: tuple[int, ...], g: torch.Generator
) -> dict[str, Tensor | None]:
    """A layout that no kernel reads in place."""
    made = _dense(names, (*shape[:-2], shape[-1], shape[-2]), g)
    return {name: t if t is None else t.transpose(-1, -2) for name, t in made.items()}


def _extreme(names: tuple[str, ...], g: torch.Generator) -> dict[str, Tensor | None]:
    """Saturated gates and tiny values."""
    made = _dense(names, (1, 1, 8, 8), g)
    values = torch.tensor([0.0, 1e-6, -1e-3, 30.0, -30.0, 200.0, -200.0, 88.5])
    return {
        name: None if t is None else (t if i else values.repeat(t.numel() // 8).view(t.shape).double())
        for i, (name, t) in enumerate(made.items())
    }


def _pointwise_cases() -> list[Case]:
    cases = []
    for op, names in POINTWISE.items():
        cases += [Case(op, shape, partial(_dense, names, SHAPES[shape])) for shape in SHAPES]
        cases.append(Case(op, "split", partial(_split, names, (3, 5, 4, 6))))
        cases.append(Case(op, "transposed", partial(_transposed, names, (2, 3, 4, 5))))
        cases.append(Case(op, "channels_last", lambda g, n=names: {
            name: t.contiguous(memory_format=torch.channels_last) for name, t in _dense(n, (2, 3, 4, 5), g).items()
        }))  # fmt: skip
        cases.append(Case(op, "extreme", partial(_extreme, names)))
    cases.append(
        Case(
            "motion_update",
            "alpha",
            partial(_dense, POINTWISE["motion_update"], (2, 4, 3, 5)),
            {"alpha": 0.2},
        )
    )
    no_bias = {"forget_bias": 0.0}
    cases.append(
        Case("memory_update", "no_bias", partial(_dense, POINTWISE["memory_update"], (2, 4, 3, 5)), no_bias)
    )
    no_highway = partial(_dense, ("output_logits", "content"), (2, 4, 3, 5))
    cases.append(Case("highway_output", "no_highway", lambda g: {**no_highway(g), "highway": None}))
    cases.append(
        Case(
            "highway_output",
            "aliased",
            lambda g: dict.fromkeys(POINTWISE["highway_output"], normal(2, 4, 3, 5)(g)),
        )
    )
    return cases


# ---- Offset warp


def warp_inputs(
    g: torch.Generator,
    batch: int = 2,
    channels: int = 4,
    out_channels: int | None = None,
    height: int = 7,
    width: int = 9,
    k: int = 3,
    offset: Callable[[Tensor], Tensor] = lambda normal: 1.5 * normal,
    layout: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[str, Tensor | None]:
    out_channels = channels if out_channels is None else out_channels
    return {
        "x": layout(normal(batch, channels, height, width)(g)),
        "offset": _away_from_integers(offset(normal(batch, 2 * k * k, height, width)(g))),
        "mask_logits": normal(batch, k * k, height, width)(g),
        "weight": normal(out_channels, channels, k, k, scale=max(channels * k * k, 1) ** -0.5)(g),
    }


def _away_from_integers(offset: Tensor) -> Tensor:
    """Rounded to float32, so that every dtype floors alike; integers stay."""
    return offset.float().double()


def _edges(normal: Tensor) -> Tensor:
    """Multiples of a quarter, many of them exactly on -1, 0 and the last row or column."""
    return (normal * 16).round() / 4


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _batch_strided(x: Tensor) -> Tensor:
    return torch.cat([x, x.neg()], dim=1)[:, : x.shape[1]]


def _warp_cases() -> list[Case]:
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "c16": {"channels": 16, "height": 12, "width": 13},
        "c20_to_3": {"channels": 20, "out_channels": 3},
        "c1_to_33": {"channels": 1, "out_channels": 33},
        "c64": {"channels": 64, "batch": 1, "height": 5, "width": 6},
        "one_pixel": {"height": 1, "width": 1},
        "row": {"height": 1, "width": 53},
        "column": {"height": 53, "width": 1},
        "k1": {"k": 1},
        "k5": {"k": 5},
        "k9": {"k": 9, "batch": 1, "height": 4, "width": 5},
        "empty": {"batch": 0},
        "empty_channels_last": {"batch": 0, "layout": channels_last},
        "no_rows": {"height": 0},
        "no_columns": {"batch": 3, "width": 0},
        "no_channels": {"channels": 0, "out_channels": 3, "layout": channels_last},
        "no_out_channels": {"out_channels": 0},
        "bands": {"batch": 1, "height": 19, "width": 23},
        "many": {"batch": 9, "channels": 3, "height": 4, "width": 5},
        "zero": {"offset": torch.zeros_like},
        "integer": {"offset": lambda n: (2 * n).round()},
        "edges": {"offset": _edges},
        "far": {"offset": lambda n: 15 * n},
        "channels_last": {"layout": channels_last},
        "channels_last_c16": {"layout": channels_last, "channels": 16},
        "batch_strided": {"layout": _batch_strided},
        "transposed": {"layout": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3)},
    }
    return [Case("offset_warp", name, partial(warp_inputs, **options)) for name, options in variants.items()]


CASES = _pointwise_cases() + _warp_cases()
OPS = (*POINTWISE, "offset_warp")


def small_case(op: str) -> Case:
    """One small case per op, for checks that cost a call per input element."""
    if op == "offset_warp":
        return Case(op, "small", partial(warp_inputs, batch=2, channels=2, out_channels=3, height=3, width=4))
    return Case(op, "small", partial(_dense, POINTWISE[op], (2, 2, 2, 3)))
