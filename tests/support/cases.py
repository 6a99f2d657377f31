"""The case table of every op: inputs by name, shared by every test of the op and every backend."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf

import torch
from case import MAX_OFFSET, Case, channels_last, misaligned, normal, partly_bounded
from gates_cases import GATES_CASES, gates_inputs
from torch import Tensor
from warp_cases import MOTION_CASES, WARP_CASES, motion_inputs, warp_inputs

# ---- Pointwise: (B, C, *S) operands; a name ending in 3 holds three streams

POINTWISE = {
    "motion_reset": ("reset_logits", "offset"),
    "motion_update": ("update_logits", "candidate_logits", "offset", "trend"),
    "memory_update": ("gates_x:3", "gates_h:3", "memory"),
    "highway_output": ("output_logits", "content", "highway"),
    "gated_blend": ("gate_logits", "a", "b"),
}
PARAMETERS = {
    "motion_update": (0.5, inf),
    "memory_update": (1.0,),
}  # alpha and max_offset, forget_bias: their defaults, by position, as the kernels take them
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


def _split(
    names: tuple[str, ...],
    shape: tuple[int, ...],
    g: torch.Generator,
    layout: Callable[[Tensor], Tensor] = lambda t: t,
) -> dict[str, Tensor | None]:
    """Views of one tensor, as `split` gives them: a stride of the batch, or of the pixels where channels are last."""
    counts = [shape[1] * int(name.partition(":")[2] or 1) for name in names]
    joined = layout(normal(shape[0], sum(counts), *shape[2:], scale=2.0)(g))
    return {name.partition(":")[0]: view for name, view in zip(names, joined.split(counts, 1))}


def _transposed(
    names: tuple[str, ...], shape: tuple[int, ...], g: torch.Generator
) -> dict[str, Tensor | None]:
    """A layout that no kernel reads in place."""
    made = _dense(names, (*shape[:-2], shape[-1], shape[-2]), g)
    return {name: t if t is None else t.transpose(-1, -2) for name, t in made.items()}


def _laid_out(
    names: tuple[str, ...],
    shape: tuple[int, ...],
    layout: Callable[[Tensor], Tensor],
    g: torch.Generator,
) -> dict[str, Tensor | None]:
    return {name: t if t is None else layout(t) for name, t in _dense(names, shape, g).items()}


def _mixed(names: tuple[str, ...], shape: tuple[int, ...], g: torch.Generator) -> dict[str, Tensor | None]:
    """channels_last and contiguous in turn."""
    made = _dense(names, shape, g)
    return {name: t if i % 2 or t is None else channels_last(t) for i, (name, t) in enumerate(made.items())}


def _idle_strides(
    names: tuple[str, ...], shape: tuple[int, ...], g: torch.Generator
) -> dict[str, Tensor | None]:
    """channels_last, but dimensions of one element have strides that mean nothing."""
    made = _laid_out(names, shape, channels_last, g)
    for name, t in made.items():
        assert t is not None
        strides = [1000 + d if n == 1 else s for d, (n, s) in enumerate(zip(t.shape, t.stride()))]
        made[name] = t.as_strided(t.shape, strides)
    return made


def _one_column(
    names: tuple[str, ...], shape: tuple[int, ...], g: torch.Generator
) -> dict[str, Tensor | None]:
    """channels_last maps of one column: but for the first they are transposed rows, with any stride where W is 1."""
    batch, channels, size = shape
    made = _dense(names, (batch, channels, 1, size), g)
    turned = {name: channels_last(t).transpose(2, 3) for name, t in made.items() if t is not None}
    first = names[0].partition(":")[0]
    return {**turned, first: turned[first].contiguous().contiguous(memory_format=torch.channels_last)}


def _extreme(names: tuple[str, ...], g: torch.Generator) -> dict[str, Tensor | None]:
    """Saturated gates and tiny values."""
    made = _dense(names, (1, 1, 8, 8), g)
    values = torch.tensor([0.0, 1e-6, -1e-3, 30.0, -30.0, 200.0, -200.0, 88.5])
    return {
        name: None if t is None else (t if i else values.repeat(t.numel() // 8).view(t.shape).double())
        for i, (name, t) in enumerate(made.items())
    }


def _nan(names: tuple[str, ...], g: torch.Generator) -> dict[str, Tensor | None]:
    """nan of the largest number as bits, in every other element of the first."""
    made = _dense(names, (1, 2, 4, 8), g)
    first = next(t for t in made.values() if t is not None)
    first.view(torch.int64)[..., ::2] = 2**63 - 1
    return made


def layout_cases(op: str, names: tuple[str, ...]) -> list[Case]:
    """Every size and layout of a pointwise op's operands, and values that are no ordinary numbers."""
    cases = [Case(op, shape, partial(_dense, names, SHAPES[shape])) for shape in SHAPES]
    cases.append(Case(op, "split", partial(_split, names, (3, 5, 4, 6))))
    cases.append(Case(op, "transposed", partial(_transposed, names, (2, 3, 4, 5))))
    cases.append(Case(op, "split_into_vectors", partial(_split, names, (3, 8, 4, 6))))
    for channels in (3, 8):
        shape = (2, channels, 4, 5)
        cases.append(Case(op, f"channels_last_c{channels}", partial(_laid_out, names, shape, channels_last)))
        split = partial(_split, names, shape, layout=channels_last)
        cases.append(Case(op, f"channels_last_split_c{channels}", split))
    for shape in ((2, 3, 6, 1), (2, 1, 4, 5), (3, 4, 1, 1)):
        name = "x".join(map(str, shape))
        cases.append(Case(op, f"idle_strides_{name}", partial(_idle_strides, names, shape)))
    cases.append(Case(op, "mixed_layouts", partial(_mixed, names, (2, 8, 4, 5))))
    cases.append(Case(op, "misaligned", partial(_laid_out, names, (2, 4, 4, 6), misaligned)))
    cases += [Case(op, f"one_column_b{b}", partial(_one_column, names, (b, 3, 5))) for b in (1, 2)]
    cases.append(Case(op, "nan", partial(_nan, names)))
    cases.append(Case(op, "extreme", partial(_extreme, names)))
    return cases


def _pointwise_cases() -> list[Case]:
    cases = [case for op, names in POINTWISE.items() for case in layout_cases(op, names)]
    cases.append(
        Case(
            "motion_update",
            "alpha",
            partial(_dense, POINTWISE["motion_update"], (2, 4, 3, 5)),
            {"alpha": 0.2},
        )
    )
    cases += [
        Case(c.op, f"bounded_{c.name}", lambda g, c=c: partly_bounded(c.make(g)), {"max_offset": MAX_OFFSET})
        for c in cases
        if c.op == "motion_update"
    ]
    no_bias = {"forget_bias": 0.0}
    cases.append(
        Case("memory_update", "no_bias", partial(_dense, POINTWISE["memory_update"], (2, 4, 3, 5)), no_bias)
    )
    no_highway = partial(_dense, ("output_logits", "content"), (2, 4, 3, 5))
    cases.append(Case("highway_output", "no_highway", lambda g: {**no_highway(g), "highway": None}))
    odd = partial(_dense, ("output_logits", "content"), (2, 3, 3, 5))
    cases.append(Case("highway_output", "no_highway_odd", lambda g: {**odd(g), "highway": None}))
    cases.append(
        Case(
            "highway_output",
            "aliased",
            lambda g: dict.fromkeys(POINTWISE["highway_output"], normal(2, 4, 3, 5)(g)),
        )
    )
    return cases


CASES = _pointwise_cases() + WARP_CASES + MOTION_CASES + GATES_CASES
OPS = (*POINTWISE, "offset_warp")
# With those that only the CUDA kernels or only the CPU kernels have; the other backends run what they are made of.
ALL_OPS = (*OPS, "motion_warp", "motion_gates")
FUZZED_OPS = ALL_OPS[:-1]  # motion_gates has draws of its own, in test_motion_gates.py


SMALL_WARP = {"batch": 2, "channels": 2, "out_channels": 3, "height": 3, "width": 4}


def small_case(op: str) -> Case:
    """One small case per op, for checks that cost a call per input element. Part of a new offset is at its bound."""
    if op == "offset_warp":
        return Case(op, "small", partial(warp_inputs, **SMALL_WARP))
    makes = {
        "motion_update": dense_case("motion_update", (2, 2, 2, 3)).make,
        "motion_warp": partial(motion_inputs, **SMALL_WARP),
        "motion_gates": partial(gates_inputs, channels=2, motion=2, masks=1, height=3, width=4),
    }
    if op in makes:
        make = makes[op]
        return Case(op, "small", lambda g: partly_bounded(make(g), exact=False), {"max_offset": MAX_OFFSET})
    return dense_case(op, (2, 2, 2, 3))


def dense_case(op: str, shape: tuple[int, ...]) -> Case:
    """Return a case of a pointwise op, with contiguous operands of this shape."""
    return Case(op, "small", partial(_dense, POINTWISE[op], shape))
