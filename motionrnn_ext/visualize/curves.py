"""Curves of losses against the training step, and of metrics against the lead time."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from .page import DASHES, FAINT, HUES, PathLike, hues, lines_of, saved, shortened, style

# The mark and the dashes of a model's line: the first six models, the next six, and so on.
_MARKS = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))


def loss_curves(path: PathLike, logs: Mapping[str, PathLike], columns: Sequence[str] | None = None) -> Path:
    """Draw the losses of Lightning's CSV logs against the training step as a PNG file.

    Each run has a colour, and each column a line style. The axis is logarithmic if all losses are positive.

    Args:
        path: the file to write.
        logs: a mapping from labels to CSV logs, `metrics.csv`, each with a `step` column.
        columns: the columns to draw; None for every column with "loss" in its name, except the epoch averages of a
            loss that is logged per step too.

    Returns:
        The file's path.

    Raises:
        ValueError: a log has no `step` column, or no value in any of the columns.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    with style():
        figure = Figure(figsize=(6.75, 3.4), layout="constrained")
        axes = figure.add_subplot()
        positive = True
        for hue, (label, log) in zip(hues(logs), logs.items(), strict=True):
            for dash, (name, (steps, values)) in zip(
                cycle(("-", "--", ":", "-.")), read_log(log, columns).items()
            ):
                what = name.removesuffix("_step").removesuffix("_epoch").replace("_", " ").replace("/", " ")
                marker = "o" if len(steps) < 25 else ""
                text = f" {shortened(label, 40)}, {what}".strip("_")
                axes.plot(steps, values, dash, marker=marker, color=hue, label=text)
                positive = positive and min(values) > 0
        if positive:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(xlabel="training step", title="Loss")
        axes.legend()
        return saved(figure, path)


def read_log(
    path: PathLike, columns: Sequence[str] | None = None
) -> dict[str, tuple[list[int], list[float]]]:
    """Read columns of a Lightning CSV log.

    Args:
        path: the log, `metrics.csv`.
        columns: the columns to read; None for the default of `loss_curves`.

    Returns:
        A mapping from each column's name to its steps and its values, without rows where it is empty.

    Raises:
        ValueError: the log has no `step` column, or no value in any of the columns.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    if "step" not in names:
        raise ValueError(
            f"{path}: a log must have a `step` column and a row; it has {', '.join(names) or 'nothing'}"
        )
    if columns is None:
        averages = {name for name in names if name.endswith("_epoch") and name[:-5] + "step" in names}
        columns = [name for name in names if "loss" in name and name not in averages]
    curves = {}
    for name in columns:
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        if points:
            curves[name] = ([step for step, _ in points], [value for _, value in points])
    if not curves:
        wanted = ", ".join(columns) or "*loss*"
        raise ValueError(f"{path}: no value in a column {wanted}; it has {', '.join(names)}")
    return curves


def lead_time_curves(
    path: PathLike, results: Mapping[str, Mapping[str, Any]], metrics: Sequence[str] | None = None
) -> Path:
    """Draw metrics against the lead time as a PNG file, with a panel per metric.

    Each model has a colour, and each further six models have other marks and dashes; baselines are grey, each with
    dashes of its own. A panel of CSI or FAR reads "no event" if
    there is none at any lead time.

    Args:
        path: the file to write.
        results: a mapping from labels to the results of `FrameMetrics.compute`. One with "baseline": True is that of a
            baseline.
        metrics: names under "per_lead"; None for all of the first entry.

    Returns:
        The file's path.
    """
    from matplotlib.figure import Figure

    from ..metrics import heading

    metrics = list(metrics or next(iter(results.values()))["per_lead"])
    lines = lines_of(len(metrics), 7)
    models = [label for label, result in results.items() if not result.get("baseline")]
    hue_of = dict(zip(models, hues(models), strict=True))
    mark_of = {label: _MARKS[i // len(HUES) % len(_MARKS)] for i, label in enumerate(models)}
    dash_of = dict(zip((label for label in results if label not in hue_of), cycle(DASHES)))
    with style():
        width = max(4.5, 2.25 * lines[0].stop)
        # A legend hides labels that begin with an underscore, so a space comes first.
        names = [f" {shortened(label, int((width - 0.6) / 0.085))}" for label in results]
        columns = max(1, min(int(width / (0.6 + 0.085 * max(map(len, names)))), len(names)))
        # The height of the legend's lines, in inches.
        below = 0.2 * max(0, -(-len(names) // columns) - 2)
        figure = Figure(figsize=(width, 2.9 * len(lines) + below), layout="constrained")
        panels = figure.subplots(len(lines), lines[0].stop, squeeze=False).flat
        for axes in panels[len(metrics) :]:
            axes.remove()
        for axes, metric in zip(panels, metrics, strict=False):
            for label, result in results.items():
                values = [math.nan if value is None else value for value in result["per_lead"][metric]]
                marker, dash = mark_of.get(label) or ("", dash_of[label])
                marker = marker if len(values) <= 40 else ""
                colour = hue_of.get(label, FAINT)
                axes.plot(range(1, len(values) + 1), values, dash, marker=marker, color=colour, label=label)
            axes.set_title(heading(metric))
            axes.set_xlabel("lead time (frames)")
            axes.xaxis.get_major_locator().set_params(integer=True)
            if metric.lower().startswith(("csi", "far", "fss")):
                _finish_shares(axes)
        figure.legend(panels[0].get_lines(), names, loc="outside lower center", ncols=columns)
        return saved(figure, path)


def _finish_shares(axes: Any) -> None:
    """Give a panel of CSI, FAR or FSS the scale 0 to 1, or write "no event" if it has no value."""
    axes.set_ylim(-0.02, 1.02)
    if not any(math.isfinite(value) for line in axes.lines for value in line.get_ydata()):
        axes.set_xticks([])
        axes.text(0.5, 0.5, "no event", transform=axes.transAxes, ha="center", va="center", color=FAINT)
