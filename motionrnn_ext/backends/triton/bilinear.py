"""One bilinear tap: its cell of four pixels, the weights of the cell's corners, and their derivatives."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bilinear_cell(place, offset, reach):
    """Return the integer place plus the offset's whole part, and the offset's fraction in [0, 1).

    The floor is taken of the offset alone, which is exact; its derivative is the right one at integers. Offsets beyond
    `reach` are moved to it, which keeps inf and 1e7 in an integer's range and changes nothing as long as
    reach >= size + k: the whole cell lies outside of the image before and after. nan stays in the fraction.
    """
    offset = tl.where(offset > reach, reach, offset)
    offset = tl.where(offset < -reach, -reach, offset)
    whole = tl.floor(offset)
    return place + tl.where(whole == whole, whole, 0).to(tl.int32), offset - whole


@triton.jit
def bilinear_corner(CORNER: tl.constexpr, row, col, row_fraction, col_fraction, exists, height, width):
    """Return whether a cell's corner is in the image, its weight, and the derivatives of that by row and column.

    CORNER: 0 upper left, 1 upper right, 2 lower left, 3 lower right.
    """
    row += CORNER // 2
    col += CORNER % 2
    inside = exists & (row >= 0) & (row < height) & (col >= 0) & (col < width)
    if CORNER // 2:
        by_row, d_row = row_fraction, 1
    else:
        by_row, d_row = 1 - row_fraction, -1
    if CORNER % 2:
        by_col, d_col = col_fraction, 1
    else:
        by_col, d_col = 1 - col_fraction, -1
    return inside, by_row * by_col, d_row * by_col, d_col * by_row
