"""The positions that the taps of a MotionGRU's warp read, as numbers and drawn over frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .page import FAINT, PAPER, PathLike, Sheet, drawable, evenly, lines_of, saved, style
from .radar import Scale

# The number of frames in a line, with room for headings such as "frame 123, × 1.05e+03".
LONGEST = 6


def sampling_points(offset: Tensor, frame_size: tuple[int, int]) -> Tensor:
    """Return the position that every tap reads, in pixels of the frame.

    Tap n = (i, j) of the k x k neighbourhood of map position (r, c), counted row by row from 0, reads the map at
    (r + i - (k-1)/2 + F[n], c + j - (k-1)/2 + F[K + n]). The middle of map pixel m lies at frame pixel
    (m + 1/2) H/h' - 1/2.

    Args:
        offset: F, (..., 2K, h', w'), K = k*k row offsets, then K column offsets, in pixels of the map.
        frame_size: (H, W).

    Returns:
        float32 (..., K, 2, h', w') on the CPU: the row (down), then the column (right).

    Raises:
        ValueError: the number of channels is not 2 k*k.
    """
    k = math.isqrt(offset.shape[-3] // 2) if offset.ndim >= 3 else 0
    if k < 1 or offset.shape[-3] != 2 * k * k:
        raise ValueError(
            f"offset must be (..., 2K, h', w') with K = k*k, K row then K column offsets; got {tuple(offset.shape)}"
        )
    tap = torch.arange(k, dtype=torch.float32) - (k - 1) / 2
    # The rows and the columns of the K taps.
    taps = (tap.repeat_interleave(k), tap.repeat(k))
    points = []
    for axis, half in enumerate(offset.detach().float().cpu().chunk(2, dim=-3)):
        n = half.shape[-2 + axis]
        place = torch.arange(n, dtype=torch.float32).view((n, 1) if axis == 0 else (1, n))
        points.append((place + taps[axis].view(-1, 1, 1) + half + 0.5) * (frame_size[axis] / n) - 0.5)
    return torch.stack(points, dim=-3)


def busiest(
    frames: Tensor, map_size: tuple[int, int], count: int, apart: int | None = None
) -> list[list[tuple[int, int]]]:
    """Return, for every frame, the map positions at which it differs most from the frame before.

    The first frame is compared with the next one.

    Args:
        frames: (T, C, H, W).
        map_size: (h', w').
        count: the largest number of positions per frame.
        apart: the smallest distance between positions in map pixels; None for a fifth of the map.

    Returns:
        A list of positions (row, column) for each frame.
    """
    apart = max(1, round(min(map_size) / 5)) if apart is None else apart
    frames = drawable(frames)
    change = frames.diff(dim=0).abs()
    change = torch.cat([change[:1], change]) if len(frames) > 1 else frames
    energy = F.adaptive_avg_pool2d(change.nan_to_num().mean(1, keepdim=True), map_size)
    return [_peaks(field, count, apart) for field in energy[:, 0]]


def _peaks(field: Tensor, count: int, apart: int) -> list[tuple[int, int]]:
    """Return the positions of up to `count` highest positive values of a field (h', w'); at least one position."""
    field = field.clone()
    found: list[tuple[int, int]] = []
    while len(found) < count and field.max() > -1:
        row, column = divmod(int(field.argmax()), field.shape[1])
        if found and field[row, column] <= 0:
            break
        found.append((row, column))
        field[max(0, row - apart + 1) : row + apart, max(0, column - apart + 1) : column + apart] = -1
    return found


def taps(
    path: PathLike,
    frames: Tensor,
    offsets: Mapping[str, Tensor],
    times: Sequence[int] | None = None,
    *,
    masks: Mapping[str, Tensor] | None = None,
    positions: int | Sequence[tuple[int, int]] = 3,
    dbz: Scale | None = None,
) -> Path:
    """Draw the positions that the taps read over the frames as a PNG file, with a row per entry and a column per time.

    A dot marks the position that a tap reads, in the tap's colour (see the key), and a line leads to it from the tap's
    position without motion. With masks, a dot's area is the tap's weight. A tap outside of the frame reads 0: only the
    line that leads there is drawn, and the footer counts it. Offsets that are not finite are left out.

    Args:
        path: the file to write.
        frames: (T, C, H, W).
        offsets: a mapping from labels to offset maps (T', 2K, h', w') with T' <= T, for example one per MotionRNN
            interface; entry t belongs to frame t.
        times: the t to show, six in a line; None for four, evenly spread. If there is no room for all, some are shown,
            as in `arrows`.
        masks: a mapping from labels to the taps' weights (T', K, h', w') in [0, 1].
        positions: positions (row, column) on the map, or the number of positions per frame at which the frame changes
            most.
        dbz: see `strip`.

    Returns:
        The file's path.

    Raises:
        ValueError: frames or offsets have another shape, or a position lies outside of the map.
    """
    if frames.ndim != 4 or not offsets:
        raise ValueError(f"frames must be (T, C, H, W) with one offset at least; got {tuple(frames.shape)}")
    for name, offset in offsets.items():
        if offset.ndim != 4 or len(offset) > len(frames):
            raise ValueError(
                f"offsets[{name!r}] must be (T' <= {len(frames)}, 2K, h', w'); got {tuple(offset.shape)}"
            )
    n_times = min(map(len, offsets.values()))
    times, fewer = chosen_times(times, n_times, 4, len(offsets), frames)
    lines, size = lines_of(len(times), LONGEST), (frames.shape[-2], frames.shape[-1])
    places = {name: _places(frames, offset, positions) for name, offset in offsets.items()}
    with style():
        rows, beyond = len(lines) * len(offsets), torch.zeros(2, dtype=torch.int64)
        sheet = Sheet(
            lines[0].stop, rows, frames, n_heads=len(lines) + bool(fewer), foot=0.56, narrowest=3.1, dbz=dbz
        )
        if fewer:
            sheet.title(fewer)
        for line in (times[line] for line in lines):
            sheet.heads([f"frame {t + 1}" for t in line])
            for name, offset in offsets.items():
                images = sheet.row(drawable(frames[line], dbz) * 0.6, name, weight="bold")
                points = sampling_points(offset[line], size)
                for i, (axes, t) in enumerate(zip(images, line, strict=True)):
                    weights = None if masks is None else masks[name][t]
                    draw_taps(axes, points[i], places[name][t], size, weights)
                    beyond += outside(points[i], places[name][t], size)
        text = "dots: where the taps read; lines: from where they would without motion"
        text += "" if masks is None else "; dot size: weight"
        text += "" if dbz is None else "; frames are darkened"
        sheet.foot(f"{text}; {beyond[0]} of {beyond[1]} taps lie outside the frame")
        tap_key(sheet, next(iter(offsets.values())).shape[1] // 2)
        return saved(sheet.figure, path)


def chosen_times(
    times: Sequence[int] | None, n_times: int, default: int, n_rows: int, frames: Tensor
) -> tuple[list[int], str]:
    """Return the times to show, `default` many if `times` is None, and words if there is no room for all of them."""
    if times is None:
        return evenly(n_times, default), ""
    shown = Sheet.shown(len(times), LONGEST, n_rows, frames)
    fewer = f"shown, evenly spread: {len(shown)} of {len(times)} frames" if len(shown) < len(times) else ""
    return [times[i] for i in shown], fewer


def _places(
    frames: Tensor, offset: Tensor, positions: int | Sequence[tuple[int, int]]
) -> list[list[tuple[int, int]]]:
    """Return the map positions to show in each frame; raise a ValueError if one lies outside of the map."""
    height, width = offset.shape[-2:]
    if isinstance(positions, int):
        return busiest(frames, (height, width), positions)
    for row, column in positions:
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"positions must lie on the map of {height}x{width}; got {(row, column)}")
    return [list(positions)] * len(frames)


def draw_taps(
    axes: Any,
    points: Tensor,
    places: Sequence[tuple[int, int]],
    frame_size: tuple[int, int],
    weights: Tensor | None,
) -> list[Any]:
    """Draw the taps of some map positions on axes that show the frame, and return the drawn artists.

    Args:
        axes: matplotlib's axes.
        points: the taps' sampling points (K, 2, h', w').
        places: positions (row, column) on the map.
        frame_size: (H, W).
        weights: the taps' weights (K, h', w') in [0, 1]; None draws equal dots.
    """
    (height, width), (rows, columns) = frame_size, points.shape[-2:]
    still = sampling_points(torch.zeros(2 * len(points), rows, columns), frame_size)
    colours, drawn = tap_colours(len(points)), []
    # Far points are brought nearer and keep their direction: Agg draws up to about 10^4 pixels.
    moved = points - still
    # (K, 1, h', w')
    length = moved.norm(dim=1, keepdim=True)
    reach = 4.0 * math.hypot(height, width)
    points = still + moved * (reach / length.clamp(min=reach)).nan_to_num()
    for row, column in places:
        finite = length[:, 0, row, column].isfinite()
        for n, colour in enumerate(colours):
            if not finite[n]:
                continue
            (y0, x0), (y, x) = still[n, :, row, column].tolist(), points[n, :, row, column].tolist()
            drawn += axes.plot(
                [x0, x], [y0, y], color=colour, linewidth=0.9, alpha=0.75, scalex=False, scaley=False
            )
            area = 14.0 if weights is None else 4.0 + 22.0 * float(weights[n, row, column])
            drawn.append(
                axes.scatter(x, y, s=area, color=colour, edgecolors=PAPER, linewidths=0.45, zorder=3)
            )
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return drawn


def outside(points: Tensor, places: Sequence[tuple[int, int]], frame_size: tuple[int, int]) -> Tensor:
    """Count the sampling points (K, 2, h', w') of some map positions outside of the frame, and the finite ones."""
    rows, columns = torch.tensor(places, dtype=torch.int64).view(-1, 2).T
    # (K, 2, places)
    found = points[:, :, rows, columns]
    highest = torch.tensor(frame_size).view(2, 1) - 0.5
    finite = found.isfinite().all(1)
    beyond = ((found < -0.5) | (found > highest)).any(1) & finite
    return torch.stack([beyond.sum(), finite.sum()])


def tap_colours(count: int) -> list[Any]:
    """Return a colour per tap of a k x k neighbourhood: its hue is the direction from the middle, which is white."""
    import colorsys

    k = math.isqrt(count)
    colours = []
    for n in range(count):
        down, right = n // k - (k - 1) / 2, n % k - (k - 1) / 2
        hue, far = math.atan2(down, right) / (2 * math.pi) % 1.0, max(abs(down), abs(right))
        colours.append(colorsys.hsv_to_rgb(hue, min(1.0, 0.75 * far), 1.0))
    return colours


def tap_key(sheet: Sheet, count: int) -> None:
    """Draw the key of the taps' colours, in their places, into the lower left corner."""
    side, k = 0.34, math.isqrt(count)
    bottom = sheet.bar_height + (sheet.foot_height - side) / 2
    corner = ((sheet.label - 0.12 - side) / sheet.width, bottom / sheet.height)
    axes = sheet.figure.add_axes((*corner, side / sheet.width, side / sheet.height))
    axes.set_axis_off()
    rows, columns = zip(*(divmod(n, k) for n in range(count)), strict=True)
    axes.scatter(columns, rows, s=16, c=tap_colours(count), edgecolors=FAINT, linewidths=0.5)
    axes.set(xlim=(-0.7, k - 0.3), ylim=(k - 0.3, -0.7))
