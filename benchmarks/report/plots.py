"""Draw pictures of measured runs: speed-up by size and memory by size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from motionrnn_ext.visualize.page import FAINT, HUES, INK, saved, style

from .measured import OURS, Row, Run, is_peer, newest, size
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
    """Return the caption and the file name of each picture that these runs give."""
    return [(shows, name) for name, (shows, has, _, _) in PICTURES.items() if has(newest(runs))]


def write(runs: Sequence[Run], images: Path) -> list[Path]:
    """Draw the pictures of the newest run of each machine; a picture without rows is left out."""
    chosen = newest(runs)
    with style():
        return [
            saved(_grid(chosen, panel, unit), images / name)
            for name, (_, has, panel, unit) in PICTURES.items()
            if has(chosen)
        ]


def _grid(runs: Sequence[Run], panel: _Panel, unit: str) -> Any:
    """Draw a row of panels per run, for warp, cell and models, with a legend below each row."""
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
        found: dict[str, float] = {}  # the smallest ratio by shape
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


# ---- The pictures: caption, whether there are rows for it, its panel, the unit


def _has_peers(runs: Sequence[Run]) -> bool:
    return any(is_peer(row) for run in runs for op in WHAT for row in _rows(run, op))


def _has_memory(runs: Sequence[Run]) -> bool:
    return any(row.get(key) for run in runs for op in WHAT for row in _rows(run, op) for key in KINDS)


PICTURES: dict[str, tuple[str, Callable[[Sequence[Run]], bool], _Panel, str]] = {
    "bench_speedup.png": (
        "How many times as long each peer takes, by size; below the dashed line we lose",
        _has_peers,
        _speedup_panel,
        "times as fast as",
    ),
    "bench_memory.png": (
        "Memory by size: kept for backward (solid) and at the peak (dashed), ours and peers', on a log scale",
        _has_memory,
        _memory_panel,
        "MiB",
    ),
}
