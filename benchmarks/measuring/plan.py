"""Plan the comparisons, those that decide most first: on a CPU, in a few minutes, and on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from .. import cases
from ..cases import DRY_RUN_MAPS, GPU_BATCH, GPU_MAPS, MAPS, GpuMaps, MapShape, ModelSetting
from .cell_cases import LSTMS
from .model_cases import BASES, INFERENCE, TRAINING, ModelCase
from .op_cases import BACKWARD, BOTH, FORWARD, LAYOUTS, Case
from .roofline import MOTION_GRUS, OPS, POINTWISE, WITHOUT_HIGHWAY

DTYPES = ("float32", "bfloat16")
DIRECTIONS = (FORWARD, BOTH)
Implementations = tuple[tuple[str, str], ...]  # name and layout of each

OURS: Implementations = tuple(("ours", layout) for layout in LAYOUTS)
TRITON: Implementations = tuple(("triton", layout) for layout in LAYOUTS)
# The reference's gathers take NCHW; channels_last would only be copied.
REFERENCE: Implementations = (("reference", "NCHW"),)
COMPILED: Implementations = (("reference, compiled", "NCHW"),)
GRAPHED: Implementations = (("reference, CUDA graphs", "NCHW"),)
# The plain cell's convolutions may prefer either layout.
PLAIN: Implementations = tuple(("plain", layout) for layout in LAYOUTS)
PLAIN_COMPILED: Implementations = tuple(("plain, compiled", layout) for layout in LAYOUTS)
OFFICIAL: Implementations = (("official", "NCHW"),)
OPENSTL: Implementations = (("openstl", "NCHW"),)
PARTS: Implementations = (("ours, without MotionGRU", "NCHW"), ("base predictor", "NCHW"))


@dataclass(frozen=True)
class Comparison:
    """A case, and the implementations that are timed in turns."""

    case: Case | ModelCase
    implementations: Implementations

    def __str__(self) -> str:
        return f"{self.case}: {'; '.join(f'{name} ({layout})' for name, layout in self.implementations)}"

    def identity(self) -> dict[str, Any]:
        return self.case.identity()

    def without(self, unwanted: str) -> Comparison:
        """Return the comparison without the implementations that have this text in their name."""
        kept = tuple((name, layout) for name, layout in self.implementations if unwanted not in name)
        return Comparison(self.case, kept)


# ---- On a CPU

CPU_OPS = ("offset_warp", "motion_gates", *POINTWISE)


def cpu_plan(official: bool = False, dry_run: bool = False, openstl: bool = False) -> list[Comparison]:
    """Plan whole models, and every op and cell in float32; other layouts and dtypes at one shape. `motion_warp` has no
    rows of its own: on a CPU it is two ops."""
    maps = DRY_RUN_MAPS[:3] if dry_run else MAPS
    settings = (cases.DRY_RUN,) if dry_run else (cases.HUMAN36M, cases.VMNIST)
    convolved = cases.DRY_RUN_CONVOLVED_MAPS if dry_run else cases.CONVOLVED_MAPS
    convolutions = [
        Comparison(Case("convolution", shape, "float32", direction), (*OURS[:1], *REFERENCE))
        for shape, direction in product(convolved, DIRECTIONS)
    ]
    ops = [*_cpu_ops(maps, official), *convolutions, *_steps(dry_run)]
    models = [*_models(settings, official), *_bases(openstl, dry_run)]
    planned = [*models, *_cpu_cells(maps, official), *ops]
    return [c.without("compiled") for c in planned] if dry_run else planned


def quick_plan(official: bool = False, dry_run: bool = False, openstl: bool = False) -> list[Comparison]:
    """Plan every op and the cell forward and backward at the smallest shape, and a small model."""
    shape = DRY_RUN_MAPS.small if dry_run else MAPS[0]
    cell = Comparison(Case("MotionGRUCell", shape, "float32", BOTH),
                      (*OURS, *PLAIN[:1], *REFERENCE, *COMPILED, *_if(official, OFFICIAL)))  # fmt: skip
    ops = [_cpu_op(Case(op, shape, "float32", BOTH), official) for op in CPU_OPS]
    models = _models((cases.DRY_RUN if dry_run else cases.QUICK,), official)
    planned = [cell, *ops, *models, *_bases(openstl, dry_run, batches=(1,))]
    return [c.without("compiled") for c in planned] if dry_run else planned


def _models(settings: Iterable[ModelSetting], official: bool, dtype: str = "float32") -> Iterator[Comparison]:
    for setting, direction in product(settings, (TRAINING, INFERENCE)):
        peers = (*REFERENCE, *_if(official, OFFICIAL))
        yield Comparison(ModelCase(setting, dtype, direction), (*OURS, *PARTS, *peers))


def _bases(openstl: bool, dry_run: bool, batches: Sequence[int] = cases.BASE_BATCHES) -> Iterator[Comparison]:
    """Plan every base predictor beside OpenSTL's network of it."""
    setting = cases.BASE_DRY_RUN if dry_run else cases.BASE
    for base, batch, direction in product(BASES if openstl else (), batches, (TRAINING, INFERENCE)):
        case = ModelCase(setting.of_batch(batch), "float32", direction, base)
        yield Comparison(case, (*OURS[:1], *OPENSTL))


def _cpu_cells(maps: Sequence[MapShape], official: bool) -> Iterator[Comparison]:
    for direction, shape in product(reversed(DIRECTIONS), maps):
        layouts = OURS if shape == maps[1] else OURS[:1]
        peers = (*PLAIN[: len(layouts)], *PLAIN_COMPILED[:1], *REFERENCE, *COMPILED, *_if(official, OFFICIAL))
        yield Comparison(Case("MotionGRUCell", shape, "float32", direction), (*layouts, *peers))


def _cpu_ops(maps: Sequence[MapShape], official: bool) -> Iterator[Comparison]:
    for op, shape, direction in product(CPU_OPS, maps, DIRECTIONS):
        compiled = _if((shape, direction) == (maps[1], BOTH), COMPILED)
        yield _cpu_op(Case(op, shape, "float32", direction), official, compiled, both=shape == maps[1])
    for op, direction in product(CPU_OPS, DIRECTIONS):
        yield _cpu_op(Case(op, maps[1], "bfloat16", direction), official)


def _steps(dry_run: bool) -> Iterator[Comparison]:
    """Plan the recurrent cells and their ops on maps of their own, with and without a highway."""
    maps = DRY_RUN_MAPS[:1] if dry_run else cases.RECURRENT_MAPS
    ops = ("memory_update", "highway_output", f"highway_output{WITHOUT_HIGHWAY}", "gated_blend")
    for op, shape, direction in product((*LSTMS, *ops), maps, DIRECTIONS):
        peers = PLAIN[:1] if op in LSTMS else REFERENCE
        yield Comparison(Case(op, shape, "float32", direction), (*OURS[:1], *peers))


def _cpu_op(case: Case, official: bool, compiled: Implementations = (), both: bool = False) -> Comparison:
    has_official = official and case.op == "offset_warp" and case.dtype == "float32"
    ours = OURS if both and case.op == "offset_warp" else OURS[:1]
    return Comparison(case, (*ours, *peers(case), *compiled, *_if(has_official, OFFICIAL)))


def _if(wanted: bool, implementations: Implementations) -> Implementations:
    return implementations if wanted else ()


# ---- On a GPU


def gpu_plan(dry_run: bool = False, official: bool = False, openstl: bool = False) -> list[Comparison]:
    """Plan what the targets need, then models, every other case, experiments, and compiled peers."""
    maps = DRY_RUN_MAPS if dry_run else GPU_MAPS
    first = list(_targets(maps, official))
    settings = [s.of_batch(GPU_BATCH) for s in (cases.HUMAN36M, cases.VMNIST)]
    models = [*_models([cases.DRY_RUN] if dry_run else settings, official), *_bases(openstl, dry_run)]
    rest = [*_every_case(maps, {comparison.case for comparison in first}), *_experiments(maps)]
    if dry_run:  # on a CPU each compilation takes half a minute
        return [c.without("compiled").without("CUDA graphs") for c in [*first, *models, *rest]]
    return [*first, *models, *rest, *_compiled(maps, first)]


def peers(case: Case) -> Implementations:
    """Return the implementations that a case is always compared with."""
    if case.op == "MotionGRUCell":
        return (*PLAIN, *REFERENCE)
    if case.op == "offset_warp":
        # deform_conv2d has no bfloat16; its float16 is as fast
        return (*REFERENCE, ("torchvision", "NCHW")) if case.dtype != "bfloat16" else REFERENCE
    return REFERENCE


def _targets(maps: GpuMaps, official: bool) -> Iterator[Comparison]:
    for dtype in DTYPES:
        cell = Case("MotionGRUCell", maps.small, dtype, BOTH)
        programs = _if(official and dtype == "float32", OFFICIAL)
        yield Comparison(cell, (*OURS, *TRITON, *PLAIN, *PLAIN_COMPILED, *REFERENCE, *programs))
    yield _usual(Case("offset_warp", maps.full, "bfloat16", FORWARD))
    for shape in (maps.full, maps.large):
        warp = Case("offset_warp", shape, "float32", BOTH)
        deterministic = ("ours, deterministic", "channels_last")
        yield Comparison(warp, (*OURS, *TRITON, deterministic, *peers(warp), *_if(official, OFFICIAL)))
    for dtype, shape in product(DTYPES, (maps.full, maps.large, maps.small)):
        yield Comparison(Case("offset_warp", shape, dtype, BACKWARD), _both_modes())
    for shape, op, dtype, direction in product((maps.full, maps.small), POINTWISE, DTYPES, DIRECTIONS):
        yield _usual(Case(op, shape, dtype, direction))
    for op in ("offset_warp", *POINTWISE):
        case = Case(op, maps.large, "float32", BOTH)
        yield Comparison(case, (*OURS, *TRITON, *COMPILED, *peers(case)))


def _experiments(maps: GpuMaps) -> Iterator[Comparison]:
    """Plan what grad_x costs, and what far offsets cost."""
    without = tuple(("ours, without grad_x", layout) for layout in LAYOUTS)
    for shape, dtype in product((maps.full, maps.small), DTYPES):
        yield Comparison(Case("offset_warp", shape, dtype, BACKWARD), (*OURS, *without))
    for shape, scale in product((maps.full, maps.large), (0.0, 0.3, 8.0)):
        yield Comparison(Case("offset_warp", shape, "bfloat16", FORWARD, scale), OURS)
        yield Comparison(Case("offset_warp", shape, "bfloat16", BACKWARD, scale), _both_modes())


def _every_case(maps: GpuMaps, done: set[Case | ModelCase]) -> Iterator[Comparison]:
    for op, shape, dtype, direction in product(
        ("MotionGRUCell", "offset_warp", "motion_warp", "motion_gates", *POINTWISE), maps, DTYPES, DIRECTIONS
    ):
        case = Case(op, shape, dtype, direction)
        if case not in done:
            yield _usual(case)
    # The output gate of the largest maps would take gigabytes in float64.
    for op, shape, dtype, direction in product(MOTION_GRUS, maps[:3], DTYPES, DIRECTIONS):
        yield _usual(Case(op, shape, dtype, direction))
    for shape, direction in product(maps, DIRECTIONS):  # the half precision that torchvision has too
        yield _usual(Case("offset_warp", shape, "float16", direction))
    for dtype in DTYPES:
        case = Case("offset_warp", maps.medium, dtype, BACKWARD)
        if case not in done:
            yield Comparison(case, _both_modes())


def _compiled(maps: GpuMaps, planned: Sequence[Comparison]) -> Iterator[Comparison]:
    """Plan every case again beside compiled peers. They come last, because compiling takes most of the time."""
    cell, others = "MotionGRUCell", (*[op for op in OPS if op not in POINTWISE], *POINTWISE)
    for direction in reversed(DIRECTIONS):
        for shape, dtype in product(maps, DTYPES):
            case = Case(cell, shape, dtype, direction)
            if not any(c.case == case and _is_compiled(c) for c in planned):
                yield Comparison(case, (*OURS, *PLAIN_COMPILED))
    for op, direction, shape, dtype in product(others, reversed(DIRECTIONS), maps, DTYPES):
        yield Comparison(Case(op, shape, dtype, direction), (*OURS, *COMPILED))
    for shape, dtype, direction in product(maps, DTYPES, DIRECTIONS):
        yield Comparison(Case(cell, shape, dtype, direction), (*OURS, *COMPILED, *GRAPHED))


def _usual(case: Case) -> Comparison:
    return Comparison(case, (*OURS, *TRITON, *peers(case)))


def _both_modes() -> Implementations:
    return (*OURS, *TRITON, *[("ours, deterministic", layout) for layout in LAYOUTS])


def _is_compiled(comparison: Comparison) -> bool:
    return any(name.endswith("compiled") for name, _ in comparison.implementations)
