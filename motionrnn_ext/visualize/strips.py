"""Pictures of a clip and its predictions: a strip of frames, and a moving picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..pixels import check_range
from .page import (
    FAINT,
    INK,
    PathLike,
    Sheet,
    drawable,
    hues,
    lines_of,
    moments,
    pixels,
    recorded,
    saved,
    style,
)
from .radar import Scale

# The number of frames in a line of `strip`, for which their headings have room.
_LONGEST = 14


def strip(
    path: PathLike,
    frames: Tensor,
    predictions: Mapping[str, Tensor],
    n_input: int,
    *,
    dbz: Scale | None = None,
) -> Path:
    """Draw one clip as a PNG file: a row of inputs, a row of true futures and a row per model, under their lead times.

    More than 14 frames are continued in further lines. If there is no room for all frames, some are shown, evenly
    spread, and a line above states how many.

    Args:
        path: the file to write.
        frames: (T, C, H, W), inputs and true futures. With T = n_input the future is unknown, and its row is left out.
        predictions: a mapping from the models' labels to predictions (T - n_input, C, H, W).
        n_input: the number of inputs.
        dbz: the reflectivity of pixels 0 and 1 in dBZ, for frames of radar: they are drawn in the usual colours, with
            missing pixels in grey, above a bar of the colours. None draws frames as they are.

    Returns:
        The file's path.

    Raises:
        ValueError: frames or predictions have another shape, or frames leave [0, 1].
    """
    frames, predictions, n_future = _checked(frames, predictions, n_input, dbz)
    known = len(frames) > n_input
    # Inputs take a third of the page at most.
    given = Sheet.shown(n_input, _LONGEST, 3, frames)
    future = Sheet.shown(n_future, _LONGEST, known + len(predictions), frames)
    names = [f"t\u2212{n_input - 1 - i}" if i < n_input - 1 else "t" for i in given]
    before, after = lines_of(len(given), _LONGEST), lines_of(len(future), _LONGEST)
    n_columns = max(line.stop - line.start for line in (*before, *after))
    n_rows = len(before) + len(after) * (known + len(predictions))
    fewer = _fewer(given, n_input, "inputs") + _fewer(future, n_future, "lead times")
    with style():
        sheet = Sheet(n_columns, n_rows, frames, n_heads=len(before) + len(after) + bool(fewer), dbz=dbz)
        if fewer:
            sheet.title(f"shown, evenly spread: {' and '.join(fewer)}")
        for line in before:
            sheet.heads(names[line])
            sheet.row(frames[given[line]], "input")
        for line in after:
            sheet.heads([f"t+{i + 1}" for i in future[line]])
            if known:
                sheet.row(frames[n_input:][future[line]], "truth", weight="bold")
            for hue, (name, prediction) in zip(hues(predictions), predictions.items(), strict=True):
                sheet.row(prediction[future[line]], name, weight="bold", color=hue)
        return saved(sheet.figure, path)


def _fewer(shown: list[int], count: int, what: str) -> list[str]:
    """Return words that say how many of `count` are shown, or nothing if all are."""
    return [f"{len(shown)} of {count} {what}"] if len(shown) < count else []


def gif(
    path: PathLike,
    frames: Tensor,
    predictions: Mapping[str, Tensor],
    n_input: int,
    fps: float = 4,
    *,
    dbz: Scale | None = None,
) -> Path:
    """Draw one clip as a looping GIF file: the truth and each model side by side, three in a line.

    All of them show the inputs first. If there are very many frames, some are shown, evenly spread, and the caption
    states how many.

    Args:
        path: the file to write.
        frames: (T, C, H, W), inputs and true futures. With T = n_input the future is unknown, and only the models are
            shown.
        predictions: a mapping from the models' labels to predictions (T - n_input, C, H, W).
        n_input: the number of inputs.
        fps: frames per second.
        dbz: see `strip`.

    Returns:
        The file's path.

    Raises:
        ValueError: frames or predictions have another shape, or frames leave [0, 1].
    """
    frames, predictions, n_future = _checked(frames, predictions, n_input, dbz)
    clips = [torch.cat([frames[:n_input], future]) for future in predictions.values()]
    titles, colours = [*predictions], hues(predictions)
    if len(frames) > n_input:
        clips, titles, colours = [frames, *clips], ["truth", *titles], [INK, *colours]
    lines = lines_of(len(clips), 3)
    with style(dots_per_inch=100):
        sheet = Sheet(lines[0].stop, len(lines), frames, n_heads=len(lines), label=0.1, foot=0.3, dbz=dbz)
        images = []
        for line in lines:
            sheet.heads(titles[line], colours[line], size=10, weight="bold")
            images += [axes.images[0] for axes in sheet.row([clip[0] for clip in clips[line]])]
        times, note = moments(sheet, n_input + n_future)
        caption = sheet.foot()

        def draw(t: int) -> None:
            for image, clip in zip(images, clips, strict=True):
                image.set_data(pixels(clip[t]))
            is_input = t < n_input
            text = f"input {t + 1} of {n_input}" if is_input else f"prediction t+{t + 1 - n_input}"
            caption.set_text(sheet.fitted(text + note))
            caption.set_color(FAINT if is_input else INK)

        return recorded(path, sheet.figure, draw, times, fps)


def _checked(
    frames: Tensor, predictions: Mapping[str, Tensor], n_input: int, dbz: Scale | None
) -> tuple[Tensor, dict[str, Tensor], int]:
    """Check shapes; return frames and predictions as they are drawn, and the number of predicted frames."""
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
    futures = {name: drawable(prediction, dbz) for name, prediction in predictions.items()}
    return drawable(frames, dbz), futures, n_future
