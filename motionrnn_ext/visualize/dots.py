"""Results over seeds, drawn with a dot per training and a line at each row's mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from .page import DASHES, FAINT, INK, PathLike, hues, saved, shortened, style

_BAND = "#f6f8fa"


def dots(
    path: PathLike,
    rows: Mapping[str, Mapping[str, Sequence[float]]],
    groups: Sequence[int] | None = None,
    *,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    title: str = "",
) -> Path:
    """Draw results over seeds as a PNG file, with a panel per metric.

    The rows stand from top to bottom, each with a dot per value and a line at their mean.

    Args:
        path: the file to write.
        rows: a mapping from labels to metrics to values, one value per seed. Values that are not finite are left out.
        groups: a number per row; rows of one group follow each other and share a colour. None for a group each.
        baselines: a mapping from labels to metrics to values. Each is drawn as a line of its own dashes, or written
            below the panel if it lies far from the dots.
        title: the text above the panels.

    Returns:
        The file's path.

    Raises:
        ValueError: `groups` has another length than `rows`.
    """
    from matplotlib.figure import Figure

    from ..metrics import heading

    metrics = list(next(iter(rows.values())))
    groups = list(range(len(rows))) if groups is None else list(groups)
    if len(groups) != len(rows):
        raise ValueError(f"groups must have a number for each of {len(rows)} rows; got {len(groups)}")
    kinds = list(dict.fromkeys(groups))
    hue_of = dict(zip(kinds, hues(kinds), strict=True))
    # Each group begins after a gap.
    places = [i + 0.45 * kinds.index(group) for i, group in enumerate(groups)]
    with style():
        figure = Figure(
            figsize=(2.1 + 3.1 * len(metrics), 0.9 + 0.15 * len(baselines or {}) + 0.3 * (places[-1] + 1)),
            layout="constrained",
        )
        panels = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            for place, group, values in zip(places, groups, rows.values(), strict=True):
                _row(axes, place, [v for v in values[metric] if math.isfinite(v)], hue_of[group])
            _draw_baselines(axes, {label: values[metric] for label, values in (baselines or {}).items()})
            axes.set_title(heading(metric), fontsize=10)
            axes.set_yticks(places, [shortened(label, 40) for label in rows])
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.grid(False, axis="y")
            axes.locator_params(axis="x", nbins=5)
        panels[0].set_ylim(places[-1] + 0.6, -0.6)
        # Every other group lies on a band.
        for group in kinds[::2]:
            own = [place for place, g in zip(places, groups, strict=True) if g == group]
            for axes in panels:
                axes.axhspan(own[0] - 0.6, own[-1] + 0.6, color=_BAND, zorder=0, linewidth=0)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
        return saved(figure, path)


def _row(axes: Any, place: float, values: list[float], hue: str) -> None:
    """Draw a row's dots, their range and their mean at the height `place`."""
    if not values:
        return
    mean = sum(values) / len(values)
    axes.plot(
        [min(values), max(values)], [place] * 2, color=hue, alpha=0.3, linewidth=3, solid_capstyle="round"
    )
    axes.plot([mean] * 2, [place - 0.3, place + 0.3], color=hue, linewidth=2.2, solid_capstyle="round")
    looks = {"markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.7, "alpha": 0.9, "zorder": 3}
    axes.plot(values, [place] * len(values), "o", color=hue, **looks)


def _draw_baselines(axes: Any, values: Mapping[str, float]) -> None:
    """Draw baselines as dashed lines, or write the value of one that lies far from the dots; name them all below."""
    low, high = axes.get_xlim()
    texts = []
    for (label, value), (dash, name) in zip(values.items(), cycle(DASHES.items())):
        if not math.isfinite(value):
            continue
        if low - 0.6 * (high - low) <= value <= high + 0.6 * (high - low):
            axes.axvline(value, color=FAINT, linestyle=dash, linewidth=1.2, zorder=1)
            texts.append(f"{name}: {label}")
        else:
            digits = 3 if abs(value) < 1 else 1
            text = f"{label}: {value:.{digits}f}"
            texts.append(f"{text} \u2192" if value > high else f"\u2190 {text}")
    axes.set_xlabel("\n".join(texts), color=FAINT, fontsize=8.5)
