"""Functions of one element, their derivatives as functions of their outputs, and storage: loads widen, stores round."""

from __future__ import annotations

import triton
import triton.language as tl

from . import INTERPRETED as _INTERPRETED

INTERPRETED = tl.constexpr(_INTERPRETED)


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def d_sigmoid(y):
    return y * (1 - y)


@triton.jit
def tanh(x):
    # Triton has no tanh that its interpreter knows. tanh |x| = (1 - e) / (1 + e) with e = exp(-2 |x|) loses digits near
    # 0, where float32 takes the series to x^9 (below 0.25 within 1e-8).
    e = tl.exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    far = tl.where(x < 0, -far, far)
    if x.dtype == tl.float64:
        return far
    else:
        s = x * x
        near = x + x * s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835))))
        return tl.where(s < 0.0625, near, far)


@triton.jit
def d_tanh(y):
    return 1 - y * y


@triton.jit
def widen(stored):
    """In the dtype of arithmetic: float32, or float64 for float64."""
    if stored.dtype == tl.float64:
        return stored
    elif INTERPRETED and stored.dtype == tl.bfloat16:  # Triton's interpreter mistakes subnormal numbers
        return (stored.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return stored.to(tl.float32)


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """In the dtype of storage, rounded to nearest even."""
    if (
        INTERPRETED and dtype == tl.bfloat16
    ):  # Triton's interpreter cuts the bits off, and mistakes subnormal numbers
        bits = value.to(tl.float32).to(tl.int32, bitcast=True)
        bits = tl.where(value == value, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b, in the dtype of acc."""
    if INTERPRETED:  # which multiplies the bit patterns of bfloat16 (triton issue 11584)
        a, b = a.to(acc.dtype), b.to(acc.dtype)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
