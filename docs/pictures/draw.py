"""Draws the SVGs of this folder, or of a folder that is named: `python docs/pictures/draw.py [FOLDER]`.

They are plain text, the same in every run. Each has a background of its own, so that it can be read on
light and dark pages, and names generic fonts alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

INK, SOFT, GRID, PAPER = "#1f2933", "#52606d", "#cbd2d9", "#fbfbf9"
BLUE, ORANGE, GREEN, RED = "#1d6fb8", "#c65d07", "#2b8a3e", "#b3261e"


class Picture:
    def __init__(self, width: int, height: int, title: str) -> None:
        self.size, self.title, self.parts = (width, height), title, []

    def box(self, x, y, width, height, fill="none", stroke=GRID, line=1.0, opacity=1.0):
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" '
            f'fill-opacity="{opacity:g}" stroke="{stroke}" stroke-width="{line:g}"/>'
        )

    def dot(self, x, y, radius, fill):
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}"/>')

    def line(self, x0, y0, x1, y1, stroke=INK, line=1.5, arrow=True):
        end = f' marker-end="url(#{stroke[1:]})"' if arrow else ""
        self.parts.append(
            f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" stroke="{stroke}" stroke-width="{line:g}"{end}/>'
        )

    def text(self, x, y, words, fill=INK, size=13, anchor="start", mono=False):
        family = "monospace" if mono else "sans-serif"
        words = words.replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{fill}" font-size="{size}" font-family="{family}" '
            f'text-anchor="{anchor}">{words}</text>'
        )

    def svg(self) -> str:
        width, height = self.size
        heads = "".join(
            f'<marker id="{colour[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
            for colour in (INK, SOFT, BLUE, ORANGE, GREEN, RED)
        )
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" aria-label="{self.title}">\n<defs>{heads}</defs>\n'
            f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>\n{body}\n</svg>\n'
        )


def taps() -> Picture:
    """A tile of 16 pixels, the nine taps of one of them, and a cell's four corners."""
    p, cell, left, top = Picture(760, 430, "A tile of 16 pixels and the nine taps of one pixel"), 26, 24, 92
    rows, columns, row, col = 11, 20, 4, 9

    def at(r, c):  # the centre of a pixel
        return left + (c + 0.5) * cell, top + (r + 0.5) * cell

    p.text(left, 28, "A tile is 16 pixels in memory order. Its taps may fall anywhere.", size=15)
    p.text(left, 82, "The map, 11 rows of 20 pixels", SOFT)
    for r in range(rows):
        for c in range(columns):
            p.box(left + c * cell, top + r * cell, cell, cell)
    for c in range(16):
        p.box(left + c * cell, top + row * cell, cell, cell, BLUE, BLUE, 1, 0.18)
    moves = [
        (-1.6, -0.4),
        (-1.2, 0.3),
        (-5.2, 0.6),
        (0.3, -1.5),
        (0.35, 0.4),
        (0.2, 1.3),
        (1.4, -0.8),
        (1.6, 0.2),
        (1.1, 1.4),
    ]
    for n, (down, right) in enumerate(moves):
        place_row, place_col = row + n // 3 - 1, col + n % 3 - 1
        x0, y0 = at(place_row, place_col)
        x1, y1 = at(place_row + down, place_col + right)
        outside = place_row + down < -1
        p.line(x0, y0, x1, y1, RED if outside else ORANGE)
        p.dot(x0, y0, 3, SOFT)
        p.dot(x1, y1, 4, RED if outside else ORANGE)
        p.text(x1 + 6, y1 + 4, str(n), RED if outside else ORANGE, 12)
    lower = row + 1 + 1, col + 1 + 1  # the cell of tap 8: floor of 6.1 and of 11.4
    for r in (lower[0], lower[0] + 1):
        for c in (lower[1], lower[1] + 1):
            p.box(left + c * cell + 1, top + r * cell + 1, cell - 2, cell - 2, GREEN, GREEN, 1.5, 0.25)
    x, y = left + columns * cell + 20, top + 14
    for colour, words in (
        (BLUE, "the tile: 16 pixels"),
        (SOFT, "p + p_n, before the offset"),
        (ORANGE, "p + p_n + F[n](p), the tap"),
        (GREEN, "four corners of tap 8"),
        (RED, "tap 2: outside, reads 0"),
    ):
        p.dot(x, y - 4, 5, colour)
        p.text(x + 12, y, words, size=12)
        y += 24
    p.text(left, 402, "A corner inside of the map is an index, one outside is -1 and is not loaded.", SOFT)
    p.text(left, 420, "A tap on the border has corners of both kinds.", SOFT)
    return p


def lanes() -> Picture:
    """Who loads what, bfloat16 and 16 channels."""
    p = Picture(760, 330, "How the 32 lanes of a warp share 16 pixels of 16 channels")
    p.text(24, 28, "One tap, one corner, bfloat16, 16 channels, channels_last: 32 bytes per pixel", size=15)
    left, top, width, height = 150, 70, 120, 22
    colours = (BLUE, ORANGE, GREEN, RED)
    for t, colour in enumerate(colours):
        p.text(left + (t + 0.5) * width, 58, f"channels {4 * t}..{4 * t + 3}", colour, 12, "middle")
    for i, (name, g) in enumerate((("0", 0), ("1", 1), ("2..7", None), ("8", 0), ("9", 1), ("10..15", None))):
        y = top + i * (height + 6)
        p.text(left - 14, y + 15, f"pixel {name}", INK, 13, "end")
        for t, colour in enumerate(colours):
            p.box(left + t * width, y, width - 4, height, colour, colour, 1, 0.15)
            lane = f"lane {4 * g + t}" if g is not None else "..."
            p.text(left + (t + 0.5) * width - 2, y + 15, lane, INK, 12, "middle")
    p.text(
        24,
        262,
        "lane = 4 g + t has the pixels g and g + 8. The four lanes of a pixel read 8 bytes each,",
        SOFT,
    )
    p.text(
        24,
        280,
        "side by side: one sector of memory. What a lane interpolates is its part of mma's first",
        SOFT,
    )
    p.text(24, 298, "operand, so that no sample goes through shared memory.", SOFT)
    return p


def scatter() -> Picture:
    """The gradient of x: two taps that share a corner."""
    p, cell, left, top = Picture(760, 330, "Backward: each tap adds to its four corners"), 52, 40, 66
    p.text(24, 28, "Backward: each tap adds  mask x weight x grad_column  to its four corners", size=15)
    for r in range(4):
        for c in range(6):
            p.box(left + c * cell, top + r * cell, cell, cell)
    for (y, x), colour in (((1.3, 1.4), BLUE), ((1.7, 2.2), ORANGE)):
        x0, y0 = left + (x + 0.5) * cell, top + (y + 0.5) * cell
        for r in (int(y), int(y) + 1):
            for c in (int(x), int(x) + 1):
                share = (1 - abs(y - r)) * (1 - abs(x - c))
                p.box(
                    left + c * cell + 3,
                    top + r * cell + 3,
                    cell - 6,
                    cell - 6,
                    colour,
                    colour,
                    1.5,
                    0.4 * share,
                )
                p.line(x0, y0, left + (c + 0.5) * cell, top + (r + 0.5) * cell, colour)
                p.text(
                    left + c * cell + (6 if colour == BLUE else cell - 6),
                    top + r * cell + (16 if colour == BLUE else cell - 8),
                    f"{share:.2f}",
                    colour,
                    11,
                    "start" if colour == BLUE else "end",
                )
        p.dot(x0, y0, 5, colour)
    x, y = left + 6 * cell + 28, top + 14
    for colour, words in (
        (BLUE, "a tap of one pixel, in the cell (1, 1)"),
        (ORANGE, "a tap of another, in the cell (1, 2)"),
    ):
        p.dot(x, y - 4, 5, colour)
        p.text(x + 12, y, words, size=12)
        y += 24
    for words in (
        "Column 2 gets addends of both,",
        "whichever warp or block they are in.",
        "",
        "By default: red.global.add of floats.",
        "Deterministic: multiples of a power",
        "of two, added as 64-bit integers.",
    ):
        p.text(x, y + 8, words, SOFT, 12)
        y += 19
    p.text(24, 310, "The numbers are bilinear weights; those of a tap sum to 1.", SOFT)
    return p


def gates() -> Picture:
    """A block's tile for 3x3 gates, and what a product of the tensor cores takes of it."""
    p, cell, left, top = Picture(760, 470, "A tile of the gates and one step of its sum"), 22, 40, 74
    p.text(24, 28, "A block of the gates: 16 pixels, with the pixels that their 3x3 taps reach", size=15)
    p.text(left, 62, "Staged in shared memory once: 3 x 18 pixels, all channels of each", SOFT, 12)
    colours = (BLUE, ORANGE, GREEN, RED)
    for r in range(3):
        for c in range(18):
            of_tile = r == 1 and 0 < c < 17
            p.box(left + c * cell, top + r * cell, cell, cell, BLUE if of_tile else "none", GRID, 1, 0.18)
    pixel, tap = 5, (0, 2)  # tap 2 of pixel 5: one row up, one column to the right
    x0, y0 = left + (pixel + 1.5) * cell, top + 1.5 * cell
    row, col = tap[0], pixel + tap[1]
    p.box(left + col * cell + 1, top + row * cell + 1, cell - 2, cell - 2, "none", INK, 2)
    p.line(x0, y0, left + (col + 0.5) * cell, top + (row + 0.5) * cell, INK)
    p.text(left + 18 * cell + 16, top + 14, "pixel 5 and its tap 2", INK, 12)
    p.text(left + 18 * cell + 16, top + 34, "blue: the tile itself", BLUE, 12)

    y = 172
    p.text(
        left,
        y,
        "One step of the sum, for bfloat16: four quads, which are four channels each, of every pixel",
        SOFT,
        12,
    )
    y += 14
    for t, colour in enumerate(colours):
        p.box(left + t * 84, y, 80, 24, colour, colour, 1, 0.18)
        p.text(left + t * 84 + 40, y + 16, f"channels {4 * t}..{4 * t + 3}", colour, 11, "middle")
    p.text(left + 4 * 84 + 8, y + 16, "of the pixel at the tap: 32 bytes", INK, 12)
    p.text(
        left, y + 46, "lane 4 g + t reads quad t, at pixel g and at pixel g + 8, as two words each", SOFT, 12
    )

    y = 262
    p.text(left, y - 8, "first operand", INK, 12)
    p.text(left + 200, y - 8, "second operand, packed", INK, 12)
    p.text(left + 440, y - 8, "sums, in registers", INK, 12)
    for g in range(8):
        for t, colour in enumerate(colours):
            p.box(left + t * 36, y + g * 16, 34, 14, colour, colour, 1, 0.18)
    p.text(left + 72, y + 144, "16 pixels x 16 channels", SOFT, 11, "middle")
    for t, colour in enumerate(colours):
        p.box(left + 216, y + t * 30, 110, 26, colour, colour, 1, 0.18)
        p.text(left + 271, y + t * 30 + 17, f"lanes 4 g + {t}", colour, 11, "middle")
    p.text(left + 271, y + 144, "16 channels x 8 columns", SOFT, 11, "middle")
    p.text(left + 170, y + 66, "x", INK, 16, "middle")
    p.text(left + 378, y + 66, "add to", INK, 12, "middle")
    for g in range(8):
        for t in range(4):
            p.box(left + 440 + t * 36, y + g * 16, 34, 14, SOFT, SOFT, 1, 0.12)
    p.text(left + 512, y + 144, "16 pixels x 8 gate channels", SOFT, 11, "middle")
    p.text(
        24,
        436,
        "A 3x3 gate of 16 channels takes nine such steps. Warp w has the columns of the tiles w and w + 4, so that",
        SOFT,
        12,
    )
    p.text(
        24,
        454,
        "the block's four warps make the 18 + 18 + 18 + 9 channels of u, r, z and the mask at once.",
        SOFT,
        12,
    )
    return p


def trend() -> Picture:
    """Three steps of the recurrence for F = D = 1, s(u) = 0.5, tanh z = 0."""
    p = Picture(760, 330, "Motion filter and trend over three steps")
    p.text(24, 28, "F_t = F' + D':  F = D = 1 at the start, s(u) = 0.5, tanh(z) = 0, alpha = 0.5", size=15)
    left, bottom, scale, width = 90, 270, 72, 90
    for value in (0, 1, 2, 3):
        y = bottom - value * scale
        p.line(left - 10, y, left + 4 * 140, y, GRID, 1, arrow=False)
        p.text(left - 18, y + 4, str(value), SOFT, 12, "end")
    filter_, trend_ = 1.0, 1.0
    p.box(left, bottom - scale, width, scale, SOFT, SOFT, 1, 0.25)
    p.text(left + width / 2, bottom - scale / 2, "F = 1", INK, 13, "middle")
    p.text(left + width / 2, bottom + 22, "start", SOFT, 13, "middle")
    for step in (1, 2, 3):
        transient, trend_ = filter_ + 0.5 * (0 - filter_), trend_ + 0.5 * (filter_ - trend_)
        filter_ = transient + trend_
        x = left + step * 140
        p.box(x, bottom - trend_ * scale, width, trend_ * scale, ORANGE, ORANGE, 1, 0.3)
        p.text(x + width / 2, bottom - trend_ * scale / 2 + 4, f"D' = {trend_:g}", INK, 13, "middle")
        p.box(x, bottom - filter_ * scale, width, transient * scale, BLUE, BLUE, 1, 0.3)
        p.text(
            x + width / 2,
            bottom - (trend_ + transient / 2) * scale + 4,
            f"F' = {transient:g}",
            INK,
            13,
            "middle",
        )
        p.text(x + width / 2, bottom - filter_ * scale - 7, f"F = {filter_:g}", INK, 13, "middle")
        p.text(x + width / 2, bottom + 22, f"step {step}", SOFT, 13, "middle")
    p.text(
        24,
        316,
        "D' follows the F of the step before. Both add up, so that F grows until max_offset bounds it.",
        SOFT,
    )
    return p


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for draw in (taps, lanes, scatter, gates, trend):
        (folder / f"{draw.__name__}.svg").write_text(draw().svg())
