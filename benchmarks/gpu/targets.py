"""Check on measured rows whether the CUDA and Triton backends reach their targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..cases import GpuMaps
from ..measuring.roofline import POINTWISE, Work, floors, share

Row = dict[str, Any]
POINTWISE_SHARE = 0.85  # of the measured copy bandwidth, full shape
POINTWISE_OVER_EMPTY_US = 0.5  # per kernel, small shape
WARP_SHARE = 0.40  # of the roofline, forward, full shape, bfloat16, channels_last
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
    return [
        *_pointwise_bandwidth(rows, maps),
        *_pointwise_launch(rows, maps),
        *_warp_roofline(rows, maps),
        *_warp_over_torchvision(rows, maps),
        *_deterministic(rows, maps),
        *_cell(rows, maps),
        *_kept(rows, maps),
        *_triton_beside_cuda(rows, maps),
        *_triton_over_compiled(rows, maps),
    ]


def _pointwise_bandwidth(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    what = f"pointwise at {maps.full}: at least {POINTWISE_SHARE:.0%} of copy bandwidth"
    measured = []
    for row in _pointwise_rows(rows, maps.full):
        if rows.ceilings and row["graph_us"]:
            rate = 1e6 * row["work"]["bytes"] / row["graph_us"]
            measured.append((rate / rows.ceilings["copy_bytes_per_s"], row))
    yield _worst(what, measured, POINTWISE_SHARE, at_least=True, form=lambda v: f"{v:.0%}")


def _pointwise_launch(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    what = f"pointwise at {maps.small}: within {POINTWISE_OVER_EMPTY_US} us of an empty kernel, per kernel"
    measured = []
    for row in _pointwise_rows(rows, maps.small):
        launches = sum(row.get("nodes", {}).values())
        if rows.ceilings and row["graph_us"] and launches:
            measured.append((row["graph_us"] / launches - rows.ceilings["empty_kernel_us"], row))
    yield _worst(what, measured, POINTWISE_OVER_EMPTY_US, at_least=False, form=lambda v: f"{v:+.2f} us")


def _pointwise_rows(rows: Rows, shape: object) -> list[Row]:
    return [r for op in POINTWISE for r in rows.where(op=op, shape=str(shape), implementation="ours")]


def _warp_roofline(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    what = f"offset_warp forward at {maps.full} bfloat16 channels_last: at least {WARP_SHARE:.0%} of the roofline"
    row = rows.one(op="offset_warp", shape=str(maps.full), dtype="bfloat16", direction="forward",
                   implementation="ours", layout="channels_last")  # fmt: skip
    found = rows.share(row) if row else None
    if row is None or found is None:
        yield Target(what, "-", None)
    else:
        yield Target(what, f"{found[0]:.0%} ({found[1]}), {row['graph_us']:.1f} us", found[0] >= WARP_SHARE)


def _warp_over_torchvision(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    for shape in (maps.large, maps.full):
        what = f"offset_warp forward+backward at {shape} float32: at least {OVER_TORCHVISION:g}x torchvision"
        found = {}
        for layout in ("channels_last", "NCHW"):
            row = rows.one(op="offset_warp", shape=str(shape), dtype="float32", direction="forward+backward",
                           implementation="ours", layout=layout)  # fmt: skip
            found[layout] = rows.ratio(row, "torchvision", "graph_us") if row else None
        best = found["channels_last"]  # the layout that MotionGRU uses inside
        text = ", ".join(f"{layout} {value:.2f}x" for layout, value in found.items() if value is not None)
        yield Target(what, text or "-", None if best is None else best >= OVER_TORCHVISION)


def _deterministic(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    for role, limit in DETERMINISTIC.items():
        shape = getattr(maps, role)
        what = f"deterministic backward at {shape}: at most {limit:g}x the default"
        measured = []
        for row in rows.where(
            op="offset_warp", shape=str(shape), direction="backward", implementation="ours"
        ):
            same = [r for r in rows.beside(row, "ours, deterministic") if r["layout"] == row["layout"]]
            if same and row["graph_us"]:
                measured.append((same[0]["graph_us"] / row["graph_us"], row))
        yield _worst(what, measured, limit, at_least=False, form=lambda v: f"{v:.2f}x")


def _cell(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    for dtype in ("float32", "bfloat16"):
        for name, limit in (("plain", CELL_OVER_PLAIN), ("plain, compiled", CELL_OVER_COMPILED)):
            for clock, where in (("graph_us", "in a graph"), ("eager_us", "eager")):
                what = f"MotionGRUCell forward+backward at {maps.small} {dtype}, {where}: at least {limit:g}x {name}"
                found = []
                for layout in ("NCHW", "channels_last"):
                    row = rows.one(op="MotionGRUCell", shape=str(maps.small), dtype=dtype,
                                   direction="forward+backward", implementation="ours", layout=layout)  # fmt: skip
                    ratio = rows.ratio(row, name, clock) if row else None
                    found += [(ratio, layout)] if ratio is not None else []
                if found:
                    best, layout = max(found)
                    yield Target(what, f"{best:.2f}x ({layout})", best >= limit)
                else:
                    yield Target(what, "-", None)


def _kept(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    for op, peer, part in (
        ("MotionGRUCell", "plain", KEPT_OF_PLAIN),
        ("offset_warp", "reference", KEPT_OF_REFERENCE),
    ):
        what = f"{op}: keeps at most 1/{1 / part:.0f} of what {peer} keeps for backward"
        measured = []
        for row in rows.where(op=op, direction="forward+backward", implementation="ours"):
            kept = [r["kept_bytes"] for r in rows.beside(row, peer) if r.get("kept_bytes")]
            if kept:
                measured.append((row["kept_bytes"] / min(kept), row))
        yield _worst(what, measured, part, at_least=False, form=_as_part)


def _triton_beside_cuda(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    pointwise = [r for shape in (maps.full, maps.small) for r in _pointwise_rows(rows, shape)]
    yield _triton_ratio("pointwise", pointwise, TRITON_POINTWISE, rows)
    for direction, limit in TRITON_WARP.items():
        warps = rows.where(op="offset_warp", direction=direction, implementation="ours")
        yield _triton_ratio(f"offset_warp {direction}", warps, limit, rows)


def _triton_ratio(what: str, ours: Iterable[Row], limit: float, rows: Rows) -> Target:
    """Compare Triton with ours layout by layout."""
    measured = []
    for row in ours:
        same = [r for r in rows.beside(row, "triton") if r["layout"] == row["layout"]]
        if same and row["graph_us"] and same[0]["graph_us"]:
            measured.append((same[0]["graph_us"] / row["graph_us"], row))
    what = f"triton, {what}: at most {limit:g}x the time of the CUDA kernels"
    return _worst(what, measured, limit, at_least=False, form=lambda v: f"{v:.2f}x")


def _triton_over_compiled(rows: Rows, maps: GpuMaps) -> Iterator[Target]:
    """Compare the faster layout of each."""
    for name, limit in TRITON_OVER_COMPILED.items():
        measured = []
        for op in POINTWISE if name == "pointwise" else (name,):
            for row in rows.where(op=op, shape=str(maps.large), implementation="triton"):
                ratio = rows.ratio(row, "reference, compiled", "graph_us")
                if ratio is not None and row["graph_us"] == min(
                    r["graph_us"] for r in rows.beside(row, "triton")
                ):
                    measured.append((ratio, row))
        what = f"triton, {name} at {maps.large}: at least {limit:g}x reference, compiled"
        yield _worst(what, measured, limit, at_least=True, form=lambda v: f"{v:.2f}x")


def _as_part(value: float) -> str:
    return f"1/{1 / value:.1f}" if value else "0"


def _worst(
    what: str,
    measured: Iterable[tuple[float, Row]],
    limit: float,
    *,
    at_least: bool,
    form: Callable[[float], str],
) -> Target:
    """Return a target that every row has to meet; it names the row that is farthest from it."""
    measured = sorted(measured, key=lambda pair: pair[0], reverse=not at_least)
    if not measured:
        return Target(what, "-", None)
    good = [value for value, _ in measured if (value >= limit if at_least else value <= limit)]
    value, row = measured[0]
    names = [row["op"], row["direction"], row["shape"], row["dtype"], row["layout"]]
    where = " ".join(name for name in names if name not in what)
    text = f"{len(good)} of {len(measured)} rows; worst {form(value)}: {where}; best {form(measured[-1][0])}"
    return Target(what, text, len(good) == len(measured))
