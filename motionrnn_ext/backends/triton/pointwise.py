"""The layout of a pointwise kernel's operands: rows of `inner` contiguous elements.

A row is a batch entry of a contiguous tensor, or a pixel of a channels_last one. A tensor of several streams, such as
packed gates, holds them one after another in each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import format_after, is_channels_last, is_dense, pixel_distance
from .launch import Block, in_blocks, launch, log2_ceil
from .scalar import index, narrow, widen


@triton.jit
def elements(rows, inner, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr):
    """Return this program's rows (ROWS, 1), its columns (1, INNER), and whether each element exists (ROWS, INNER).

    ROWS = 0 means that there is one row in all. The division that finds a program's row is left out then, which is a
    tenth of a kernel's instructions.
    """
    program = index(tl.program_id(0), WIDE)
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
    """Return elements in the dtype of arithmetic, 0 where they are not inside."""
    return widen(tl.load(tensor + (row * row_stride + at), mask=inside, other=0))


@triton.jit
def store(tensor, row_stride, row, at, inside, value):
    """Store elements that are inside, in the tensor's dtype."""
    tl.store(tensor + (row * row_stride + at), narrow(value, tensor.dtype.element_ty), mask=inside)


def launch_pointwise(
    kernel: Any,
    inputs: Sequence[Tensor],
    outputs: Sequence[tuple[int, torch.dtype]],
    *parameters: float,
    leader: int = 0,
    channels: int | None = None,
    **constants: bool,
) -> list[Tensor]:
    """Launch `kernel(*inputs, *outputs, *input strides, rows, inner, *parameters, **constants)`; return the outputs.

    outputs: the number of streams and the dtype of each; one of no stream is empty, and the kernel does not write it.
    leader: the index of the input whose memory format they follow. channels: those of one stream, if the leader has
    several.
    """
    first = inputs[leader]
    channels = first.shape[1] if channels is None else channels
    is_last = format_after(first) is torch.channels_last
    inputs = [_readable(t, is_last) for t in inputs]
    made = [
        torch.empty(
            (first.shape[0], streams * channels, *first.shape[2:]),
            dtype=dtype,
            device=first.device,
            memory_format=torch.channels_last if is_last else torch.contiguous_format,
        )
        if streams
        else first.new_empty(0, dtype=dtype)
        for streams, dtype in outputs
    ]
    total = first.shape[0] * channels * first.shape[2:].numel()
    if total == 0:
        return made
    inner = channels if is_last else total // first.shape[0]
    rows = total // inner
    strides = [pixel_distance(t) if is_last else t.stride(0) for t in inputs]
    if all(stride == inner for stride in strides) and all(streams == 1 for streams, _ in outputs):
        # There is no gap anywhere, so that all elements are one row.
        rows, inner = 1, total
    ends = [(rows - 1) * stride + t.shape[1] // channels * inner for t, stride in zip(inputs, strides)]
    farthest = max(ends + [streams * total for streams, _ in outputs])

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


def _readable(t: Tensor, is_last: bool) -> Tensor:
    """Return t if it can be read in place, else a copy."""
    if not is_last:
        return t if is_dense(t, range(t.dim() - 1, 0, -1)) else t.contiguous()
    return t if is_channels_last(t) else t.contiguous(memory_format=torch.channels_last)
