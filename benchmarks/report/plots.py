"""Pictures of measured runs: speed-up by size, memory by size, and where the ops stand under the roofline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from motionrnn_ext.visualize.page import FAINT, HUES, INK, saved, style

from ..measuring.roofline import OPS
from .measured import OURS, Row, Run, is_peer, newest, operations, size
from .readme_table import WHAT

COLOURS = dict(zip(
    ("official", "reference", "reference, compiled", "reference, CUDA graphs", "plain", "plain, compiled",
     "torchvision", "triton"),
    (HUES[1], HUES[0], "#74aee6", "#a9b8c8", HUES[2], "#84c9a8", HUES[3], HUES[4]),
))  # fmt: skip
OTHER = HUES[5]
MIB = 2**20
KINDS = {"kept_bytes": ("kept", "o-"), "peak_bytes": ("peak", "^--")}
_Panel = Callable[[Any, Run, str], None]


def titles(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What each picture that these runs give shows, and its file's name."""
    return [(shows, name) for name, (shows, has, _) in PICTURES.items() if has(newest(runs))]


def write(runs: Sequence[Run], images: Path) -> list[Path]:
    """Pictures of the newest run of each machine; those for which there are no rows are left out."""
    chosen = newest(runs)
    with style():
        return [
            saved(draw(chosen), images / name) for name, (_, has, draw) in PICTURES.items() if has(chosen)
        ]


def _speedup(runs: Sequence[Run]) -> Any:
    return _grid(runs, _speedup_panel, "times as fast as")


def _memory(runs: Sequence[Run]) -> Any:
    return _grid(runs, _memory_panel, "MiB")


def _grid(runs: Sequence[Run], panel: _Panel, unit: str) -> Any:
    """A row of panels per run, one each for warp, cell and models; a legend per row below it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.3 * len(WHAT), 3.4 * len(runs)), layout="constrained")
    rows = figure.subfigures(len(runs), 1, squeeze=False)[:, 0]
    for part, run in zip(rows, runs):
        panels = part.subplots(1, len(WHAT))
        for axes, op in zip(panels, WHAT):
            axes.set_title(op, fontsize=10)
            axes.set_yscale("log")
            panel(axes, run, op)
            axes.margins(x=0.12)
            _plain_numbers(axes)
        panels[0].set_ylabel(unit)
        part.suptitle(
            f"{run.title}: float32, forward and backward", x=0.01, ha="left", fontsize=10, color=INK
        )
        named = {name: line for axes in panels for line, name in zip(*axes.get_legend_handles_labels())}
        order = sorted(named, key=lambda name: (not name.startswith(OURS), name))
        part.legend([named[name] for name in order], order, loc="outside lower center",
                    ncols=min(5, max(1, len(named))), fontsize=8.5)  # fmt: skip
    return figure


def _plain_numbers(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _speedup_panel(axes: Any, run: Run, op: str) -> None:
    rows = _rows(run, op)
    places = _places(axes, rows)
    for name in _names([row for row in rows if is_peer(row)]):
        found: dict[str, float] = {}  # of a shape: the smallest ratio
        for row in rows:
            ratio = run.ratio(row)
            if row["implementation"] == name and ratio is not None:
                found[_shape(row)] = min(ratio, found.get(_shape(row), ratio))
        if found:
            axes.plot([places[s] for s in found], list(found.values()), "o-", color=COLOURS.get(name, OTHER),
                      label=name)  # fmt: skip
    axes.axhline(1, color=FAINT, linewidth=1.2, linestyle="--")
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.8, low), max(2.2, high))


def _memory_panel(axes: Any, run: Run, op: str) -> None:
    rows = [row for row in _rows(run, op) if row["layout"] == "NCHW"]
    rows = [row for row in rows if row["implementation"] == OURS or is_peer(row)]
    places = _places(axes, rows)
    for name in _names(rows):
        for key, (kind, look) in KINDS.items():
            found = {_shape(r): r[key] / MIB for r in rows if r["implementation"] == name and r.get(key)}
            if name == OURS and any(r["implementation"] == OURS and r.get(key) == 0 for r in rows):
                axes.text(0.98, 0.02, f"ours: nothing {kind}", transform=axes.transAxes, ha="right", va="bottom",
                          fontsize=8.5)  # fmt: skip
            if found:
                axes.plot([places[s] for s in found], list(found.values()), look, label=f"{name}, {kind}",
                          color=INK if name == OURS else COLOURS.get(name, OTHER))  # fmt: skip
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.5, high * 1.5)


def _rows(run: Run, op: str) -> list[Row]:
    rows = run.where(op=op, direction=WHAT[op], dtype="float32")
    return sorted((row for row in rows if row.get("offset_scale", 1.0) == 1.0), key=size)


def _places(axes: Any, rows: Sequence[Row]) -> dict[str, int]:
    shapes = list(dict.fromkeys(map(_shape, rows)))
    axes.set_xticks(range(len(shapes)), [s.replace(" ", "\n", 1) for s in shapes], fontsize=8)
    if not rows:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=FAINT)
    return {shape: i for i, shape in enumerate(shapes)}


def _shape(row: Row) -> str:
    return f"{row['setting']} {row['shape']}" if row.get("setting") else row["shape"]


def _names(rows: Sequence[Row]) -> list[str]:
    return sorted({row["implementation"] for row in rows}, key=lambda name: (name != OURS, name))


# ---- Roofline


def _roofline(runs: Sequence[Run]) -> Any:
    from matplotlib.figure import Figure

    chosen = [run for run in runs if _points(run)]
    figure = Figure(figsize=(1.6 + 4.2 * len(chosen), 3.9), layout="constrained")
    panels = figure.subplots(1, len(chosen), squeeze=False)[0]
    for axes, run in zip(panels, chosen):
        _roofline_panel(axes, run)
    panels[0].set_ylabel("FLOP/s")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8.5)
    return figure


def _roofline_panel(axes: Any, run: Run) -> None:
    points = _points(run)
    copies, product = _ceilings(run.report["ceilings"])
    low, high = min(p[1] for p in points) / 2, max(*(p[1] for p in points), product / min(copies)) * 2
    for rate, dash in zip(copies, ("-", ":")):
        axes.plot([low, product / rate, high], [low * rate, product, product], dash, color=INK, linewidth=1.2)
    for i, (op, intensity, rate, direction, volume) in enumerate(points):
        first = op not in [p[0] for p in points[:i]]
        axes.plot([intensity], [rate], "o" if direction == "forward" else "s", color=_op_colour(op),
                  markersize=3 + volume, alpha=0.85, label=op if first else None)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte, counted")
    axes.set_title(f"{run.title}: ours, float32", fontsize=10)


def _points(run: Run) -> list[tuple[str, float, float, str, float]]:
    """Op, FLOPs per byte, FLOP/s, direction, size of the marker."""
    found: list[tuple[str, float, float, str, float]] = []
    if not run.report["ceilings"]:
        return []
    for row in run.where(implementation=OURS, layout="NCHW", dtype="float32"):
        took = row["graph_us"] if run.on_gpu else row["eager_us"]
        work, flops = row.get("work"), operations(row)
        if took and flops and work and work["bytes"] and row["direction"] != "backward":
            volume = len(str(size(row))) - 3
            found.append(
                (row["op"], flops / work["bytes"], 1e6 * flops / took, row["direction"], max(volume, 0))
            )
    return found


def _ceilings(ceilings: dict[str, Any]) -> tuple[list[float], float]:
    """Bytes/s of copies, from memory and, on a CPU, at best from its caches; FLOP/s of float32 products."""
    copies = [ceilings["copy_bytes_per_s"]]
    if "matmul_flops" in ceilings:
        copies.append(max(copy["bytes_per_s"] for copy in ceilings["copies"]))
        return copies, max(ceilings["matmul_flops"], ceilings.get("convolution_flops", 0.0))
    return copies, max(ceilings["ffma_flops"], ceilings["mma_tf32_flops"] / 3)


def _op_colour(op: str) -> str:
    names = ["MotionGRUCell", *OPS]
    colours = [*HUES, INK, "#6fb7c4", FAINT]
    return colours[names.index(op) if op in names else -1]


# ---- All of them: what they show, whether there is anything to show, and how


def _has_peers(runs: Sequence[Run]) -> bool:
    return any(is_peer(row) for run in runs for op in WHAT for row in _rows(run, op))


def _has_memory(runs: Sequence[Run]) -> bool:
    return any(row.get(key) for run in runs for op in WHAT for row in _rows(run, op) for key in KINDS)


def _has_points(runs: Sequence[Run]) -> bool:
    return any(_points(run) for run in runs)


PICTURES: dict[str, tuple[str, Callable[[Sequence[Run]], bool], Callable[[Sequence[Run]], Any]]] = {
    "bench_speedup.png": (
        "How many times as long each peer takes, by size; below the dashed line we lose",
        _has_peers,
        _speedup,
    ),
    "bench_memory.png": (
        "Memory by size: kept for backward (solid) and at the peak (dashed), ours and peers', on a log scale",
        _has_memory,
        _memory,
    ),
    "bench_roofline.png": (
        "FLOP/s of our ops against their FLOPs per byte, under the ceilings measured on the same machine: circles "
        "forward, squares forward and backward, larger for larger shapes; dotted, on a CPU: copies within its caches",
        _has_points,
        _roofline,
    ),
}
