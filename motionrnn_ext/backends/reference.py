"""The specification of the ops in plain, differentiable PyTorch: any device, any layout, any order of derivative.

The arguments are those of `motionrnn_ext.ops`, which has checked them. The other backends are tested against this file.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .layouts import memory_format


def state_dtype(feature: torch.dtype) -> torch.dtype:
    """Return the dtype of motion state, coordinates and arithmetic for features of dtype `feature`."""
    return torch.float64 if feature == torch.float64 else torch.float32


def motion_reset(reset_logits: Tensor, offset: Tensor) -> Tensor:
    return (reset_logits.to(offset.dtype).sigmoid() * offset).to(reset_logits.dtype)


def bounded(offset: Tensor, max_offset: float) -> Tensor:
    """Return offset limited to [-max_offset, max_offset], without gradient at the bound.

    nan stays nan. A max_offset of inf sets no bound.
    """
    if max_offset == math.inf:
        return offset
    fixed = offset.detach()
    return torch.where(fixed.abs() >= max_offset, fixed.clamp(-max_offset, max_offset), offset)


def bounded_backward(grad: Tensor, new_offset: Tensor, max_offset: float) -> Tensor:
    """Return the gradient of the argument of `bounded`, from that of its result `new_offset`."""
    if max_offset == math.inf:
        return grad
    return grad.masked_fill(new_offset.detach().abs() >= max_offset, 0)


def motion_update(
    update_logits: Tensor,
    candidate_logits: Tensor,
    offset: Tensor,
    trend: Tensor,
    alpha: float | Tensor,
    max_offset: float = math.inf,
) -> tuple[Tensor, Tensor]:
    update, candidate = update_logits.to(offset.dtype).sigmoid(), candidate_logits.to(offset.dtype).tanh()
    transient = offset + update * (candidate - offset)
    trend = trend + alpha * (offset - trend)
    return bounded(transient + trend, max_offset), trend


def motion_gates(
    x: Tensor,
    offset: Tensor,
    trend: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    state_weight: Tensor,
    candidate_weight: Tensor,
    alpha: float | Tensor,
    max_offset: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor]:
    padding, motion = x_weight.shape[-1] // 2, offset.shape[1]
    from_x = F.conv2d(x, x_weight, x_bias, padding=padding)
    gates_x, candidate_x, mask = from_x.split((2 * motion, motion, from_x.shape[1] - 3 * motion), dim=1)
    gates = gates_x + F.conv2d(offset.to(x.dtype), state_weight, padding=padding)
    update, reset = gates.chunk(2, dim=1)  # (B, M, H, W) each
    candidate = candidate_x + F.conv2d(motion_reset(reset, offset), candidate_weight, padding=padding)
    return (*motion_update(update, candidate, offset, trend, alpha, max_offset), mask)


def memory_update(gates_x: Tensor, gates_h: Tensor, memory: Tensor, forget_bias: float | Tensor) -> Tensor:
    dtype = state_dtype(gates_x.dtype)
    i, f, g = (gates_x.to(dtype) + gates_h.to(dtype)).chunk(3, dim=1)
    return ((f + forget_bias).sigmoid() * memory.to(dtype) + i.sigmoid() * g.tanh()).to(memory.dtype)


def highway_output(output_logits: Tensor, content: Tensor, highway: Tensor | None) -> Tensor:
    dtype = state_dtype(output_logits.dtype)
    gate, content = output_logits.to(dtype).sigmoid(), content.to(dtype).tanh()
    out = gate * content if highway is None else gate * content + (1 - gate) * highway.to(dtype)
    return out.to(output_logits.dtype)


def gated_blend(gate_logits: Tensor, a: Tensor, b: Tensor) -> Tensor:
    dtype = state_dtype(gate_logits.dtype)
    gate = gate_logits.to(dtype).sigmoid()
    return (gate * a.to(dtype) + (1 - gate) * b.to(dtype)).to(gate_logits.dtype)


def offset_warp(x: Tensor, offset: Tensor, mask_logits: Tensor, weight: Tensor) -> Tensor:
    masked = masked_taps(x, offset, mask_logits, weight.shape[-1])
    out = torch.einsum("ocn,bcnhw->bohw", weight.to(masked.dtype).flatten(2), masked)
    return out.to(x.dtype).contiguous(memory_format=memory_format(x))


def masked_taps(x: Tensor, offset: Tensor, mask_logits: Tensor, k: int) -> Tensor:
    """Return the k*k masked taps of x that the warp sums over, (B, C, K, H, W) in the dtype of offset."""
    dtype = offset.dtype
    row_offset, col_offset = offset.chunk(2, dim=1)  # (B, K, H, W) each
    height, width = x.shape[-2:]
    row, row_fraction = _bilinear_cell(row_offset, _taps(k, x.device).repeat_interleave(k), height, axis=-2)
    col, col_fraction = _bilinear_cell(col_offset, _taps(k, x.device).repeat(k), width, axis=-1)
    features = x.to(dtype)
    samples = (
        (1 - row_fraction) * (1 - col_fraction) * _pixels(features, row, col)
        + (1 - row_fraction) * col_fraction * _pixels(features, row, col + 1)
        + row_fraction * (1 - col_fraction) * _pixels(features, row + 1, col)
        + row_fraction * col_fraction * _pixels(features, row + 1, col + 1)
    )
    return samples * mask_logits.to(dtype).sigmoid().unsqueeze(1)


def _taps(k: int, device: torch.device) -> Tensor:
    """Return the places of k taps on one axis, relative to the pixel."""
    return torch.arange(k, device=device) - (k - 1) // 2


def _bilinear_cell(offset: Tensor, tap: Tensor, size: int, axis: int) -> tuple[Tensor, Tensor]:
    """Return the lower pixel index of the bilinear cell and the fraction in it, along one axis.

    The index is (B, K, H, W) int64, the fraction (B, 1, K, H, W) in [0, 1). Offsets beyond `reach` are moved to it,
    which keeps inf and 1e7 in int64's range; they lie outside of the image before and after, and have no gradient.
    """
    reach = size + tap.numel()
    offset = torch.where(offset.abs() > reach, offset.detach().clamp(-reach, reach), offset)
    whole = offset.detach().floor()
    place = torch.arange(size, device=offset.device).view((-1, 1) if axis == -2 else (1, -1))
    lower = place + tap.view(-1, 1, 1) + whole.nan_to_num().long()
    return lower, (offset - whole).unsqueeze(1)


def _pixels(x: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Return x (B, C, H, W) at integer places (B, K, H, W) as (B, C, K, H, W), zero outside of the image."""
    height, width = x.shape[-2:]
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    index = row.clamp(0, max(height - 1, 0)) * width + col.clamp(0, max(width - 1, 0))
    values = x.flatten(2).gather(2, index.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1))
    return values.view(*x.shape[:2], *row.shape[1:]).where(inside.unsqueeze(1), 0)
