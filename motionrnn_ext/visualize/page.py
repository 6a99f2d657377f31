"""What all pictures share: the style, a page of labelled rows of frames, and saving."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from torch import Tensor

from ..pixels import as_floats, check_units

PathLike = str | os.PathLike[str]

INK, FAINT, PAPER, ARROW = "#24292f", "#8b949e", "#ffffff", "#ff9f43"
# one hue per model, in order; they differ in lightness too
HUES = ("#0b6bcb", "#d4570a", "#0f8a5f", "#8a4fbf", "#b0892a", "#c2407e")


def style(dots_per_inch: int = 150) -> AbstractContextManager[None]:
    """All pictures' matplotlib settings: `with style(): ...`."""
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
    }  # fmt: skip
    return mpl.rc_context(settings)


def hues(labels: Any) -> list[str]:
    return [HUES[i % len(HUES)] for i in range(len(labels))]


class Sheet:
    """Rows of equal cells under headings, laid out from the top in inches; a label left of each row."""

    GAP, HEAD, WIDEST, LARGEST_CELL = 0.045, 0.27, 7.9, 2.1

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
        self.cell = min(self.WIDEST / n_columns, self.LARGEST_CELL)
        self.width = label + max(n_columns * self.cell, narrowest)
        self.cell_height = (self.cell - self.GAP) * frames.shape[-2] / frames.shape[-1] + self.GAP
        self.height = n_heads * self.HEAD + n_rows * self.cell_height + foot
        self.figure = Figure(figsize=(self.width, self.height))
        self.top = self.height  # of what is laid out next

    def heads(self, texts: Sequence[str], colours: Sequence[str] | None = None, **looks: Any) -> None:
        looks = {"size": 8.5, "ha": "center", **looks}
        self.top -= self.HEAD
        for i, text in enumerate(texts):
            x = self.label + i * self.cell + (self.cell - self.GAP) / 2
            colour = colours[i] if colours else FAINT
            self.figure.text(x / self.width, (self.top + 0.06) / self.height, text, color=colour, **looks)

    def row(self, images: Sequence[Tensor] | Tensor, label: str = "", **looks: Any) -> list[Any]:
        """The cells' axes, each with its image."""
        self.top -= self.cell_height
        y = (self.top + self.cell_height / 2) / self.height
        looks = {"size": 9.5, "ha": "right", "va": "center", **looks}
        self.figure.text((self.label - 0.12) / self.width, y, _wrapped(label), **looks)
        cells = []
        for i, image in enumerate(images):
            corner = ((self.label + i * self.cell) / self.width, (self.top + self.GAP) / self.height)
            size = ((self.cell - self.GAP) / self.width, (self.cell_height - self.GAP) / self.height)
            axes = self.figure.add_axes((*corner, *size))
            axes.set_axis_off()
            axes.imshow(pixels(image), interpolation="nearest", aspect="auto")
            cells.append(axes)
        return cells

    def foot(self, text: str = "") -> Any:
        """A text below the rows, on as many lines as it takes."""
        text = fill(text, int((self.width - self.label) / 0.07))  # inches per character
        x = (self.label + self.width - self.GAP) / 2 / self.width
        y = self.foot_height / 2 / self.height
        return self.figure.text(x, y, text, size=9, ha="center", va="center", color=FAINT)


def _wrapped(label: str, width: int = 13) -> str:
    """A long label on several lines, broken after hyphens and spaces."""
    lines = [""]
    for part in label.replace("-", "-\n").replace(" ", " \n").split("\n"):
        if lines[-1] and len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines)


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
    n_frames: int,
    fps: float,
    keep: Sequence[Any] = (),
) -> Path:
    """A looping GIF of a figure; `draw(t)` brings it to frame t. A GIF has 256 colours: those of `keep`, at most 64,
    are among them."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas, shots = FigureCanvasAgg(figure), []
    for t in range(n_frames):
        draw(t)
        canvas.draw()
        shots.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    path = prepared(path)
    first, *others = _with_palettes(shots, keep)
    options = {"duration": 1000 / fps, "loop": 0, "optimize": False, "disposal": 1}
    first.save(path, "GIF", save_all=True, append_images=others, **options)
    return path


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
        distance = np.abs(shot[where].astype(int)[:, None] - few).sum(-1)
        index[where] = 160 + distance.argmin(1)
        images.append(Image.fromarray(index))
        images[-1].putpalette(palette)
    return images


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


def prepared(path: PathLike) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def saved(figure: Any, path: PathLike) -> Path:
    path = prepared(path)
    figure.savefig(path, format="png", dpi=figure.dpi)
    return path
