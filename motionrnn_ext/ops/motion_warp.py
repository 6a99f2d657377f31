"""The op for the end of a MotionGRU step: the new motion, and the features warped by it."""

from __future__ import annotations

from torch import Tensor

from .. import backends
from . import _arguments as arguments
from .motion_gru import check_motion_update, motion_update
from .offset_warp import check_offset_warp, offset_warp


def motion_warp(
    x: Tensor,
    update_logits: Tensor,
    candidate_logits: Tensor,
    offset: Tensor,
    trend: Tensor,
    mask_logits: Tensor,
    weight: Tensor,
    alpha: float | Tensor = 0.5,
    max_offset: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `motion_update`, then `offset_warp` of x by the new offset.

        F_t, D_t = motion_update(update_logits, candidate_logits, offset, trend, alpha, max_offset)
        out = offset_warp(x, F_t, mask_logits, weight)

    The backend `cuda` has one kernel each way; the other backends run the two ops. Shapes, dtypes and errors are those
    of the two ops.

    Returns:
        (out, F_t, D_t): out (B, C_out, H, W) in the dtype of x; F_t and D_t (B, 2K, H, W), motion state.
    """
    op = "motion_warp"
    limit = arguments.bound(f"{op}: max_offset", max_offset)
    # motion_update is given alpha as it came: a learned one may lie outside of [0, 1], a number may not.
    read = arguments.momentum(op, alpha, x) if isinstance(x, Tensor) else alpha
    if isinstance(read, Tensor) or not isinstance(x, Tensor) or not backends.runs_cuda_kernels(x):
        offset, trend = motion_update(update_logits, candidate_logits, offset, trend, alpha, limit)
        return offset_warp(x, offset, mask_logits, weight), offset, trend
    dtype = arguments.autocast_dtype(x)
    if dtype is not None:
        features = [x, update_logits, candidate_logits, mask_logits, weight]
        x, update_logits, candidate_logits, mask_logits, weight = arguments.cast(features, dtype)
        offset, trend = arguments.cast([offset, trend], arguments.state_dtype(dtype))
    arguments.check_once(_check, x, update_logits, candidate_logits, offset, trend, mask_logits, weight)
    return backends.dispatch(
        op, x, update_logits, candidate_logits, offset, trend, mask_logits, weight, read, limit
    )


def _check(*tensors: Tensor) -> None:
    op, (x, *motion, mask_logits, weight) = "motion_warp", tensors
    update_logits, candidate_logits, offset, trend = motion
    check_motion_update(op, update_logits, candidate_logits, offset, trend)
    arguments.check_features(op, x=x, update_logits=update_logits)
    check_offset_warp(op, x, offset, mask_logits, weight)
