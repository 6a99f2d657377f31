"""Rain rates and reflectivities, and thresholds with units."""

from __future__ import annotations

import math

import pytest

from motionrnn_ext.metrics import dbz_to_rain, named_threshold, rain_to_dbz


def test_rain_rates_are_those_of_marshall_and_palmer() -> None:
    # Z = 200 for 1 mm/h; 1.6 decades of Z for a decade of rain.
    assert rain_to_dbz(1) == pytest.approx(10 * math.log10(200))
    assert rain_to_dbz(10) == pytest.approx(10 * math.log10(200) + 16)
    # The usual table: 0.1, 0.5, 2 and 25 mm/h.
    rounded = [round(rain_to_dbz(rate), 1) for rate in (0.1, 0.5, 2, 25)]
    assert rounded == [7.0, 18.2, 27.8, 45.4]
    for rate in (0.03, 1.0, 80.0):
        assert dbz_to_rain(rain_to_dbz(rate)) == pytest.approx(rate)
        assert dbz_to_rain(rain_to_dbz(rate, (58.53, 1.56)), (58.53, 1.56)) == pytest.approx(rate)
    # Hong Kong's relation of HKO-7 (Shi et al., 2017).
    assert rain_to_dbz(10, (58.53, 1.56)) == pytest.approx(10 * math.log10(58.53) + 15.6)
    for rate in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="a rain rate must be above 0 mm/h and finite; got"):
            rain_to_dbz(rate)


def test_thresholds_have_units() -> None:
    names = {"20": 20, "-5": -5, "15dBZ": 15, "15 dbz": 15, "1e1DBZ": 10, ".5": 0.5, "1mm/h": rain_to_dbz(1)}
    for name, value in names.items():
        assert named_threshold(name) == pytest.approx(value), name
    for name in ("dBZ", "15 dB", "1mm", "x", "", "nan", "15dBZ 3"):
        with pytest.raises(
            ValueError, match="a threshold must be a number, or one with dBZ or mm/h as 15dBZ"
        ):
            named_threshold(name)
    with pytest.raises(ValueError, match="a rain rate must be above 0"):
        named_threshold("0mm/h")
