"""The gates and the warp of a MotionGRU step with packed weights, as ops for its node (layers/nodes/motion_step.py).

The kernels are those of motion_gates.py and offset_warp.py. A kernel of both would hold the products of the gates and
of every tap at once, which take turns here.
"""

from __future__ import annotations

from torch import Tensor

from .launch import kernel_op
from .motion_gates import Given, launch_backward, launch_forward, wanted_maps
from .offset_warp import offset_warp
from .offset_warp_backward import offset_warp_backward


@kernel_op
def gated_warp(
    x: Tensor,
    offset: Tensor,
    trend: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    state_weight: Tensor,
    candidate_weight: Tensor,
    warp_weight: Tensor,
    packed: Tensor,
    alpha: float,
    max_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = (x_weight, state_weight, candidate_weight)
    new_offset, new_trend, mask, *logits = launch_forward(
        x, offset, trend, weights, x_bias, packed, alpha, max_offset
    )
    warped = offset_warp(x, new_offset, mask, warp_weight)
    return warped, new_offset, new_trend, mask, *logits


@kernel_op
def gated_warp_backward(
    grad: Tensor,
    grad_offset: Tensor,
    grad_trend: Tensor,
    x: Tensor,
    offset: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    state_weight: Tensor,
    candidate_weight: Tensor,
    warp_weight: Tensor,
    mask_logits: Tensor,
    update_logits: Tensor,
    reset_logits: Tensor,
    candidate_logits: Tensor,
    new_offset: Tensor,
    packed: Tensor,
    alpha: float,
    max_offset: float,
    wanted: int,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    # The gates' backward needs the gradients of offset and mask.
    of_warp = wanted | 2 | 4
    grad_x, by_warp, grad_mask, grad_weight = offset_warp_backward(
        grad, x, new_offset, mask_logits, warp_weight, of_warp, deterministic
    )
    kept = (offset, update_logits, reset_logits, candidate_logits, new_offset)
    given = Given(by_warp.add_(grad_offset), grad_trend, grad_mask, *kept)
    weights = (x_weight, state_weight, candidate_weight)
    made = launch_backward(x, given, weights, packed, alpha, max_offset)
    by_gates, *to_motion = wanted_maps(x, made, wanted)
    if wanted & 1:
        grad_x.add_(by_gates)
    factors = (made.logits, made.reset_offset) if wanted & 8 else (x.new_empty(0), x.new_empty(0))
    return grad_x, *to_motion, *factors, grad_weight
