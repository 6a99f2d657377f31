"""Random cases of the ops: what hypothesis draws, and the tensors made of it. `judging.py` says what must come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from case import STATE, generator
from cases import POINTWISE
from hypothesis import strategies as st
from torch import Tensor

from motionrnn_ext import ops

# ---- Layouts: any order of dimensions, gaps, repeated dimensions, any place in the storage


@dataclass(frozen=True)
class Layout:
    order: tuple[int, ...]  # the dimensions, outermost first
    gaps: tuple[int, ...] = ()  # of each of these: elements left out from one index to the next
    repeated: tuple[int, ...] = ()  # dimensions of stride 0
    first: int = 0  # the first element's place in the storage

    def of(self, t: Tensor) -> Tensor:
        """A leaf with the values of t, those at index 0 along repeated dimensions; around it lies nan."""
        strides, size = [0] * t.dim(), 1
        for d, gap in zip(reversed(self.order), reversed(self.gaps or (0,) * t.dim())):
            if d not in self.repeated:
                strides[d] = size + gap
                size = strides[d] * max(t.shape[d], 1)
        storage = torch.full((self.first + size,), float("nan"), dtype=t.dtype, device=t.device)
        if t.numel():
            written = t[tuple(slice(1) if d in self.repeated else slice(None) for d in range(t.dim()))]
            storage.as_strided(written.shape, strides, self.first).copy_(written)
        return storage.as_strided(t.shape, strides, self.first)


def layouts(rank: int) -> st.SearchStrategy[Layout]:
    dims = tuple(range(rank))
    last = (0, *dims[2:], 1)  # channels_last
    named = [
        Layout(dims),
        Layout(dims, first=1),  # no vector can be read from here
        Layout(dims, gaps=(24, *[0] * (rank - 1))),  # a part of a split
        Layout(dims, gaps=(*[0] * (rank - 1), 1)),  # every other element
        Layout(dims, repeated=dims[:1]),
        Layout(dims, repeated=dims),
        Layout(last),
        Layout(last, gaps=(40, *[0] * (rank - 1))),  # every other entry of the batch
        Layout(last, gaps=(*[0] * (rank - 2), 8, 0)),  # a part of a split
        Layout(last, gaps=(*[0] * (rank - 2), 3, 0), first=1),
        Layout((*dims[:-2], dims[-1], dims[-2])),  # transposed
    ]
    anyhow = st.builds(
        Layout,
        st.permutations(dims).map(tuple),
        st.tuples(*[st.sampled_from([0, 0, 0, 1, 5])] * rank),
        st.sets(st.sampled_from(dims), max_size=1).map(tuple),
        st.integers(0, 3),
    )
    return st.sampled_from(named) | st.sampled_from(named) | anyhow


# ---- What is drawn

Inputs = dict[str, "Tensor | None"]

OFFSET_SCALES = (0.0, 1e-3, 0.1, 1.5, 1.5, 6.0, 40.0, 1e3, 1e5, 1e7)
SPECIAL = (float("inf"), -float("inf"), float("nan"), 1e7, -1e7, 1e30, -0.0, -1e-9)
SIZES = (0, 1, 1, 2, 3, 3, 4, 5, 7, 8, 11)
CHANNELS = (0, 1, 2, 3, 4, 5, 8, 8, 12, 16, 17, 33)


@dataclass(frozen=True)
class Drawn:
    op: str
    shapes: dict[str, tuple[int, ...]]
    parameters: dict[str, float | None]
    dtype: torch.dtype
    float32_memory: bool  # beside half features
    layouts: dict[str, Layout]
    same: bool  # one tensor for every input that it fits
    logits: float  # scale of the logits
    features: float  # scale of the other features
    offsets: float  # scale of the motion state
    quarters: bool  # motion state in multiples of a quarter
    special: int  # every so manieth element of the motion state is inf, nan, ...; 0: none
    wanted: tuple[str, ...]  # inputs whose gradients are taken
    used: tuple[int, ...]  # outputs that they are taken of
    grads: tuple[Layout, ...]  # of the gradients of those
    deterministic: bool
    seed: int

    def inputs(self, device: str) -> Inputs:
        g, made = generator(self.seed), Inputs()
        for name, shape in self.shapes.items():
            t = torch.randn(shape, generator=g, dtype=torch.float64)
            if name in STATE:
                t = self._motion(t)
            else:
                t = t * (self.logits if "logits" in name or "gates" in name else self.features)
            twin = next(
                (m for m in made.values() if m is not None and self.same and m.shape == t.shape), None
            )
            if twin is not None and twin.dtype == self._dtype_of(name):
                made[name] = twin
            else:
                made[name] = self.layouts[name].of(t.to(device, self._dtype_of(name)))
        for name in self.wanted:
            made[name].requires_grad_()
        return made if self.op != "highway_output" or "highway" in made else {**made, "highway": None}

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        out = getattr(ops, self.op)(**inputs, **self.parameters)
        return out if isinstance(out, tuple) else (out,)

    def cotangents(self, outputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Draw the cotangents of the outputs that are used."""
        g = generator(self.seed + 1)
        return [
            layout.of(torch.randn(outputs[i].shape, generator=g).to(outputs[i]))
            for i, layout in zip(self.used, self.grads)
        ]

    def _dtype_of(self, name: str) -> torch.dtype:
        is_state = name in STATE or (name == "memory" and self.float32_memory)
        return torch.float32 if is_state and self.dtype != torch.float64 else self.dtype

    def _motion(self, normal: Tensor) -> Tensor:
        t = self.offsets * normal
        if self.quarters:
            t = (4 * t).round() / 4
        if self.special:
            flat = t.view(-1)[:: self.special]
            flat.copy_(torch.tensor(SPECIAL, dtype=t.dtype).repeat(len(flat))[: len(flat)])
        return t.float().double()  # all dtypes floor alike


@st.composite
def drawn(draw: Callable[..., Any], op: str, dtypes: Sequence[torch.dtype]) -> Drawn:
    is_warp = op.endswith("_warp")
    shapes = draw(_warp_shapes(op) if is_warp else _pointwise_shapes(op))
    names = {"motion_update": "alpha", "motion_warp": "alpha", "memory_update": "forget_bias"}
    parameters = (
        {names[op]: draw(st.sampled_from([0.5, 0.0, 1.0, 0.2]))}
        if op in names and draw(st.booleans())
        else {}
    )
    if op.startswith("motion_") and op != "motion_reset" and draw(st.booleans()):
        parameters["max_offset"] = draw(st.sampled_from([1.0, 2.5, 40.0, 1e4, None]))
    n_outputs = {"motion_update": 2, "motion_warp": 3}.get(op, 1)
    rank = len(next(iter(shapes.values())))
    every = draw(st.none() | layouts(rank))  # one layout for all, as in a model
    special = draw(st.sampled_from([0, 0, 7, 1]))
    if is_warp and 0 in shapes["weight"]:
        special = 0  # the reference takes 0 times nan there, kernels have nothing to do
    used = tuple(range(n_outputs))
    if not special:  # or what is not used is a gradient of 0, times inf for those who multiply
        used = tuple(sorted(draw(st.sets(st.sampled_from(used), min_size=1))))
    return Drawn(
        op,
        shapes,
        parameters,
        draw(st.sampled_from(dtypes)),
        draw(st.booleans()),
        {name: every or draw(layouts(len(shape))) for name, shape in shapes.items()},
        draw(st.sampled_from([False] * 7 + [True])),
        draw(st.sampled_from([1.0, 1e-3, 8.0, 200.0])),
        draw(st.sampled_from([1.0, 1e-3, 30.0])),
        draw(st.sampled_from(OFFSET_SCALES)),
        draw(st.booleans()),
        special,
        tuple(name for name in shapes if draw(st.sampled_from([True, True, False]))),
        used,
        tuple(draw(layouts(rank)) for _ in used),
        draw(st.booleans()),
        draw(st.integers(0, 2**16)),
    )


@st.composite
def _pointwise_shapes(draw: Callable[..., Any], op: str) -> dict[str, tuple[int, ...]]:
    batch, channels = draw(st.sampled_from([0, 1, 2, 3])), draw(st.sampled_from(CHANNELS))
    sizes = st.sampled_from(SIZES)
    rest = draw(st.tuples(sizes, sizes) | st.lists(sizes, max_size=3) | st.sampled_from([[331], [32, 33]]))
    names = POINTWISE[op]
    if op == "highway_output" and draw(st.booleans()):
        names = names[:-1]
    split = [name.partition(":") for name in names]
    return {name: (batch, channels * int(streams or 1), *rest) for name, _, streams in split}


@st.composite
def _warp_shapes(draw: Callable[..., Any], op: str) -> dict[str, tuple[int, ...]]:
    channels, out_channels = draw(st.sampled_from(CHANNELS)), draw(st.sampled_from(CHANNELS))
    k = draw(st.sampled_from([1, 3, 3, 3, 5]))
    size = draw(st.tuples(*[st.sampled_from((*SIZES, 13) if k < 5 else SIZES)] * 2))
    batch = draw(st.sampled_from([0, 1, 2, 3] if channels * k * k * size[0] * size[1] < 10_000 else [1]))
    motion = (batch, 2 * k * k, *size)
    before = dict.fromkeys(["update_logits", "candidate_logits"] if op == "motion_warp" else [], motion)
    after = {"trend": motion} if op == "motion_warp" else {}
    return {
        "x": (batch, channels, *size),
        **before,
        "offset": motion,
        **after,
        "mask_logits": (batch, k * k, *size),
        "weight": (out_channels, channels, k, k),
    }
