"""What all pictures share: the style, a page of labelled rows of frames, and saving."""

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

PathLike = str | os.PathLike[str]

INK, FAINT, PAPER, ARROW = "#24292f", "#8b949e", "#ffffff", "#ff9f43"
# one hue per model, in order; they differ in lightness too
HUES = ("#0b6bcb", "#d4570a", "#0f8a5f", "#8a4fbf", "#b0892a", "#c2407e")


@contextmanager
def style(dots_per_inch: int = 150) -> Iterator[None]:
    """All pictures' matplotlib settings, whatever the user's own are: `with style(): ...`."""
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
        "text.parse_math": False,  # a $ in a run's name is one
    }  # fmt: skip
    with mpl.rc_context():
        mpl.rcdefaults()  # all but the backend and its windows
        mpl.rcParams.update(settings)
        yield


def hues(labels: Any) -> list[str]:
    return [HUES[i % len(HUES)] for i in range(len(labels))]


def lines_of(count: int, longest: int) -> list[slice]:
    """0 to count - 1 in lines of up to `longest`, as equal as can be."""
    n_lines = -(-count // longest)
    length = -(-count // n_lines)
    return [slice(start, min(start + length, count)) for start in range(0, count, length)]


def evenly(count: int, most: int) -> list[int]:
    """Up to `most` of 0 to count - 1, evenly spread, with both ends."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / max(1, most - 1)) for i in range(most)]


class Sheet:
    """Rows of equal cells under headings, laid out from the top in inches; a label left of each row.

    Cells have the frames' shape, within limits: very tall and very wide frames are smaller than their cells.
    """

    GAP, HEAD, WIDEST, LARGEST_CELL = 0.045, 0.27, 7.9, 2.1
    LOWEST, TALLEST = 0.3, 4.3  # of a cell
    HIGHEST = 36.0  # of all lines of rows together; what takes more is thinned out, see `shown`

    def __init__(
        self,
        n_columns: int,
        n_rows: int,
        frames: Tensor,
        n_heads: int,
        label: float = 1.3,
        foot: float = 0.0,
        narrowest: float = 0.0,  # right of the labels
    ) -> None:
        from matplotlib.figure import Figure

        self.label, self.foot_height = label, foot
        self.cell, self.cell_height, self.is_filled = self._cell(n_columns, frames)
        self.width = label + max(n_columns * self.cell, narrowest)
        self.height = n_heads * self.HEAD + n_rows * self.cell_height + foot
        self.figure = Figure(figsize=(self.width, self.height))
        self.top = self.height  # of what is laid out next

    @classmethod
    def _cell(cls, n_columns: int, frames: Tensor) -> tuple[float, float, bool]:
        """Width and height of a cell, and whether a frame fills it."""
        cell = min(cls.WIDEST / n_columns, cls.LARGEST_CELL)
        height = (cell - cls.GAP) * frames.shape[-2] / frames.shape[-1] + cls.GAP
        limited = min(max(height, cls.LOWEST), cls.TALLEST)
        return cell, limited, height == limited

    @classmethod
    def shown(cls, count: int, longest: int, n_rows: int, frames: Tensor) -> list[int]:
        """Which of `count` columns there is room for, in lines of up to `longest` with `n_rows` each: all, or some that
        are evenly spread."""
        line = cls.HEAD + n_rows * cls._cell(min(count, longest), frames)[1]
        return evenly(count, longest * max(1, int(cls.HIGHEST / line)))

    def title(self, text: str) -> None:
        """A line above all, which counts as a head."""
        self.top -= self.HEAD
        x, y = (self.label + self.width - self.GAP) / 2 / self.width, (self.top + 0.06) / self.height
        self.figure.text(x, y, text, size=8.5, ha="center", color=INK)

    def heads(self, texts: Sequence[str], colours: Sequence[str] | None = None, **looks: Any) -> None:
        looks = {"size": 8.5, "ha": "center", **looks}
        self.top -= self.HEAD
        for i, text in enumerate(texts):
            x = self.label + i * self.cell + (self.cell - self.GAP) / 2
            colour = colours[i] if colours else FAINT
            wide = 0.0095 if looks.get("weight") == "bold" else 0.0085  # inches per character and point
            text = shortened(text, int(self.cell / (wide * looks["size"])))
            self.figure.text(x / self.width, (self.top + 0.06) / self.height, text, color=colour, **looks)

    def row(self, images: Sequence[Tensor] | Tensor, label: str = "", **looks: Any) -> list[Any]:
        """The cells' axes, each with its image."""
        self.top -= self.cell_height
        y = (self.top + self.cell_height / 2) / self.height
        looks = {"size": 9.5, "ha": "right", "va": "center", **looks}
        label = _wrapped(label, lines=max(1, int(self.cell_height / 0.16)))
        self.figure.text((self.label - 0.12) / self.width, y, label, **looks)
        cells = []
        for i, image in enumerate(images):
            corner = ((self.label + i * self.cell) / self.width, (self.top + self.GAP) / self.height)
            size = ((self.cell - self.GAP) / self.width, (self.cell_height - self.GAP) / self.height)
            axes = self.figure.add_axes((*corner, *size))
            axes.set_axis_off()
            aspect: Any = "auto" if self.is_filled else "equal"
            axes.imshow(pixels(image), interpolation="nearest", aspect=aspect)
            cells.append(axes)
        return cells

    def foot(self, text: str = "") -> Any:
        """A text below the rows, on as many lines as it takes."""
        text = self.fitted(text)
        x = (self.label + self.width - self.GAP) / 2 / self.width
        y = self.foot_height / 2 / self.height
        return self.figure.text(x, y, text, size=9, ha="center", va="center", color=FAINT)

    def fitted(self, text: str) -> str:
        """As wide as the rows."""
        return fill(text, max(10, int((self.width - self.label) / 0.07)))  # inches per character


def _wrapped(label: str, width: int = 13, lines: int = 9) -> str:
    """A long label on up to so many lines, broken after hyphens, underscores and spaces, or where it must be."""
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
    """A text of one line without its middle where it is wider than so many characters."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    left = max(1, width // 2)
    return text[:left] + "\u2026" + text[len(text) - max(0, width - left - 1) :]


def drawable(frames: Tensor) -> Tensor:
    """Frames of floats or uint8 as float32 on the CPU; they may be predictions, and so leave [0, 1]."""
    check_units(frames, "frames")
    return as_floats(frames.detach()).float().cpu()


def pixels(image: Tensor) -> Any:
    """(C, H, W) -> uint8 array (H, W, 3); what is no number is black."""
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
    """A looping GIF of a figure; `draw(t)` brings it to frame t. A GIF has 256 colours: those of `keep`, at most 64,
    are among them."""
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
    """Which frames a GIF shows: all, or as many as memory should hold, evenly spread; and words that say so."""
    width, height = sheet.figure.get_size_inches() * sheet.figure.dpi
    times = evenly(n_frames, min(most, max(24, int(150e6 / (width * height)))))  # 150 MP, 3 bytes each
    return times, "" if len(times) == n_frames else f" ({len(times)} of {n_frames} frames are shown)"


def _with_palettes(shots: Sequence[Any], keep: Sequence[Any]) -> list[Any]:
    """uint8 arrays (H, W, 3) as images of 256 colours. Where few pixels have a colour, a palette by population would
    have greys alone: then 160 of the colours are greys, and the others are for those pixels."""
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
    """Which of a few colours (M, 3) is nearest to each of (N, 3)."""
    import numpy as np

    parts = np.array_split(colours.astype(np.int16), len(colours) // 10_000 + 1)  # else N x M numbers at once
    return np.concatenate([np.abs(part[:, None] - few).sum(-1).argmin(1) for part in parts])


def _quantized(image: Any, kept: Any) -> Any:
    """With its own palette, which has the `kept` colours (N, 3) first."""
    import numpy as np
    from PIL import Image

    if not len(kept):
        return image.quantize(256)
    colours = Image.new("P", (1, 1))
    colours.putpalette(np.concatenate([kept, _palette(image, 256 - len(kept))]).ravel().tolist())
    return image.quantize(palette=colours, dither=Image.Dither.NONE)


def _palette(image: Any, count: int) -> Any:
    """(up to `count`, 3): the colours that stand for an image's best."""
    import numpy as np

    return np.array(image.quantize(count).getpalette()).reshape(-1, 3)[:count]


def saved(figure: Any, path: PathLike) -> Path:
    with write_atomically(path) as part:
        figure.savefig(part, format="png", dpi=figure.dpi)
    return Path(path)
