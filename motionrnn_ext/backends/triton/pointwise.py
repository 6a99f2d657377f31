"""Where the elements of a pointwise kernel lie: rows of `inner` contiguous elements, a batch entry of a contiguous
tensor each, or a pixel of a channels_last one. Tensors of several streams hold them one after another in each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import format_after, is_channels_last, is_dense, pixel_distance
from .launch import Block, in_blocks, launch, log2_ceil
from .scalar import narrow, widen


@triton.jit
def elements(rows, inner, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr):
    """This program's part of the rows: (ROWS, 1) rows, (1, INNER) places in them, (ROWS, INNER) whether they exist.

    No ROWS: there is one row in all, and no division to find the program's, a tenth of a kernel's instructions.
    """
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    if ROWS:
        blocks = tl.cdiv(inner, INNER)
        row = program // blocks * ROWS + tl.arange(0, ROWS)[:, None]
        at = program % blocks * INNER + tl.arange(0, INNER)[None, :]
        return row, at, (row < rows) & (at < inner)
    else:
        at = program * INNER + tl.arange(0, INNER)[None, :]
        return 0, at, at < inner


@triton.jit
def load(tensor, row_stride, row, at, inside):
    return widen(tl.load(tensor + (row * row_stride + at), mask=inside, other=0))


@triton.jit
def store(tensor, row_stride, row, at, inside, value):
    tl.store(tensor + (row * row_stride + at), narrow(value, tensor.dtype.element_ty), mask=inside)


def run(
    kernel: Any,
    inputs: Sequence[Tensor],
    outputs: Sequence[tuple[int, torch.dtype]],
    *parameters: float,
    leader: int = 0,
    channels: int | None = None,
    **constants: bool,
) -> list[Tensor]:
    """Launch `kernel(*inputs, *outputs, *input strides, rows, inner, *parameters, **constants)`, return the
    outputs.

    outputs: streams and dtype of each. leader: the input whose memory format they follow. channels: of one stream, if
    the leader has several.
    """
    first = inputs[leader]
    channels = first.shape[1] if channels is None else channels
    rows_of_pixels = format_after(first) is torch.channels_last
    inputs = [_as_rows(t, rows_of_pixels) for t in inputs]
    made = [
        torch.empty(
            (first.shape[0], streams * channels, *first.shape[2:]),
            dtype=dtype,
            device=first.device,
            memory_format=torch.channels_last if rows_of_pixels else torch.contiguous_format,
        )
        for streams, dtype in outputs
    ]
    total = first.shape[0] * channels * first.shape[2:].numel()
    if total == 0:
        return made
    inner = channels if rows_of_pixels else total // first.shape[0]
    rows = total // inner
    strides = [pixel_distance(t) if rows_of_pixels else t.stride(0) for t in inputs]
    if all(stride == inner for stride in strides) and all(streams == 1 for streams, _ in outputs):
        rows, inner = 1, total  # no gap anywhere: one long row
    farthest = max([3 * total, *[(rows - 1) * stride + inner for stride in strides]])

    def in_block(block: Block) -> list[Tensor]:
        in_row = min(2 ** log2_ceil(inner), block.size)
        rows_at_once = 0 if rows == 1 else block.size // in_row
        programs = triton.cdiv(rows, rows_at_once or 1) * triton.cdiv(inner, in_row)
        launch(
            kernel, programs, *inputs, *made, *strides, rows, inner, *parameters,
            ROWS=rows_at_once, INNER=in_row, WIDE=farthest >= 2**31, **constants, **block.options,
        )  # fmt: skip
        return made

    return in_blocks("pointwise", 1, first, total, in_block, kernel.__name__)


def _as_rows(t: Tensor, rows_of_pixels: bool) -> Tensor:
    """t where it can be read in place, else a copy."""
    if not rows_of_pixels:
        return t if is_dense(t, range(t.dim() - 1, 0, -1)) else t.contiguous()
    return t if is_channels_last(t) else t.contiguous(memory_format=torch.channels_last)
