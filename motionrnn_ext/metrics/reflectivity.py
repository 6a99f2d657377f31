"""Radar reflectivity and rain rate, and thresholds by the names of their units."""

from __future__ import annotations

import math
import re

# a and b of Z = a R^b by Marshall and Palmer.
MARSHALL_PALMER = (200.0, 1.6)
_NAMED = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(dbz|mm/h)?", re.IGNORECASE)


def rain_to_dbz(rate: float, zr: tuple[float, float] = MARSHALL_PALMER) -> float:
    """Return the reflectivity in dBZ of rain at a rate R in mm/h, with (a, b) = `zr`.

        dBZ = 10 log10 Z,    Z = a R^b in mm^6/m^3

    By default 1 mm/h is 23.0 dBZ, 10 mm/h is 39.0 dBZ. (Source: Marshall, Hitschfeld and Gunn, Advances in Geophysics
    2, 1, 1955.)

    Raises:
        ValueError: the rate is not positive and finite.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"a rain rate must be above 0 mm/h and finite; got {rate!r}")
    factor, exponent = zr
    return 10 * math.log10(factor * rate**exponent)


def dbz_to_rain(dbz: float, zr: tuple[float, float] = MARSHALL_PALMER) -> float:
    """Return the rain rate in mm/h of a reflectivity in dBZ, the inverse of `rain_to_dbz`."""
    factor, exponent = zr
    return float((10 ** (dbz / 10) / factor) ** (1 / exponent))


def named_threshold(text: str) -> float:
    """Return a threshold as a number: "15dBZ" -> 15.0, "1mm/h" -> 23.01 (by `rain_to_dbz`), and "20" -> 20.0.

    A rain rate thus becomes dBZ: the values that it is compared with must be dBZ.

    Raises:
        ValueError: the text is none of the three, or a rain rate is not positive.
    """
    found = _NAMED.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"a threshold must be a number, or one with dBZ or mm/h as 15dBZ or 1mm/h; got {text!r}"
        )
    number, unit = float(found[1]), (found[2] or "").lower()
    return rain_to_dbz(number) if unit == "mm/h" else number
