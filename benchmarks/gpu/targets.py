"""Check on measured rows whether the CUDA and Triton backends reach their targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ..cases import GpuMaps
from ..measuring.roofline import POINTWISE, Work, floors, share

Row = dict[str, Any]
Measured = Sequence[tuple[float, Row]]
Form = Callable[[float], str]
# Share of the measured copy bandwidth, at the full shape.
POINTWISE_SHARE = 0.85
POINTWISE_OVER_EMPTY_US = 0.5  # per kernel, small shape
# Share of the roofline: forward, at the full shape, bfloat16, channels_last.
WARP_SHARE = 0.40
OVER_TORCHVISION = 2.0  # forward and backward, float32
DETERMINISTIC = {"large": 4.0, "full": 4.0, "small": 2.0}  # times the default backward, at most
CELL_OVER_PLAIN, CELL_OVER_COMPILED = 4.0, 1.2  # forward and backward, small shape, in a graph and eager
KEPT_OF_PLAIN, KEPT_OF_REFERENCE = 1 / 20, 1 / 50  # bytes for backward: cell, offset_warp
# Upper limits of Triton's times over those of the CUDA kernels, then lower limits of torch.compile(reference)'s times
# over Triton's.
TRITON_POINTWISE, TRITON_WARP = 1.1, {"forward": 1.5, "backward": 2.0}
TRITON_OVER_COMPILED = {"offset_warp": 2.0, "pointwise": 0.95}


@dataclass(frozen=True)
class Target:
    """A target, what was measured for it, and whether it is met; `met` is None if nothing was measured."""

    what: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        return "not measured" if self.met is None else "met" if self.met else "MISSED"


class Rows:
    """The rows of a report that have times, found by what they measured."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.all: list[Row] = [r for r in report["rows"] if "eager_us" in r]
        self.ceilings: dict[str, Any] | None = report.get("ceilings")

    def where(self, **wanted: Any) -> list[Row]:
        wanted.setdefault("offset_scale", 1.0)
        return [r for r in self.all if all(r.get(key) == value for key, value in wanted.items())]

    def one(self, **wanted: Any) -> Row | None:
        """Return the first such row or None; the plan's deciding comparisons come first."""
        return next(iter(self.where(**wanted)), None)

    def beside(self, row: Row, name: str) -> list[Row]:
        """Return the rows of an implementation, in any layout, that were timed in turns with this one."""
        return [r for r in self.all if r["comparison"] == row["comparison"] and r["implementation"] == name]

    def ratio(self, row: Row, name: str, clock: str) -> float | None:
        """Return how many times as long the implementation takes, in its faster layout, or None if not measured."""
        times = [r[clock] for r in self.beside(row, name) if r[clock] is not None]
        return min(times) / row[clock] if times and row[clock] else None

    def share(self, row: Row) -> tuple[float, str] | None:
        """Return the reached share of the roofline, and the term that bounds it."""
        if not self.ceilings or row["graph_us"] is None or not row.get("work"):
            return None
        terms = floors(Work(**row["work"]), self.ceilings, row["dtype"], row["lane_bytes"])
        return share(terms, row["graph_us"])


def targets(rows: Rows, maps: GpuMaps) -> list[Target]:
    groups = (_pointwise, _warp, _deterministic, _cell, _kept, _triton_beside_cuda, _triton_over_compiled)
    return [target for group in groups for target in group(rows, maps)]


def _pointwise(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    shares, gaps = [], []
    if rows.ceilings:
        for row in _pointwise_rows(rows, maps.full):
            if row["graph_us"]:
                rate = 1e6 * row["work"]["bytes"] / row["graph_us"]
                shares.append((rate / rows.ceilings["copy_bytes_per_s"], row))
        for row in _pointwise_rows(rows, maps.small):
            launches = sum(row.get("nodes", {}).values())
            if row["graph_us"] and launches:
                gaps.append((row["graph_us"] / launches - rows.ceilings["empty_kernel_us"], row))
    what = f"pointwise at {maps.full}: at least {POINTWISE_SHARE:.0%} of copy bandwidth"
    yield _at_least(what, POINTWISE_SHARE, shares, "{:.0%}".format)
    what = f"pointwise at {maps.small}: within {POINTWISE_OVER_EMPTY_US} us of an empty kernel, per kernel"
    yield _at_most(what, POINTWISE_OVER_EMPTY_US, gaps, "{:+.2f} us".format)


def _pointwise_rows(rows: Rows, shape: object) -> list[Row]:
    return [r for op in POINTWISE for r in rows.where(op=op, shape=str(shape), implementation="ours")]


def _warp(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    """Check channels_last, the layout that MotionGRU uses inside."""
    wanted = {"op": "offset_warp", "implementation": "ours", "layout": "channels_last"}
    what = f"offset_warp forward at {maps.full} bfloat16 channels_last: at least {WARP_SHARE:.0%} of the roofline"
    row = rows.one(**wanted, shape=str(maps.full), dtype="bfloat16", direction="forward")
    found = rows.share(row) if row else None
    yield _at_least(what, WARP_SHARE, [(found[0], row)] if row and found else [], "{:.0%}".format)
    for shape in (maps.large, maps.full):
        what = f"offset_warp forward+backward at {shape} float32: at least {OVER_TORCHVISION:g}x torchvision"
        row = rows.one(**wanted, shape=str(shape), dtype="float32", direction="forward+backward")
        ratios = _ratios(rows, [row] if row else [], "torchvision")
        yield _at_least(what, OVER_TORCHVISION, ratios)


def _deterministic(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    for role, limit in DETERMINISTIC.items():
        shape = str(getattr(maps, role))
        ours = rows.where(op="offset_warp", shape=shape, direction="backward", implementation="ours")
        what = f"deterministic backward at {shape}: at most {limit:g}x the default"
        yield _at_most(what, limit, _ratios_by_layout(rows, ours, "ours, deterministic"))


def _cell(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    """Check our faster layout against the faster layout of the plain cell."""
    peers = {"plain": CELL_OVER_PLAIN, "plain, compiled": CELL_OVER_COMPILED}
    clocks = {"graph_us": "in a graph", "eager_us": "eager"}
    for dtype, (name, limit), (clock, where) in product(
        ("float32", "bfloat16"), peers.items(), clocks.items()
    ):
        what = f"MotionGRUCell forward+backward at {maps.small} {dtype}, {where}: at least {limit:g}x {name}"
        ours = rows.where(op="MotionGRUCell", shape=str(maps.small), dtype=dtype,
                          direction="forward+backward", implementation="ours")  # fmt: skip
        ratios = sorted(_ratios(rows, ours, name, clock), key=lambda pair: pair[0])
        yield _at_least(what, limit, ratios[-1:])


def _kept(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    for op, peer, part in (
        ("MotionGRUCell", "plain", KEPT_OF_PLAIN),
        ("offset_warp", "reference", KEPT_OF_REFERENCE),
    ):
        measured = []
        for row in rows.where(op=op, direction="forward+backward", implementation="ours"):
            kept = [r["kept_bytes"] for r in rows.beside(row, peer) if r.get("kept_bytes")]
            if kept:
                measured.append((row["kept_bytes"] / min(kept), row))
        what = f"{op}: keeps at most 1/{1 / part:.0f} of what {peer} keeps for backward"
        yield _at_most(what, part, measured, lambda value: f"1/{1 / value:.1f}" if value else "0")


def _triton_beside_cuda(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    pointwise = [r for shape in (maps.full, maps.small) for r in _pointwise_rows(rows, shape)]
    checked = [("pointwise", pointwise, TRITON_POINTWISE)]
    for direction, limit in TRITON_WARP.items():
        warps = rows.where(op="offset_warp", direction=direction, implementation="ours")
        checked.append((f"offset_warp {direction}", warps, limit))
    for name, ours, limit in checked:
        what = f"triton, {name}: at most {limit:g}x the time of the CUDA kernels"
        yield _at_most(what, limit, _ratios_by_layout(rows, ours, "triton"))


def _triton_over_compiled(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    """Compare the faster layout of each."""
    for name, limit in TRITON_OVER_COMPILED.items():
        ops = POINTWISE if name == "pointwise" else (name,)
        ours = [r for op in ops for r in rows.where(op=op, shape=str(maps.large), implementation="triton")
                if r["graph_us"] == min(other["graph_us"] for other in rows.beside(r, "triton"))]  # fmt: skip
        what = f"triton, {name} at {maps.large}: at least {limit:g}x reference, compiled"
        yield _at_least(what, limit, _ratios(rows, ours, "reference, compiled"))


# ---- Ratios and verdicts


def _ratios(rows: Rows, ours: Iterable[Row], name: str, clock: str = "graph_us") -> Measured:
    """Return how many times as long as ours the implementation takes in its faster layout."""
    ratios = ((rows.ratio(row, name, clock), row) for row in ours)
    return [(ratio, row) for ratio, row in ratios if ratio is not None]


def _ratios_by_layout(rows: Rows, ours: Iterable[Row], name: str) -> Measured:
    """Return how many times as long as ours the implementation takes in the same layout."""
    pairs = [
        (row, other) for row in ours for other in rows.beside(row, name) if other["layout"] == row["layout"]
    ]
    return [(o["graph_us"] / row["graph_us"], row) for row, o in pairs if row["graph_us"] and o["graph_us"]]


def _at_least(what: str, limit: float, measured: Measured, form: Form = "{:.2f}x".format) -> Target:
    return _verdict(what, sorted(measured, key=lambda pair: pair[0]), lambda value: value >= limit, form)


def _at_most(what: str, limit: float, measured: Measured, form: Form = "{:.2f}x".format) -> Target:
    return _verdict(what, sorted(measured, key=lambda pair: -pair[0]), lambda value: value <= limit, form)


def _verdict(what: str, worst_first: Measured, is_met: Callable[[float], bool], form: Form) -> Target:
    """Return a target that every row has to meet; it names the row that is farthest from it."""
    if not worst_first:
        return Target(what, "-", None)
    met = sum(is_met(value) for value, _ in worst_first)
    value, row = worst_first[0]
    names = [row["op"], row["direction"], row["shape"], row["dtype"], row["layout"]]
    text = f"{form(value)} {' '.join(name for name in names if name not in what)}".strip()
    if len(worst_first) > 1:
        text = f"{met} of {len(worst_first)} rows; worst {text}; best {form(worst_first[-1][0])}"
    return Target(what, text, met == len(worst_first))
