"""A clip and its predictions: as a strip of frames, and moving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..pixels import check_range
from .page import FAINT, INK, PathLike, Sheet, drawable, hues, pixels, recorded, saved, style


def strip(path: PathLike, frames: Tensor, predictions: Mapping[str, Tensor], n_input: int) -> Path:
    """A PNG of one clip: a row of inputs, one of true futures, one per model; lead times above the columns.

    With T = n_input the future is not known and its row is left out, here and in `gif`.
    """
    frames, predictions, n_future = _checked(frames, predictions, n_input)
    known = len(frames) > n_input
    with style():
        sheet = Sheet(max(n_input, n_future), 1 + known + len(predictions), frames, n_heads=2)
        sheet.heads([f"t\u2212{n_input - i}" for i in range(1, n_input)] + ["t"])
        sheet.row(frames[:n_input], "input")
        sheet.heads([f"t+{i + 1}" for i in range(n_future)])
        if known:
            sheet.row(frames[n_input:], "truth", weight="bold")
        for hue, (name, prediction) in zip(hues(predictions), predictions.items(), strict=True):
            sheet.row(prediction, name, weight="bold", color=hue)
        return saved(sheet.figure, path)


def gif(
    path: PathLike, frames: Tensor, predictions: Mapping[str, Tensor], n_input: int, fps: float = 4
) -> Path:
    """A looping GIF of T frames: the truth and each model side by side; the inputs run first in all of them."""
    frames, predictions, n_future = _checked(frames, predictions, n_input)
    clips = [torch.cat([frames[:n_input], future]) for future in predictions.values()]
    titles, colours = [*predictions], hues(predictions)
    if len(frames) > n_input:
        clips, titles, colours = [frames, *clips], ["truth", *titles], [INK, *colours]
    with style(dots_per_inch=100):
        sheet = Sheet(len(clips), 1, frames, n_heads=1, label=0.1, foot=0.3)
        sheet.heads(titles, colours, size=10, weight="bold")
        images = [axes.images[0] for axes in sheet.row([clip[0] for clip in clips])]
        caption = sheet.foot()

        def draw(t: int) -> None:
            for image, clip in zip(images, clips, strict=True):
                image.set_data(pixels(clip[t]))
            is_input = t < n_input
            caption.set_text(f"input {t + 1} of {n_input}" if is_input else f"prediction t+{t + 1 - n_input}")
            caption.set_color(FAINT if is_input else INK)

        return recorded(path, sheet.figure, draw, n_input + n_future, fps)


def _checked(
    frames: Tensor, predictions: Mapping[str, Tensor], n_input: int
) -> tuple[Tensor, dict[str, Tensor], int]:
    """Both in float32 on the CPU, and how many frames are predicted."""
    n_future = len(frames) - n_input or max((len(p) for p in predictions.values()), default=0)
    if frames.ndim != 4 or frames.shape[1] not in (1, 3) or n_input < 1 or n_future < 1:
        shape = tuple(frames.shape)
        raise ValueError(
            "frames must be (T, 1 or 3, H, W) with n_input = T and predictions, "
            f"or 1 <= n_input < T; got {shape}, n_input {n_input}"
        )
    expected = (n_future, *frames.shape[1:])
    for name, prediction in predictions.items():
        if tuple(prediction.shape) != expected:
            raise ValueError(f"predictions[{name!r}] must be {expected}; got {tuple(prediction.shape)}")
    check_range(frames)
    futures = {name: drawable(prediction) for name, prediction in predictions.items()}
    return drawable(frames), futures, n_future
