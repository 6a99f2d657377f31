"""Floating-point formats in exact arithmetic: rounding as IEEE 754 defines it, on fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Format(NamedTuple):
    bits: int  # of an encoding
    precision: int  # bits of a significand, with the leading one
    lowest: int  # exponent of the smallest normal number
    highest: int  # exponent of the largest number

    @property
    def largest(self) -> Fraction:
        return (2 - Fraction(2) ** (1 - self.precision)) * Fraction(2) ** self.highest


F16 = Format(16, 11, -14, 15)
BF16 = Format(16, 8, -126, 127)
F32 = Format(32, 24, -126, 127)
TF32 = Format(32, 11, -126, 127)
Number = Fraction | float  # floats are NaN, infinities and signed zeros


def exact(value: float) -> Number:
    return Fraction(value) if math.isfinite(value) and value != 0 else float(value)


def to_integer(value: Fraction, mode: str) -> int:
    """Round to nearest even (rn), towards zero (rz), down (rm), up (rp), or to nearest, halves away from zero (rna)."""
    down = math.floor(value)
    if mode == "rm" or value == down:
        return down
    if mode == "rp":
        return down + 1
    if mode == "rz":
        return down if value > 0 else down + 1
    rest = value - down
    if rest == Fraction(1, 2):
        if mode == "rna":
            return down + 1 if value > 0 else down
        return down if down % 2 == 0 else down + 1
    return down if rest < Fraction(1, 2) else down + 1


def round_to(value: Number, form: Format, mode: str = "rn") -> float:
    """Return the number of the format as a float64, which holds all of them."""
    if isinstance(value, float):
        return value
    if value == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(value.numerator)) - math.log2(value.denominator))
    while Fraction(2) ** exponent > abs(value):
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= abs(value):
        exponent += 1
    unit = Fraction(2) ** (max(exponent, form.lowest) - form.precision + 1)
    rounded = to_integer(value / unit, mode) * unit
    sign = -1.0 if value < 0 else 1.0
    if abs(rounded) > form.largest:
        stays = mode == "rz" or (mode == "rm" and value > 0) or (mode == "rp" and value < 0)
        return sign * (float(form.largest) if stays else math.inf)
    return math.copysign(float(rounded), sign)


def floats_of(bits: np.ndarray, form: Format) -> np.ndarray:
    """Return the values of encodings as float64."""
    if form.bits == 16:
        bits = bits.view(np.uint16)
    if form == F16:
        return bits.view(np.float16).astype(np.float64)
    if form == BF16:
        bits = bits.astype(np.uint32) << 16
    return bits.view(np.float32).astype(np.float64)


def bits_of(values: np.ndarray, form: Format) -> np.ndarray:
    """Return the encodings of float64 values that are numbers of the format; a NaN is the canonical one."""
    values = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore"):
        if form == F16:
            bits = values.astype(np.float16).view(np.uint16)
            return np.where(np.isnan(values), np.uint16(0x7FFF), bits)
        bits = values.astype(np.float32).view(np.uint32)
    if form == BF16:
        return np.where(np.isnan(values), 0x7FFF, bits >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint32(0x7FFFFFFF), bits)


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether values agree to the last bit and the sign of zeros; any NaN is like another."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    equal = (found == expected) & (np.signbit(found) == np.signbit(expected))
    return bool(np.all(equal | (np.isnan(found) & np.isnan(expected))))
