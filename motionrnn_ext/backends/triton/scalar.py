"""Functions of one element, their derivatives as functions of their outputs, and the conversion of loads and stores."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from . import INTERPRETED as _INTERPRETED

INTERPRETED = tl.constexpr(_INTERPRETED)


@triton.jit
def exp(x):
    # This is a multiplication and one instruction. tl.exp has three more for results below 1e-38, which are 0 here.
    if INTERPRETED or x.dtype == tl.float64:
        return tl.exp(x)
    else:
        return libdevice.fast_expf(x)


@triton.jit
def reciprocal(x):
    # The result is within 2 ulp. Division takes three more instructions for divisors above 1e37, whose reciprocals are
    # 0 here.
    if INTERPRETED or x.dtype == tl.float64:
        return 1 / x
    else:
        return libdevice.fast_dividef(1.0, x)


@triton.jit
def sigmoid(x):
    return reciprocal(1 + exp(-x))


@triton.jit
def d_sigmoid(y):
    """Return the derivative of sigmoid where its value is y."""
    return y * (1 - y)


@triton.jit
def tanh(x):
    # Triton's interpreter does not support Triton's tanh. 1 - 2 / (1 + exp(2x)) loses digits near 0, where float32
    # takes the minimax polynomial in x^2 of tanh(x) / x, which is within 1.5e-8 for |x| < 0.5.
    far = 1 - 2 * reciprocal(1 + exp(2 * x))
    if x.dtype == tl.float64:
        return far
    else:
        s = x * x
        near = x + x * s * (-0.333331436 + s * (0.133258790 + s * (-0.0530454479 + s * 0.0172412384)))
        return tl.where(s < 0.25, near, far)


@triton.jit
def d_tanh(y):
    """Return the derivative of tanh where its value is y."""
    return 1 - y * y


@triton.jit
def widen(stored):
    """Return stored elements in the dtype of arithmetic: float32, or float64 for float64."""
    if stored.dtype == tl.float64:
        return stored
    elif INTERPRETED and stored.dtype == tl.bfloat16:
        # Triton's interpreter converts subnormal numbers wrongly.
        return (stored.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return stored.to(tl.float32)


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """Return a value in the dtype of storage, rounded to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        # Triton's interpreter truncates, and converts subnormal numbers wrongly.
        bits = value.to(tl.float32).to(tl.int32, bitcast=True)
        bits = tl.where(value == value, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)


@triton.jit
def index(n, WIDE: tl.constexpr):
    """Return an integer that indices are made of, in 64 bits where they need more than 32 (WIDE).

    It is called on the factors: the product of two numbers of 32 bits has 32 bits, whatever it is added to.
    """
    if WIDE:
        return tl.cast(n, tl.int64)
    else:
        return n


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """Return acc + a b in the dtype of acc."""
    if INTERPRETED:
        # Triton's interpreter multiplies the bit patterns of bfloat16 (triton issue 11584).
        a, b = a.to(acc.dtype), b.to(acc.dtype)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
