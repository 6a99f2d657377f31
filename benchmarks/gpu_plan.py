"""Which comparisons the GPU rows make, the deciding ones first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from cases import DRY_RUN_MAPS, GPU_MAPS, GpuMaps
from gpu_cases import BACKWARD, BOTH, FORWARD, LAYOUTS, Case
from gpu_training_step import TrainingStep
from roofline import OPS, POINTWISE

DTYPES = ("float32", "bfloat16")
DIRECTIONS = (FORWARD, BOTH)
Implementations = tuple[tuple[str, str], ...]  # names and layouts

OURS: Implementations = tuple(("ours", layout) for layout in LAYOUTS)
TRITON: Implementations = tuple(("triton", layout) for layout in LAYOUTS)
REFERENCE: Implementations = (
    ("reference", "NCHW"),
)  # its gathers take NCHW; channels_last would only be copied
COMPILED: Implementations = (("reference, compiled", "NCHW"),)
PLAIN: Implementations = tuple(("plain", layout) for layout in LAYOUTS)  # convolutions may prefer either
PLAIN_COMPILED: Implementations = tuple(("plain, compiled", layout) for layout in LAYOUTS)


@dataclass(frozen=True)
class Comparison:
    case: Case
    implementations: Implementations

    def __str__(self) -> str:
        return f"{self.case}: {'; '.join(f'{name} ({layout})' for name, layout in self.implementations)}"

    def identity(self) -> dict[str, Any]:
        return self.case.identity()


def plan(dry_run: bool = False, experiments: bool = False) -> list[Comparison | TrainingStep]:
    """What the targets need, then experiments if asked for, then every other case, then compiled peers."""
    maps = DRY_RUN_MAPS if dry_run else GPU_MAPS
    first = list(_targets(maps)) + (list(_experiments(maps)) if experiments else [])
    steps = [TrainingStep(maps.small, dtype) for dtype in DTYPES if experiments]
    rest = _every_case(maps, {comparison.case for comparison in first})
    if dry_run:  # compiling takes half a minute each on a CPU
        return [*map(_without_compiled, [*first, *rest]), *steps]
    return [*first, *steps, *rest, *_compiled(maps, first)]


def peers(case: Case) -> Implementations:
    """What a case is compared with as a matter of course."""
    if case.op == "MotionGRUCell":
        return (*PLAIN, *REFERENCE)
    if case.op == "offset_warp":
        # deform_conv2d has no bfloat16, and is as fast in half precision
        return (*REFERENCE, ("torchvision", "NCHW")) if case.dtype != "bfloat16" else REFERENCE
    return REFERENCE


def _targets(maps: GpuMaps) -> Iterator[Comparison]:
    for dtype in DTYPES:
        cell = Case("MotionGRUCell", maps.small, dtype, BOTH)
        yield Comparison(cell, (*OURS, *TRITON, *PLAIN, *PLAIN_COMPILED, *REFERENCE))
    yield _usual(Case("offset_warp", maps.full, "bfloat16", FORWARD))
    for shape in (maps.full, maps.large):
        warp = Case("offset_warp", shape, "float32", BOTH)
        deterministic = ("ours, deterministic", "channels_last")
        yield Comparison(warp, (*OURS, *TRITON, deterministic, *peers(warp)))
    for dtype, shape in product(DTYPES, (maps.full, maps.large, maps.small)):
        yield Comparison(Case("offset_warp", shape, dtype, BACKWARD), _both_modes())
    for shape, op, dtype, direction in product((maps.full, maps.small), POINTWISE, DTYPES, DIRECTIONS):
        yield _usual(Case(op, shape, dtype, direction))
    for op in ("offset_warp", *POINTWISE):
        case = Case(op, maps.large, "float32", BOTH)
        yield Comparison(case, (*OURS, *TRITON, *COMPILED, *peers(case)))


def _experiments(maps: GpuMaps) -> Iterator[Comparison]:
    """What grad_x costs, and what far offsets cost."""
    without = tuple(("ours, without grad_x", layout) for layout in LAYOUTS)
    for shape, dtype in product((maps.full, maps.small), DTYPES):
        yield Comparison(Case("offset_warp", shape, dtype, BACKWARD), (*OURS, *without))
    for shape, scale in product((maps.full, maps.large), (0.0, 0.3, 8.0)):
        yield Comparison(Case("offset_warp", shape, "bfloat16", FORWARD, scale), OURS)
        yield Comparison(Case("offset_warp", shape, "bfloat16", BACKWARD, scale), _both_modes())


def _every_case(maps: GpuMaps, done: set[Case]) -> Iterator[Comparison]:
    for op, shape, dtype, direction in product(
        ("MotionGRUCell", "offset_warp", "motion_warp", *POINTWISE), maps, DTYPES, DIRECTIONS
    ):
        case = Case(op, shape, dtype, direction)
        if case not in done:
            yield _usual(case)
    for shape, direction in product(maps, DIRECTIONS):  # half precision that torchvision has as well
        yield _usual(Case("offset_warp", shape, "float16", direction))
    for dtype in DTYPES:
        case = Case("offset_warp", maps.medium, dtype, BACKWARD)
        if case not in done:
            yield Comparison(case, _both_modes())


def _compiled(maps: GpuMaps, planned: Sequence[Comparison]) -> Iterator[Comparison]:
    """Every case again, beside compiled peers: last, because compiling takes most of the time."""
    cell, others = "MotionGRUCell", (*[op for op in OPS if op not in POINTWISE], *POINTWISE)
    for direction in reversed(DIRECTIONS):
        for shape, dtype in product(maps, DTYPES):
            case = Case(cell, shape, dtype, direction)
            if not any(c.case == case and _is_compiled(c) for c in planned):
                yield Comparison(case, (*OURS, *PLAIN_COMPILED))
    for op, direction, shape, dtype in product(others, reversed(DIRECTIONS), maps, DTYPES):
        yield Comparison(Case(op, shape, dtype, direction), (*OURS, *COMPILED))
    for shape, dtype, direction in product(maps, DTYPES, DIRECTIONS):
        yield Comparison(Case(cell, shape, dtype, direction), (*OURS, *COMPILED))


def _usual(case: Case) -> Comparison:
    return Comparison(case, (*OURS, *TRITON, *peers(case)))


def _both_modes() -> Implementations:
    return (*OURS, *TRITON, *[("ours, deterministic", layout) for layout in LAYOUTS])


def _is_compiled(comparison: Comparison) -> bool:
    return any(name.endswith("compiled") for name, _ in comparison.implementations)


def _without_compiled(comparison: Comparison) -> Comparison:
    kept = tuple(
        (name, layout) for name, layout in comparison.implementations if not name.endswith("compiled")
    )
    return Comparison(comparison.case, kept)
