"""The colours of radar reflectivity, and their bar.

The table is the one in which the United States National Weather Service draws base reflectivity, a colour for every 5
dBZ from 5 to 75 (the table "NWSReflectivity" of MetPy and "NWSRef" of Py-ART). Below 5 dBZ a pixel is black, and
without data it is grey.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# The reflectivity of pixels 0 and 1, in dBZ.
Scale = tuple[float, ...]
# The colour of a reflectivity from the level in dBZ up to the next one.
TABLE = {
    5: "#00ecec", 10: "#01a0f6", 15: "#0000f6",
    20: "#00ff00", 25: "#00c800", 30: "#009000",
    35: "#ffff00", 40: "#e7c000", 45: "#ff9000",
    50: "#ff0000", 55: "#d60000", 60: "#c00000",
    65: "#ff00ff", 70: "#9955c9", 75: "#ffffff",
}  # fmt: skip
DRY, NO_DATA = "#000000", "#646464"


def coloured(frames: Tensor, dbz: Scale) -> Tensor:
    """Return frames (..., 1, H, W) of radar in colours, float32 RGB (..., 3, H, W) in [0, 1].

    Args:
        frames: floats, of which those outside of [0, 1] count as 0 and 1; nan is drawn as no data.
        dbz: the reflectivity of pixels 0 and 1.

    Raises:
        ValueError: frames have another number of channels.
    """
    if frames.ndim < 3 or frames.shape[-3] != 1:
        raise ValueError(f"frames of radar must be grey (..., 1, H, W); got {tuple(frames.shape)}")
    low, high = dbz
    values = low + (high - low) * frames.double().clamp(0, 1).squeeze(-3)
    # A thousandth of a dBZ keeps a value that is a level from falling below it by rounding.
    level = torch.bucketize(values + 1e-3, torch.tensor(list(TABLE), dtype=torch.float64), right=True)
    level[values.isnan()] = len(TABLE) + 1
    return _rgb(DRY, *TABLE.values(), NO_DATA)[level].movedim(-1, -3)


def _rgb(*colours: str) -> Tensor:
    """Return colours "#rrggbb" as float32 (N, 3) in [0, 1]."""
    return torch.tensor([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours])


def draw_bar(figure: Any, place: tuple[float, float, float, float], dbz: Scale) -> Any:
    """Draw the bar of the colours that pixels from 0 to 1 can have, and return its axes.

    Args:
        figure: matplotlib's figure.
        place: left, bottom, width and height, in shares of the figure.
        dbz: the reflectivity of pixels 0 and 1.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    levels = [level for level in TABLE if level <= dbz[1]] or list(TABLE)[:1]
    # The first field is that of dry pixels.
    edges = [min(levels[0] - 5, math.floor(dbz[0])), *levels, levels[-1] + 5]
    colours = ListedColormap([DRY, *(TABLE[level] for level in levels)])
    axes = figure.add_axes(place)
    scale = ScalarMappable(BoundaryNorm(edges, len(edges) - 1), colours)
    bar = figure.colorbar(scale, cax=axes, orientation="horizontal", spacing="uniform", ticks=levels)
    bar.ax.tick_params(labelsize=7.5, length=0, pad=2)
    bar.outline.set_visible(False)
    axes.grid(False)
    axes.text(1.02, 0.5, "dBZ", transform=axes.transAxes, size=8, va="center", ha="left")
    return axes
