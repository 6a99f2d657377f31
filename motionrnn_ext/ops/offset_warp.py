"""The offset warp: k x k bilinear taps moved by per-pixel offsets, masked, and contracted with the tap weights."""

from __future__ import annotations

from torch import Tensor

from .. import backends
from . import _arguments as arguments


def offset_warp(x: Tensor, offset: Tensor, mask_logits: Tensor, weight: Tensor) -> Tensor:
    """Sample x at k*k moving points around each pixel, gate the samples, and contract them to C_out channels.

        out[o](p) = sum over c, n of weight[o, c, n] . s(m[n](p)) . bilinear0(x[c], p + p_n + F[n](p))

    bilinear0 is bilinear interpolation in an image that is zero outside. Its derivative by the coordinate is the right
    derivative at integers. The whole part of a coordinate is taken on the offset alone (p + p_n is an integer), which
    is exact in floating point. Offsets that are infinite or far outside sample 0; nan gives nan.

    Args:
        x: (B, C, H, W), features; contiguous or channels_last, both read in place.
        offset: F, (B, 2K, H, W), motion state: K row offsets then K column offsets, in pixels.
        mask_logits: m, (B, K, H, W), features.
        weight: (C_out, C, k, k), features; k odd.

    Returns:
        (B, C_out, H, W) in the dtype and memory format of x.

    This is a modulated deformable convolution (DCNv2: one group, stride 1, padding (k-1)/2, no bias), with the
    official MotionRNN program's channel order and derivatives. Source: MotionRNN's Warp, and `Warp` of the official
    core/layers/MotionGRU.py.
    """
    op = "offset_warp"
    dtype = arguments.autocast_dtype(x)
    if dtype is not None:
        x, mask_logits, weight = arguments.cast([x, mask_logits, weight], dtype)
        (offset,) = arguments.cast([offset], arguments.state_dtype(dtype))
    arguments.check_once(_check_offset_warp, x, offset, mask_logits, weight)
    return backends.dispatch(op, x, offset, mask_logits, weight)


def _check_offset_warp(*tensors: Tensor) -> None:
    check_offset_warp("offset_warp", *tensors)


def check_offset_warp(op: str, x: Tensor, offset: Tensor, mask_logits: Tensor, weight: Tensor) -> None:
    """Raise if the arguments do not fit each other. `op` is the name in the message."""
    arguments.check_features(op, x=x, mask_logits=mask_logits, weight=weight)
    arguments.check_state(op, "x", x, offset=offset)
    arguments.check_rank(op, "x", x, 4, "(B, C, H, W)")
    arguments.check_rank(op, "weight", weight, 4, "(C_out, C, k, k)")
    batch, channels, height, width = x.shape
    k = weight.shape[2]
    if weight.shape[3] != k or k % 2 == 0:
        raise ValueError(
            f"{op}: weight has a {weight.shape[2]}x{weight.shape[3]} neighbourhood; it should be k x k with k odd"
        )
    if weight.shape[1] != channels:
        raise ValueError(
            f"{op}: weight takes {weight.shape[1]} channels; it should take {channels}, the channels of x"
        )
    because = f"(B, {{}}, H, W) of x with K = {k * k} from weight's {k}x{k} neighbourhood"
    arguments.check_shape(op, "offset", offset, (batch, 2 * k * k, height, width), because.format("2K"))
    arguments.check_shape(op, "mask_logits", mask_logits, (batch, k * k, height, width), because.format("K"))
