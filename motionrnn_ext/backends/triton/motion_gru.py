"""The MotionGRU's pointwise kernels: the reset of the motion filter; the update of transient variation and trend."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import kernel_op
from .pointwise import elements, launch_pointwise, load, store
from .scalar import d_sigmoid, d_tanh, sigmoid, tanh


@triton.jit
def motion_reset_kernel(
    reset_logits, offset, out, reset_stride, offset_stride,
    rows, inner, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out = s(r) F"""
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    reset = sigmoid(load(reset_logits, reset_stride, row, at, inside))
    store(out, inner, row, at, inside, reset * load(offset, offset_stride, row, at, inside))


@triton.jit
def motion_reset_backward_kernel(
    grad, reset_logits, offset, grad_reset_logits, grad_offset, grad_stride, reset_stride, offset_stride,
    rows, inner, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    g = load(grad, grad_stride, row, at, inside)
    reset = sigmoid(load(reset_logits, reset_stride, row, at, inside))
    f = load(offset, offset_stride, row, at, inside)
    store(grad_reset_logits, inner, row, at, inside, g * f * d_sigmoid(reset))
    store(grad_offset, inner, row, at, inside, g * reset)


@triton.jit
def updated_motion(update, candidate, f, d, alpha, max_offset):
    """Return F_t and D' for s(u), tanh(z), F and D:

    F' = F + s(u) (tanh(z) - F);  D' = D + alpha (F - D);  F_t = F' + D' within max_offset
    """
    d += alpha * (f - d)
    f += update * (candidate - f) + d
    # nan stays nan, because no comparison with it is true.
    f = tl.where(f > max_offset, max_offset, f)
    return tl.where(f < -max_offset, -max_offset, f), d


@triton.jit
def updated_motion_gradients(g, g_trend, update, candidate, f, new_f, alpha, max_offset):
    """Return the gradients of the logits u and z, of F and of D, for those of F_t and D'.

    The update is linear in D, so that D is not needed. F_t tells where it was bounded, and has no gradient there.
    """
    # A max_offset of inf is no limit, also for an offset of inf.
    is_at_limit = (tl.abs(new_f) >= max_offset) & (max_offset < float("inf"))
    g = tl.where(is_at_limit, 0, g)
    # D' is an addend of F_t as well.
    into_trend = g + g_trend
    of_update = g * (candidate - f) * d_sigmoid(update)
    into_offset = g * (1 - update) + alpha * into_trend
    return of_update, g * update * d_tanh(candidate), into_offset, (1 - alpha) * into_trend


@triton.jit
def motion_update_kernel(
    update_logits, candidate_logits, offset, trend, new_offset, new_trend,
    update_stride, candidate_stride, offset_stride, trend_stride,
    rows, inner, alpha, max_offset, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    update = sigmoid(load(update_logits, update_stride, row, at, inside))
    candidate = tanh(load(candidate_logits, candidate_stride, row, at, inside))
    f = load(offset, offset_stride, row, at, inside)
    d = load(trend, trend_stride, row, at, inside)
    f, d = updated_motion(update, candidate, f, d, alpha, max_offset)
    store(new_trend, inner, row, at, inside, d)
    store(new_offset, inner, row, at, inside, f)


@triton.jit
def motion_update_backward_kernel(
    grad_new_offset, grad_new_trend, update_logits, candidate_logits, offset, new_offset,
    grad_update_logits, grad_candidate_logits, grad_offset, grad_trend,
    grad_new_offset_stride, grad_new_trend_stride, update_stride, candidate_stride, offset_stride,
    new_offset_stride,
    rows, inner, alpha, max_offset, ROWS: tl.constexpr, INNER: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, at, inside = elements(rows, inner, ROWS, INNER, WIDE)
    g = load(grad_new_offset, grad_new_offset_stride, row, at, inside)
    g_trend = load(grad_new_trend, grad_new_trend_stride, row, at, inside)
    update = sigmoid(load(update_logits, update_stride, row, at, inside))
    candidate = tanh(load(candidate_logits, candidate_stride, row, at, inside))
    f = load(offset, offset_stride, row, at, inside)
    new_f = load(new_offset, new_offset_stride, row, at, inside)
    of_update, of_candidate, into_offset, into_trend = updated_motion_gradients(
        g, g_trend, update, candidate, f, new_f, alpha, max_offset
    )
    store(grad_update_logits, inner, row, at, inside, of_update)
    store(grad_candidate_logits, inner, row, at, inside, of_candidate)
    store(grad_offset, inner, row, at, inside, into_offset)
    store(grad_trend, inner, row, at, inside, into_trend)


@kernel_op
def motion_reset(reset_logits: Tensor, offset: Tensor) -> Tensor:
    return launch_pointwise(motion_reset_kernel, [reset_logits, offset], [(1, reset_logits.dtype)])[0]


@kernel_op
def motion_reset_backward(grad: Tensor, reset_logits: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    made = [(1, reset_logits.dtype), (1, offset.dtype)]
    grads = launch_pointwise(motion_reset_backward_kernel, [grad, reset_logits, offset], made, leader=1)
    return grads[0], grads[1]


@kernel_op
def motion_update(
    update_logits: Tensor,
    candidate_logits: Tensor,
    offset: Tensor,
    trend: Tensor,
    alpha: float,
    max_offset: float,
) -> tuple[Tensor, Tensor]:
    inputs = [update_logits, candidate_logits, offset, trend]
    new_offset, new_trend = launch_pointwise(
        motion_update_kernel, inputs, [(1, offset.dtype)] * 2, alpha, max_offset
    )
    return new_offset, new_trend


@kernel_op
def motion_update_backward(
    grad_offset: Tensor,
    grad_trend: Tensor,
    update_logits: Tensor,
    candidate_logits: Tensor,
    offset: Tensor,
    new_offset: Tensor,
    alpha: float,
    max_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = [grad_offset, grad_trend, update_logits, candidate_logits, offset, new_offset]
    made = [(1, update_logits.dtype)] * 2 + [(1, offset.dtype)] * 2
    grads = launch_pointwise(motion_update_backward_kernel, inputs, made, alpha, max_offset, leader=2)
    return grads[0], grads[1], grads[2], grads[3]
