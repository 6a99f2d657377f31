"""The MotionGRU's pointwise ops: the reset of the motion filter; the update of transient variation and trend."""

from __future__ import annotations

from torch import Tensor

from .. import backends
from . import _arguments as arguments


def motion_reset(reset_logits: Tensor, offset: Tensor) -> Tensor:
    """Compute s(r) . F, the motion filter that the candidate's convolution reads.

    Args:
        reset_logits: r, (B, M, *S), features.
        offset: F_{t-1}, (B, M, *S), motion state, in pixels.

    Returns:
        (B, M, *S) in the dtype of reset_logits.

    Source: MotionRNN, the MotionGRU's reset gate: the argument of W_z in z = tanh(W_z * [E, r . F_{t-1}]).
    """
    op = "motion_reset"
    dtype = arguments.autocast_dtype(reset_logits)
    if dtype is not None:
        (reset_logits,) = arguments.cast([reset_logits], dtype)
        (offset,) = arguments.cast([offset], arguments.state_dtype(dtype))
    arguments.check_once(_check_motion_reset, reset_logits, offset)
    return backends.dispatch(op, reset_logits, offset)


def motion_update(
    update_logits: Tensor,
    candidate_logits: Tensor,
    offset: Tensor,
    trend: Tensor,
    alpha: float | Tensor = 0.5,
    max_offset: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the transient variation, the momentum of the trend, and their sum, the new motion filter.

        F'  = F + s(u) . (tanh(z) - F)                  transient variation
        D'  = D + alpha (F - D)                         trend; F is the *previous* filter
        F_t = clamp(F' + D', -max_offset, max_offset)   motion filter

    Without a bound F grows from step to step, by a factor of 1.31 at s(u) = 0.5, and ends at inf and nan. With a bound
    F_t is within it from the first step on. So is D', which lies between D and F, if D and F are; a larger initial D
    comes nearer by a factor of 1 - alpha a step. At the bound F_t has no gradient; D' has its own. nan stays nan.

    Args:
        update_logits: u, (B, M, *S), features.
        candidate_logits: z, (B, M, *S), features.
        offset: F_{t-1}, (B, M, *S), motion state, in pixels.
        trend: D_{t-1}, (B, M, *S), motion state, in pixels.
        alpha: the momentum's step, in [0, 1]. A tensor of one element that asks for a gradient gets one, by PyTorch's
            own operations, with the backends "auto" and "reference"; no tensor's value is checked.
        max_offset: the largest |F_t|, in pixels, above 0. None sets no bound, as in the official program.

    Returns:
        (F_t, D_t), each (B, M, *S) in the dtype of offset.

    Source: MotionRNN, equations of the transient variation and the trending momentum.
    """
    op = "motion_update"
    dtype = arguments.autocast_dtype(update_logits)
    if dtype is not None:
        update_logits, candidate_logits = arguments.cast([update_logits, candidate_logits], dtype)
        offset, trend = arguments.cast([offset, trend], arguments.state_dtype(dtype))
    arguments.check_once(_check_motion_update, update_logits, candidate_logits, offset, trend)
    alpha = arguments.momentum(op, alpha, update_logits)
    dispatch = backends.dispatch_formulas if isinstance(alpha, Tensor) else backends.dispatch
    limit = arguments.bound(f"{op}: max_offset", max_offset)
    return dispatch(op, update_logits, candidate_logits, offset, trend, alpha, limit)


def check_motion_update(
    op: str, update_logits: Tensor, candidate_logits: Tensor, offset: Tensor, trend: Tensor
) -> None:
    """Raise if the arguments do not fit each other. `op` is the name in the message."""
    arguments.check_features(op, update_logits=update_logits, candidate_logits=candidate_logits)
    arguments.check_state(op, "update_logits", update_logits, offset=offset, trend=trend)
    arguments.check_rank(op, "update_logits", update_logits, 2, "(B, M, *S)", at_least=True)
    for name, tensor in (("candidate_logits", candidate_logits), ("offset", offset), ("trend", trend)):
        arguments.check_shape(op, name, tensor, update_logits.shape, "the shape of update_logits")


def _check_motion_update(*tensors: Tensor) -> None:
    check_motion_update("motion_update", *tensors)


def _check_motion_reset(reset_logits: Tensor, offset: Tensor) -> None:
    op = "motion_reset"
    arguments.check_features(op, reset_logits=reset_logits)
    arguments.check_state(op, "reset_logits", reset_logits, offset=offset)
    arguments.check_rank(op, "reset_logits", reset_logits, 2, "(B, M, *S)", at_least=True)
    arguments.check_shape(op, "offset", offset, reset_logits.shape, "the shape of reset_logits")
