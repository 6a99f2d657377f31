"""Sums whose bits do not depend on the order of their addends: 64-bit integers, multiples of a power of two.

Sums of floats depend on the order of their addends, sums of integers do not. The unit is the smallest with which 59
bits hold every possible sum. The three lowest bits of a sum are flags, which adding multiples of 8 does not change: an
addend that is nan, inf or -inf sets one of them. So a value that is not finite ends in the right sum, and the other
sums do not depend on the order either.
"""

from __future__ import annotations

import triton
import triton.language as tl

NAN = tl.constexpr(1)
INFINITY = tl.constexpr(2)
MINUS_INFINITY = tl.constexpr(4)


@triton.jit
def power_of_two(exponent):
    """Return 2^exponent as float32, for exponents from -126 to 127."""
    return ((exponent + 127) << 23).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def unit_exponent(maxima, log_addends):
    """Return the exponent of the unit for sums of up to 2^log_addends products of two factors with these maxima.

    maxima: the largest sizes of the two factors, as the bits of floats. A float with the exponent bits e is below
    2^(e - 126).
    """
    exponent = (tl.load(maxima) >> 23) + (tl.load(maxima + 1) >> 23) - 252
    # No finite addend reaches 2^128.
    exponent = tl.minimum(exponent, 128) + log_addends - 59
    # float32 holds no smaller units, so that sums below 1e-30 have fewer bits.
    return tl.maximum(exponent, -126)


@triton.jit
def raise_maximum(maximum, values):
    """Raise the maximum of all programs to the largest finite |value|.

    Integers compare the bits of floats that are not negative in the order of their values.
    """
    values = tl.abs(values)
    largest = tl.max(tl.where(values < float("inf"), values, 0), 0)
    tl.atomic_max(maximum, largest.to(tl.int32, bitcast=True).to(tl.int64), sem="relaxed")


@triton.jit
def add_exactly(sums, value, exponent, inside):
    """Add to a sum in units of 2^exponent; set a flag for a value that is not finite."""
    finite = tl.abs(value) < float("inf")
    units = (tl.where(finite, value, 0) * power_of_two(-exponent)).to(tl.int64)
    tl.atomic_add(sums, units << 3, mask=inside & finite, sem="relaxed")
    flag = tl.where(value != value, NAN, tl.where(value > 0, INFINITY, MINUS_INFINITY)).to(tl.int64)
    tl.atomic_or(sums, flag, mask=inside & (finite == 0), sem="relaxed")


@triton.jit
def value_of_sum(sum, exponent):
    """Return a sum as float32: nan, inf or -inf if its flags say so."""
    value = (sum >> 3).to(tl.float32) * power_of_two(exponent)
    value = tl.where(sum & INFINITY != 0, float("inf"), value)
    value = tl.where(sum & MINUS_INFINITY != 0, -float("inf"), value)
    both = INFINITY | MINUS_INFINITY
    return tl.where((sum & NAN != 0) | (sum & both == both), float("nan"), value)
