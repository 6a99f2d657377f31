"""The op for a MotionGRU step up to its warp: the convolutional gates, and the new motion."""

from __future__ import annotations

from torch import Tensor

from .. import backends
from . import _arguments as arguments


def motion_gates(
    x: Tensor,
    offset: Tensor,
    trend: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    state_weight: Tensor,
    candidate_weight: Tensor,
    alpha: float | Tensor = 0.5,
    max_offset: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gates of x and F by "same" convolutions, the new motion, and the logits of the warp's mask.

        [u, r, z_x, m] = W_x * x + b;   [u, r] += W_F * F;   z = z_x + W_z * (s(r) . F)
        F_t, D_t = motion_update(u, z, F, D, alpha, max_offset)

    The backend `cpu` has one kernel each way. On a GPU two launches make the results, and three the gradients of the
    maps; PyTorch's convolutions make those of the weights. All keep the logits of u, r and z for backward.

    Args:
        x: (B, C, H, W), features.
        offset: F_{t-1}, (B, M, H, W), motion state, in pixels.
        trend: D_{t-1}, (B, M, H, W), motion state, in pixels.
        x_weight: W_x, (3M + K, C, g, g), features: rows for u, r, z, then for the mask; g odd.
        x_bias: b, (3M + K,), features.
        state_weight: W_F, (2M, M, g, g), features: rows for u, then r.
        candidate_weight: W_z, (M, M, g, g), features.
        alpha, max_offset: the numbers of `motion_update`.

    Returns:
        (F_t, D_t, m): F_t and D_t (B, M, H, W), motion state; m (B, K, H, W), features. K is the number of rows of W_x
        beyond 3M.

    Source: MotionRNN, section 3.2: the MotionGRU's gates, transient variation and trending momentum.
    """
    op = "motion_gates"
    dtype = arguments.autocast_dtype(x)
    if dtype is not None:
        features = [x, x_weight, x_bias, state_weight, candidate_weight]
        x, x_weight, x_bias, state_weight, candidate_weight = arguments.cast(features, dtype)
        offset, trend = arguments.cast([offset, trend], arguments.state_dtype(dtype))
    arguments.check_once(_check, x, offset, trend, x_weight, x_bias, state_weight, candidate_weight)
    weights = (x_weight, x_bias, state_weight, candidate_weight)
    alpha = arguments.momentum(op, alpha, x)
    limit = arguments.bound(f"{op}: max_offset", max_offset)
    run = backends.dispatch_formulas if isinstance(alpha, Tensor) else backends.dispatch
    # A kernel returns the logits of u, r and z as well.
    return run(op, x, offset, trend, *weights, alpha, limit)[:3]


def _check(
    x: Tensor,
    offset: Tensor,
    trend: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    state_weight: Tensor,
    candidate_weight: Tensor,
) -> None:
    op = "motion_gates"
    weights = {"x_weight": x_weight, "state_weight": state_weight, "candidate_weight": candidate_weight}
    arguments.check_features(op, x=x, **weights, x_bias=x_bias)
    arguments.check_state(op, "x", x, offset=offset, trend=trend)
    arguments.check_rank(op, "x", x, 4, "(B, C, H, W)")
    arguments.check_rank(op, "offset", offset, 4, "(B, M, H, W)")
    for name, weight in weights.items():
        arguments.check_rank(op, name, weight, 4, "(C_out, C_in, g, g)")
    (batch, channels, height, width), motion = x.shape, offset.shape[1]
    size, rows = x_weight.shape[2], x_weight.shape[0]
    if x_weight.shape[3] != size or size % 2 == 0:
        raise ValueError(
            f"{op}: x_weight has a {size}x{x_weight.shape[3]} kernel; it should be g x g with g odd"
        )
    if rows < 3 * motion:
        raise ValueError(
            f"{op}: x_weight has {rows} rows; it should have at least {3 * motion}, 3M for M = {motion} of offset"
        )
    maps = (batch, motion, height, width)
    arguments.check_shape(op, "offset", offset, maps, "(B, M, H, W) of x")
    arguments.check_shape(op, "trend", trend, maps, "the shape of offset")
    arguments.check_shape(op, "x_weight", x_weight, (rows, channels, size, size), "(3M + K, C, g, g)")
    arguments.check_shape(op, "x_bias", x_bias, (rows,), "a number per row of x_weight")
    of_state, of_candidate = (2 * motion, motion, size, size), (motion, motion, size, size)
    arguments.check_shape(op, "state_weight", state_weight, of_state, "(2M, M, g, g)")
    arguments.check_shape(op, "candidate_weight", candidate_weight, of_candidate, "(M, M, g, g)")
