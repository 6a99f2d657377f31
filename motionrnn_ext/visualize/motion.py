"""Pictures of the motion trend as arrows, and moving pictures of arrows and taps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .page import ARROW, PAPER, PathLike, Sheet, drawable, lines_of, moments, pixels, recorded, saved, style
from .radar import Scale
from .taps import LONGEST, busiest, chosen_times, draw_taps, outside, sampling_points, tap_colours, tap_key


def trend_field(trend: Tensor, frame_size: tuple[int, int]) -> Tensor:
    """Return the mean displacement in a motion trend or an offset map, in pixels of the frame.

    A trend has 2K channels: first the K row offsets of the neighbourhood's taps, then their K column offsets, in pixels
    of its own map (h', w'). A map pixel covers H/h' x W/w' frame pixels, which is 2*patch_size for MotionGRU's map of
    half resolution. The result is the mean over the K taps. A displacement points from a position to the place where
    the layer reads its features, so features move from the arrow's head to its start.

    Args:
        trend: (..., 2K, h', w').
        frame_size: (H, W).

    Returns:
        float32 (..., 2, h', w') on the CPU: the rows (down), then the columns (right).

    Raises:
        ValueError: the number of channels is odd, or there are fewer than three dimensions.
    """
    if trend.ndim < 3 or trend.shape[-3] < 2 or trend.shape[-3] % 2:
        raise ValueError(
            f"trend must be (..., 2K, h', w'), K row then K column offsets; got {tuple(trend.shape)}"
        )
    pixel = [size / n for size, n in zip(frame_size, trend.shape[-2:], strict=True)]
    halves = trend.detach().float().cpu().chunk(2, dim=-3)
    return torch.stack([half.mean(-3) * size for half, size in zip(halves, pixel, strict=True)], -3)


def arrows(
    path: PathLike,
    frames: Tensor,
    trends: Mapping[str, Tensor],
    times: Sequence[int] | None = None,
    magnify: float | None = None,
    what: str = "motion trend",
    dbz: Scale | None = None,
) -> Path:
    """Draw motion trends as arrows over their frames as a PNG file, with a row per entry and a column per time.

    An arrow starts at its map pixel and points to the place that the layer reads (see `trend_field`). Arrows whose
    drawn length is less than a hundredth of the frame are left out.

    Args:
        path: the file to write.
        frames: (T, C, H, W).
        trends: a mapping from labels to trends or offset maps (T', 2K, h', w') with T' <= T, for example one per
            MotionRNN interface; entry t belongs to frame t.
        times: the t to show, six in a line; None for six, evenly spread. If there is no room for all, some are shown,
            evenly spread, and a line above states how many.
        magnify: the drawn length over the true length, which stands above each column. None takes, for each column,
            the power of two that brings its longest arrows to about one map pixel, because trends grow by orders of
            magnitude along a sequence.
        what: the arrows' name in the footer.
        dbz: see `strip`.

    Returns:
        The file's path.

    Raises:
        ValueError: frames or trends have another shape.
    """
    if frames.ndim != 4 or not trends:
        raise ValueError(f"frames must be (T, C, H, W) with one trend at least; got {tuple(frames.shape)}")
    n_times = min(len(frames), *(len(trend) for trend in trends.values()))
    for name, trend in trends.items():
        if trend.ndim != 4 or len(trend) > len(frames):
            raise ValueError(
                f"trends[{name!r}] must be (T' <= {len(frames)}, 2K, h', w'); got {tuple(trend.shape)}"
            )
    times, fewer = chosen_times(times, n_times, LONGEST, len(trends), frames)
    height, width = frames.shape[-2:]
    fields = {name: trend_field(trend[times], (height, width)) for name, trend in trends.items()}
    factors = [magnify or _factor([field[i] for field in fields.values()], width) for i in range(len(times))]
    lines = lines_of(len(times), LONGEST)
    with style():
        rows = len(lines) * len(fields)
        sheet = Sheet(
            lines[0].stop, rows, frames, n_heads=len(lines) + bool(fewer), foot=0.42, narrowest=3.1, dbz=dbz
        )
        if fewer:
            sheet.title(fewer)
        for line in lines:
            heads = zip(times[line], factors[line], strict=True)
            sheet.heads([f"frame {t + 1}, {_times(factor)}" for t, factor in heads])
            for name, field in fields.items():
                panels = sheet.row(drawable(frames[times[line]], dbz) * 0.7, name, weight="bold")
                for axes, displacement, factor in zip(panels, field[line], factors[line], strict=True):
                    _quiver(axes, displacement * factor, height, width, _colour(dbz))
        text = f"arrows: {what} in frame pixels, scaled as stated above each column"
        sheet.foot(text if dbz is None else f"{text}; frames are darkened")
        return saved(sheet.figure, path)


def motion_gif(
    path: PathLike,
    frames: Tensor,
    trends: Mapping[str, Tensor],
    offsets: Mapping[str, Tensor],
    *,
    masks: Mapping[str, Tensor] | None = None,
    positions: int = 3,
    fps: float = 3,
    what: str = "motion trend",
    dbz: Scale | None = None,
) -> Path:
    """Draw frames, their motion trends and their taps as a looping GIF file, with a row per entry.

    A row shows the plain frame, the frame with the trend's arrows, and the frame with the taps. The factor of the
    arrows' length is chosen for each frame; it stands below, with the number of taps that lie outside of the frame.

    Args:
        path: the file to write.
        frames: (T, C, H, W).
        trends: a mapping from labels to trends (T', 2K, h', w') with T' <= T, see `arrows`.
        offsets: a mapping from the same labels to offset maps (T', 2K, h', w'), see `taps`.
        masks: a mapping from the same labels to the taps' weights (T', K, h', w') in [0, 1]; None draws equal dots.
        positions: the number of map positions per frame whose taps are shown, see `taps`.
        fps: frames per second.
        what: the arrows' name in the heading.
        dbz: see `strip`.

    Returns:
        The file's path.
    """
    size, n_times = (frames.shape[-2], frames.shape[-1]), min(map(len, (*trends.values(), *offsets.values())))
    frames = drawable(frames[:n_times])
    fields = {name: trend_field(trend, size) for name, trend in trends.items()}
    points = {name: sampling_points(offset, size) for name, offset in offsets.items()}
    maps = {name: (point.shape[-2], point.shape[-1]) for name, point in points.items()}
    places = {name: busiest(frames, maps[name], positions) for name in points}
    frames = drawable(frames, dbz)
    with style(dots_per_inch=100):
        sheet = Sheet(3, len(fields), frames, n_heads=1, foot=0.45, dbz=dbz)
        sheet.heads(["frame", what, "taps"], size=10, weight="bold")
        rows = {name: sheet.row([frames[0]] * 3, name, weight="bold") for name in fields}
        moving, note = moments(sheet, n_times, most=150)
        caption = sheet.foot()
        artists: list[Any] = []
        n_taps = len(next(iter(points.values()))[0])
        tap_key(sheet, n_taps)

        def draw(t: int) -> None:
            while artists:
                artists.pop().remove()
            factor = _factor([field[t] for field in fields.values()], size[1])
            beyond = torch.zeros(2, dtype=torch.int64)
            for name, (plain, left, right) in rows.items():
                for axes, light in ((plain, 1.0), (left, 0.7), (right, 0.6)):
                    axes.images[0].set_data(pixels(frames[t] * light))
                artists.append(_quiver(left, fields[name][t] * factor, *size, _colour(dbz)))
                weights = None if masks is None else masks[name][t]
                artists.extend(draw_taps(right, points[name][t], places[name][t], size, weights))
                beyond += outside(points[name][t], places[name][t], size)
            text = f"frame {t + 1} of {n_times}{note}, arrows {_times(factor)}"
            caption.set_text(sheet.fitted(f"{text}, {beyond[0]} of {beyond[1]} taps outside the frame"))

        return recorded(path, sheet.figure, draw, moving, fps, keep=[*tap_colours(n_taps), _colour(dbz)])


def _colour(dbz: Scale | None) -> str:
    """Return the arrows' colour, which none of the radar's colours below 75 dBZ is."""
    return ARROW if dbz is None else PAPER


def _factor(fields: list[Tensor], width: int) -> float:
    """Return the power of two that brings the longest arrows (2, h', w') to about one map pixel, or 1 without any."""
    longest = max(float(field.double().norm(dim=0).quantile(0.98)) for field in fields)
    if not 0 < longest < math.inf:
        return 1.0
    spacing = max(width / field.shape[-1] for field in fields)
    return 2.0 ** min(20, max(-20, math.floor(math.log2(spacing / longest))))


def _times(factor: float) -> str:
    """Return a factor as text, a multiplication or a division."""
    return f"\u00d7 {factor:.3g}" if factor >= 1 else f"\u00f7 {1 / factor:.3g}"


def _quiver(axes: Any, field: Tensor, height: int, width: int, colour: str) -> Any:
    """Draw finite arrows (2, h', w'), in frame pixels, on axes that show the frame, and return them."""
    rows, columns = field.shape[-2:]
    y = (torch.arange(rows) + 0.5) * height / rows - 0.5
    x = (torch.arange(columns) + 0.5) * width / columns - 0.5
    y, x = torch.meshgrid(y, x, indexing="ij")
    # Long arrows are shortened and keep their direction: Agg draws up to about 10^4 pixels.
    length, reach = field.double().norm(dim=0), 4.0 * math.hypot(height, width)
    field = field * (reach / length.clamp(min=reach)).nan_to_num()
    drawn = (length >= width / 100) & length.isfinite()
    down, right = field[:, drawn]
    drawn_arrows = axes.quiver(
        x[drawn], y[drawn], right, down, angles="xy", scale_units="xy", scale=1, units="width", width=0.009,
        color=colour, headwidth=3.5, headlength=3.5, headaxislength=3.2, minshaft=1.6, minlength=0,
    )  # fmt: skip
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return drawn_arrows
