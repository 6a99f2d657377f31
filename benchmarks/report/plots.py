"""Draw pictures of measured runs: speed-up by size and memory by size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from motionrnn_ext.visualize.page import FAINT, HUES, INK, saved, style

from .measured import OURS, Row, Run, is_peer, newest, size
from .readme_table import WHAT

COLOURS = dict(zip(
    ("official", "reference", "reference, compiled", "reference, CUDA graphs", "plain", "plain, compiled",
     "torchvision", "triton"),
    (HUES[1], HUES[0], "#74aee6", "#a9b8c8", HUES[2], "#84c9a8", HUES[3], HUES[4]),
)) | {OURS: INK}  # fmt: skip
OTHER = HUES[5]
MIB = 2**20
KINDS = {"kept_bytes": ("kept", "o-"), "peak_bytes": ("peak", "^--")}


class Line(NamedTuple):
    """A line of a panel: its label, implementation and look, and its value by shape."""

    label: str
    name: str
    look: str
    values: dict[str, float]


def titles(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return the caption and the file name of each picture that these runs give."""
    chosen = newest(runs)
    return [(caption, name) for name, (caption, lines, _) in PICTURES.items() if _any(chosen, lines)]


def write(runs: Sequence[Run], images: Path) -> list[Path]:
    """Draw the pictures of the newest run of each machine; a picture without rows is left out."""
    chosen = newest(runs)
    with style():
        return [
            saved(_grid(chosen, lines, unit), images / name)
            for name, (_, lines, unit) in PICTURES.items()
            if _any(chosen, lines)
        ]


def _any(runs: Sequence[Run], lines: _Lines) -> bool:
    return any(lines(run, _rows(run, op)) for run in runs for op in WHAT)


def _grid(runs: Sequence[Run], lines: _Lines, unit: str) -> Any:
    """Draw a row of panels per run, for warp, cell and models, with a legend below each row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.3 * len(WHAT), 3.4 * len(runs)), layout="constrained")
    rows = figure.subfigures(len(runs), 1, squeeze=False)[:, 0]
    for part, run in zip(rows, runs):
        panels = part.subplots(1, len(WHAT))
        for axes, op in zip(panels, WHAT):
            axes.set_title(op, fontsize=10)
            axes.set_yscale("log")
            _panel(axes, _rows(run, op), lines(run, _rows(run, op)), unit)
        panels[0].set_ylabel(unit)
        part.suptitle(
            f"{run.title}: float32, forward and backward", x=0.01, ha="left", fontsize=10, color=INK
        )
        named = {name: line for axes in panels for line, name in zip(*axes.get_legend_handles_labels())}
        order = sorted(named, key=lambda name: (not name.startswith(OURS), name))
        part.legend([named[name] for name in order], order, loc="outside lower center",
                    ncols=min(5, max(1, len(named))), fontsize=8.5)  # fmt: skip
    return figure


def _panel(axes: Any, rows: Sequence[Row], lines: Sequence[Line], unit: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    shapes = list(dict.fromkeys(map(_shape, rows)))
    axes.set_xticks(range(len(shapes)), [s.replace(" ", "\n", 1) for s in shapes], fontsize=8)
    if not rows:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=FAINT)
    for line in lines:
        if line.values:
            places = [shapes.index(shape) for shape in line.values]
            axes.plot(places, list(line.values.values()), line.look, color=COLOURS.get(line.name, OTHER),
                      label=line.label)  # fmt: skip
        else:
            axes.text(0.98, 0.02, line.label, transform=axes.transAxes, ha="right", va="bottom", fontsize=8.5)
    if unit == MEMORY:
        low, high = axes.get_ylim()
        axes.set_ylim(low / 1.5, high * 1.5)
    else:
        axes.axhline(1, color=FAINT, linewidth=1.2, linestyle="--")
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.8, low), max(2.2, high))
    axes.margins(x=0.12)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _speedups(run: Run, rows: Sequence[Row]) -> list[Line]:
    """Return the smallest ratio of every peer by shape."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        ratio = run.ratio(row)
        if is_peer(row) and ratio is not None:
            of_name = found.setdefault(row["implementation"], {})
            of_name[_shape(row)] = min(ratio, of_name.get(_shape(row), ratio))
    return [Line(name, name, "o-", found[name]) for name in sorted(found)]


def _memory(run: Run, rows: Sequence[Row]) -> list[Line]:
    """Return two lines per implementation, and one without values where ours takes nothing."""
    rows = [r for r in rows if r["layout"] == "NCHW" and (r["implementation"] == OURS or is_peer(r))]
    lines = []
    for name in sorted({row["implementation"] for row in rows}, key=lambda name: (name != OURS, name)):
        for key, (kind, look) in KINDS.items():
            same = [row for row in rows if row["implementation"] == name]
            if name == OURS and any(row.get(key) == 0 for row in same):
                lines.append(Line(f"ours: nothing {kind}", name, look, {}))
            if found := {_shape(row): row[key] / MIB for row in same if row.get(key)}:
                lines.append(Line(f"{name}, {kind}", name, look, found))
    return lines


def _rows(run: Run, op: str) -> list[Row]:
    rows = run.where(op=op, direction=WHAT[op], dtype="float32")
    return sorted((row for row in rows if row.get("offset_scale", 1.0) == 1.0), key=size)


def _shape(row: Row) -> str:
    return f"{row['setting']} {row['shape']}" if row.get("setting") else row["shape"]


_Lines = Callable[[Run, Sequence[Row]], list[Line]]
MEMORY = "MiB"
PICTURES: dict[str, tuple[str, _Lines, str]] = {  # caption, lines of a panel, unit
    "bench_speedup.png": (
        "How many times as long each peer takes, by size; below the dashed line we lose",
        _speedups,
        "times as fast as",
    ),
    "bench_memory.png": (
        "Memory by size: kept for backward (solid) and at the peak (dashed), ours and peers', on a log scale",
        _memory,
        MEMORY,
    ),
}
