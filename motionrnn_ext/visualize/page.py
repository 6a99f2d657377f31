"""The parts that all pictures share: the style, a page of labelled rows of frames, and saving."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from torch import Tensor

from ..files import write_atomically
from ..pixels import as_floats, check_units
from .radar import Scale, coloured, draw_bar

PathLike = str | os.PathLike[str]

INK, FAINT, PAPER, ARROW = "#24292f", "#8b949e", "#ffffff", "#ff9f43"
# The lines of baselines, in order, and their names.
DASHES = {"--": "dashed", ":": "dotted", "-.": "dash-dotted"}
# A hue per model, in order; the hues differ in lightness too.
HUES = ("#0b6bcb", "#d4570a", "#0f8a5f", "#8a4fbf", "#b0892a", "#c2407e")


@contextmanager
def style(dots_per_inch: int = 150) -> Iterator[None]:
    """Apply the matplotlib settings of all pictures within a `with` block, in place of the user's own.

    Args:
        dots_per_inch: the resolution of figures made in the block.
    """
    import matplotlib as mpl
    from cycler import cycler

    settings: Any = {
        "figure.dpi": dots_per_inch, "savefig.facecolor": PAPER, "figure.facecolor": PAPER, "axes.facecolor": PAPER,
        "font.family": "DejaVu Sans", "font.size": 10, "axes.labelsize": 10, "legend.fontsize": 9.5,
        "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False,
        "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.edgecolor": FAINT,
        "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
        "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
        "axes.grid": True, "grid.color": "#e4e8ec", "grid.linewidth": 0.8, "lines.linewidth": 1.8,
        "lines.markersize": 4, "axes.prop_cycle": cycler(color=HUES),
        # A dollar sign in a run's name begins no formula.
        "text.parse_math": False,
    }  # fmt: skip
    with mpl.rc_context():
        # This resets all settings except the backend and its windows.
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield


def hues(labels: Any) -> list[str]:
    """Return a hue for each label, in order."""
    return [HUES[i % len(HUES)] for i in range(len(labels))]


def lines_of(count: int, longest: int) -> list[slice]:
    """Split 0 to count - 1 into lines of up to `longest`, as equal as possible."""
    n_lines = -(-count // longest)
    length = -(-count // n_lines)
    return [slice(start, min(start + length, count)) for start in range(0, count, length)]


def evenly(count: int, most: int) -> list[int]:
    """Return up to `most` of 0 to count - 1, evenly spread, with both ends."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / max(1, most - 1)) for i in range(most)]


class Sheet:
    """A page of rows of equal panels under headings, with a label left of each row, laid out from the top in inches.

    Panels have the frames' shape, within limits: very tall and very wide frames are smaller than their panels.
    """

    GAP, HEAD, WIDEST, LARGEST_PANEL = 0.045, 0.27, 7.9, 2.1
    # The height of a bar of colours with its numbers.
    BAR = 0.42
    # The limits of a panel's height.
    LOWEST, TALLEST = 0.3, 4.3
    # The height of all lines of rows together; if frames need more, only some are drawn, see `shown`.
    HIGHEST = 36.0

    def __init__(
        self,
        n_columns: int,
        n_rows: int,
        frames: Tensor,
        n_heads: int,
        label: float = 1.3,
        foot: float = 0.0,
        narrowest: float = 0.0,
        dbz: Scale | None = None,
    ) -> None:
        """Make an empty page.

        Args:
            n_columns: the number of panels in a row.
            n_rows: the number of rows.
            frames: frames (..., H, W), whose shape the panels take.
            n_heads: the number of lines of headings.
            label: the width left of the rows, in inches.
            foot: the height below the rows, in inches.
            narrowest: the smallest width right of the labels, in inches.
            dbz: the reflectivity of pixels 0 and 1, for a bar of radar's colours at the bottom; None for no bar.
        """
        from matplotlib.figure import Figure

        self.label, self.foot_height = label, foot
        self.panel, self.panel_height, self.is_filled = self._panel(n_columns, frames)
        self.width = label + max(n_columns * self.panel, narrowest)
        self.bar_height = 0.0 if dbz is None else self.BAR
        self.height = n_heads * self.HEAD + n_rows * self.panel_height + foot + self.bar_height
        self.figure = Figure(figsize=(self.width, self.height))
        # The top of the next line or row.
        self.top = self.height
        if dbz is not None:
            # Right of the bar is its unit.
            wide = min(self.width - label, self.WIDEST / 2) - 0.5
            draw_bar(
                self.figure,
                (label / self.width, 0.2 / self.height, wide / self.width, 0.1 / self.height),
                dbz,
            )

    @classmethod
    def _panel(cls, n_columns: int, frames: Tensor) -> tuple[float, float, bool]:
        """Return the width and the height of a panel, and whether a frame fills it."""
        width = min(cls.WIDEST / n_columns, cls.LARGEST_PANEL)
        height = (width - cls.GAP) * frames.shape[-2] / frames.shape[-1] + cls.GAP
        limited = min(max(height, cls.LOWEST), cls.TALLEST)
        return width, limited, height == limited

    @classmethod
    def shown(cls, count: int, longest: int, n_rows: int, frames: Tensor) -> list[int]:
        """Return the columns of `count` that the page has room for: all, or some that are evenly spread.

        The columns stand in lines of up to `longest`, with `n_rows` rows each.
        """
        line = cls.HEAD + n_rows * cls._panel(min(count, longest), frames)[1]
        return evenly(count, longest * max(1, int(cls.HIGHEST / line)))

    def title(self, text: str) -> None:
        """Write a line above the page, which counts as a line of headings."""
        self.top -= self.HEAD
        x, y = (self.label + self.width - self.GAP) / 2 / self.width, (self.top + 0.06) / self.height
        self.figure.text(x, y, text, size=8.5, ha="center", color=INK)

    def heads(self, texts: Sequence[str], colours: Sequence[str] | None = None, **looks: Any) -> None:
        """Write a line of headings, one above each column; `looks` are matplotlib's properties of text."""
        looks = {"size": 8.5, "ha": "center", **looks}
        self.top -= self.HEAD
        for i, text in enumerate(texts):
            x = self.label + i * self.panel + (self.panel - self.GAP) / 2
            colour = colours[i] if colours else FAINT
            # The width of a character, in inches per point of size.
            wide = 0.0095 if looks.get("weight") == "bold" else 0.0085
            text = shortened(text, int(self.panel / (wide * looks["size"])))
            self.figure.text(x / self.width, (self.top + 0.06) / self.height, text, color=colour, **looks)

    def row(self, images: Sequence[Tensor] | Tensor, label: str = "", **looks: Any) -> list[Any]:
        """Draw a row of images (C, H, W) with its label, and return the axes of its panels."""
        self.top -= self.panel_height
        y = (self.top + self.panel_height / 2) / self.height
        looks = {"size": 9.5, "ha": "right", "va": "center", **looks}
        label = _wrapped(label, lines=max(1, int(self.panel_height / 0.16)))
        self.figure.text((self.label - 0.12) / self.width, y, label, **looks)
        panels = []
        for i, image in enumerate(images):
            corner = ((self.label + i * self.panel) / self.width, (self.top + self.GAP) / self.height)
            size = ((self.panel - self.GAP) / self.width, (self.panel_height - self.GAP) / self.height)
            axes = self.figure.add_axes((*corner, *size))
            axes.set_axis_off()
            aspect: Any = "auto" if self.is_filled else "equal"
            axes.imshow(pixels(image), interpolation="nearest", aspect=aspect)
            panels.append(axes)
        return panels

    def foot(self, text: str = "") -> Any:
        """Write a text below the rows, on as many lines as it needs, and return it."""
        text = self.fitted(text)
        x = (self.label + self.width - self.GAP) / 2 / self.width
        y = (self.bar_height + self.foot_height / 2) / self.height
        return self.figure.text(x, y, text, size=9, ha="center", va="center", color=FAINT)

    def fitted(self, text: str) -> str:
        """Return a text broken into lines as wide as the rows."""
        inches_per_character = 0.07
        return fill(text, max(10, int((self.width - self.label) / inches_per_character)))


def _wrapped(label: str, width: int = 13, lines: int = 9) -> str:
    """Break a label into at most `lines` lines, after hyphens, underscores and spaces if possible."""
    broken = [""]
    for part in re.findall(r"[^-_\s]*[-_\s]?", " ".join(label.split())):
        if broken[-1] and len(broken[-1] + part.rstrip()) > width:
            broken.append("")
        broken[-1] += part
        while len(broken[-1].rstrip()) > width:
            broken[-1:] = [broken[-1][:width], broken[-1][width:]]
    if len(broken) > lines:
        broken[lines - 1 :] = [broken[lines - 1].strip()[: width - 1] + "\u2026"]
    return "\n".join(line.strip() for line in broken)


def shortened(text: str, width: int) -> str:
    """Return a text on one line; if it has more than `width` characters, an ellipsis replaces its middle."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    left = max(1, width // 2)
    return text[:left] + "\u2026" + text[len(text) - max(0, width - left - 1) :]


def drawable(frames: Tensor, dbz: Scale | None = None) -> Tensor:
    """Return frames, floats or uint8, as float32 on the CPU; they may be predictions and leave [0, 1].

    With `dbz`, the reflectivity of pixels 0 and 1, they are in radar's colours.
    """
    check_units(frames, "frames")
    floats = as_floats(frames.detach()).float().cpu()
    return floats if dbz is None else coloured(floats, dbz)


def pixels(image: Tensor) -> Any:
    """Convert an image (C, H, W) to a NumPy array, uint8 (H, W, 3); nan is black."""
    image = (image.nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1)
    return image.expand(-1, -1, 3).numpy()


def recorded(
    path: PathLike,
    figure: Any,
    draw: Callable[[int], object],
    times: Sequence[int],
    fps: float,
    keep: Sequence[Any] = (),
) -> Path:
    """Write a looping GIF of a figure and return its path.

    Args:
        path: the file to write.
        figure: matplotlib's figure.
        draw: a function that brings the figure to frame t.
        times: the frames to draw, in order.
        fps: frames per second.
        keep: colours, at most 64, that are among the 256 colours of the GIF.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas, shots = FigureCanvasAgg(figure), []
    for t in times:
        draw(t)
        canvas.draw()
        shots.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    first, *others = _with_palettes(shots, keep)
    options = {"duration": 1000 / fps, "loop": 0, "optimize": False, "disposal": 1}
    with write_atomically(path) as part:
        first.save(part, "GIF", save_all=True, append_images=others, **options)
    return Path(path)


def moments(sheet: Sheet, n_frames: int, most: int = 500) -> tuple[list[int], str]:
    """Return the frames that a GIF shows, all or as many as memory should hold, and words if they are not all."""
    width, height = sheet.figure.get_size_inches() * sheet.figure.dpi
    # 150 million pixels of 3 bytes each.
    times = evenly(n_frames, min(most, max(24, int(150e6 / (width * height)))))
    return times, "" if len(times) == n_frames else f" ({len(times)} of {n_frames} frames are shown)"


def _with_palettes(shots: Sequence[Any], keep: Sequence[Any]) -> list[Any]:
    """Convert uint8 arrays (H, W, 3) to images of 256 colours.

    If few pixels have a colour, a palette chosen by population would hold greys alone. Then 160 of its entries are
    greys, and the others serve the coloured pixels.
    """
    import numpy as np
    from matplotlib.colors import to_rgb
    from PIL import Image

    kept = (np.array([to_rgb(colour) for colour in keep[:64]]).reshape(-1, 3) * 255).round().astype(int)
    has_colour = [np.ptp(shot.astype(np.int16), axis=-1) > 16 for shot in shots]
    coloured = np.concatenate([shot[where] for shot, where in zip(shots, has_colour)])
    if not 0 < len(coloured) < 0.2 * sum(where.size for where in has_colour):
        return [_quantized(Image.fromarray(shot), kept) for shot in shots]
    few = np.concatenate([kept, _palette(Image.fromarray(coloured[None]), 96 - len(kept))])
    greys = np.linspace(0, 255, 160).round().astype(int)
    palette = [*greys.repeat(3).tolist(), *few.ravel().tolist()]
    images = []
    for shot, where in zip(shots, has_colour):
        index = (shot.mean(-1) * (159 / 255)).round().astype(np.uint8)
        index[where] = 160 + _nearest(shot[where], few)
        images.append(Image.fromarray(index))
        images[-1].putpalette(palette)
    return images


def _nearest(colours: Any, few: Any) -> Any:
    """Return, for each colour (N, 3), the position of the nearest of `few` colours (M, 3)."""
    import numpy as np

    # Parts keep the N x M distances from being in memory at once.
    parts = np.array_split(colours.astype(np.int16), len(colours) // 10_000 + 1)
    return np.concatenate([np.abs(part[:, None] - few).sum(-1).argmin(1) for part in parts])


def _quantized(image: Any, kept: Any) -> Any:
    """Return an image with a palette of its own, which begins with the `kept` colours (N, 3)."""
    import numpy as np
    from PIL import Image

    if not len(kept):
        return image.quantize(256)
    colours = Image.new("P", (1, 1))
    colours.putpalette(np.concatenate([kept, _palette(image, 256 - len(kept))]).ravel().tolist())
    return image.quantize(palette=colours, dither=Image.Dither.NONE)


def _palette(image: Any, count: int) -> Any:
    """Return the up to `count` colours (N, 3) that represent an image best."""
    import numpy as np

    return np.array(image.quantize(count).getpalette()).reshape(-1, 3)[:count]


def saved(figure: Any, path: PathLike) -> Path:
    """Write a figure as a PNG file and return its path."""
    with write_atomically(path) as part:
        figure.savefig(part, format="png", dpi=figure.dpi)
    return Path(path)
