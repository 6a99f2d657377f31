"""One bilinear tap: the cell it falls in, the weights of its corners, and their derivatives."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bilinear_cell(place, offset, reach):
    """The integer place plus the offset's whole part, and its fraction in [0, 1).

    The floor is taken on the offset alone, which is exact; its derivative is the right one at integers. Offsets beyond
    `reach` are moved to it, which keeps inf and 1e7 in an integer's range and changes nothing as long as reach >= size +
    k: the whole cell lies outside of the image before and after. nan stays in the fraction.
    """
    offset = tl.where(offset > reach, reach, offset)
    offset = tl.where(offset < -reach, -reach, offset)
    whole = tl.floor(offset)
    return place + tl.where(whole == whole, whole, 0).to(tl.int32), offset - whole


@triton.jit
def corners_inside(row, col, exists, height, width):
    """Whether each corner of a cell is in the image, by (row, column)."""
    top, bottom = exists & (row >= 0) & (row < height), exists & (row >= -1) & (row < height - 1)
    left, right = (col >= 0) & (col < width), (col >= -1) & (col < width - 1)
    return top & left, top & right, bottom & left, bottom & right


@triton.jit
def bilinear_weights(row_fraction, col_fraction):
    row_rest, col_rest = 1 - row_fraction, 1 - col_fraction
    return row_rest * col_rest, row_rest * col_fraction, row_fraction * col_rest, row_fraction * col_fraction


@triton.jit
def bilinear_row_derivative(col_fraction, q00, q01, q10, q11):
    return (1 - col_fraction) * (q10 - q00) + col_fraction * (q11 - q01)


@triton.jit
def bilinear_col_derivative(row_fraction, q00, q01, q10, q11):
    return (1 - row_fraction) * (q01 - q00) + row_fraction * (q11 - q10)
