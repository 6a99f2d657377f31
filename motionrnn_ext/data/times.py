"""Times in the names of frames, and the gaps between them, which no clip may span."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from statistics import median_low

from ..caller import stacklevel_of_user

# A step longer than this many median steps is a gap.
LONGEST_STEP = 1.5
_DAY = r"(0[1-9]|1[0-2])\D?(0[1-9]|[12]\d|3[01])"
_HOUR, _SIXTIETH = r"([01]\d|2[0-3])", r"([0-5]\d)"
# A date, with an hour, minutes and seconds or without.
_DATED = re.compile(
    rf"(?<!\d)((?:19|20)\d\d)\D?{_DAY}(?:\D?{_HOUR}(?:\D?{_SIXTIETH}(?:\D?{_SIXTIETH})?)?)?(?!\d)"
)
# The same with a year of two digits, up to the minute at least.
_DATED_BRIEFLY = re.compile(rf"(?<!\d)(\d\d)\D?{_DAY}\D?{_HOUR}\D?{_SIXTIETH}(?:\D?{_SIXTIETH})?(?!\d)")
_OF_DAY = re.compile(rf"(?<!\d){_HOUR}[-_.:]?{_SIXTIETH}(?:[-_.:]?{_SIXTIETH})?(?!\d)(?!.*\d)")
# The share of names with a date from which the others are said to be wrong.
_MOSTLY = 0.8


def gaps(names: Sequence[str], interval: float | None = None) -> list[int]:
    """Return the positions i at which names[i] comes after a gap in time: its step from names[i-1] is longer than 1.5
    times the median step of all names.

    A name's time is the date and time of day in it, such as `20170509_1305`, `2017-05-09T13:05:00` or `20170509`.
    Without such a date it is read as one with a short year (`1705091305`), as a time of day at its end (`2355`,
    `23-55-00`), and as a count, its last number. Of the readings by which all names increase, the one with the fewest
    gaps counts. If there is none, the names hold no times, and there is no gap; a warning says so if most names hold
    dates.

    Args:
        names: the names in their order.
        interval: the time between frames, in minutes, or in counts for names that hold counts. Steps that are longer
            than 1.5 times this, or of which 1.5 are shorter than it, are gaps. None takes the median step.

    Raises:
        ValueError: an interval for names that hold no times.
    """
    # Dates come first: times of day alone could go on at the same hour of another day.
    if dated := _all(_date_and_time, names):
        return _leaps(dated, interval)
    readings = (_brief_date_and_time, _time_of_day, _count)
    found = [_leaps(times, interval) for read in readings if (times := _all(read, names))]
    if not found:
        _warn_of_odd(names)
    if not found and names and interval is not None:
        raise ValueError(
            f"interval is {interval:g}; it is for names of frames with increasing times, unlike {names[0]!r} to"
            f" {names[-1]!r}"
        )
    return min(found, key=len, default=[])


def _all(read: Callable[[str], float | None], names: Sequence[str]) -> list[float]:
    """Return the times of all names, or an empty list if a name has none or they do not increase."""
    times = [time for name in names if (time := read(name)) is not None]
    is_right = len(times) == len(names) and all(a < b for a, b in pairwise(times))
    return times if is_right else []


def _leaps(times: Sequence[float], interval: float | None) -> list[int]:
    """Return the positions of times whose step from the one before is a gap, see `gaps`."""
    steps = [after - before for before, after in pairwise(times)]
    if interval is not None:
        longest, shortest = LONGEST_STEP * interval, interval / LONGEST_STEP
        return [i for i, step in enumerate(steps, start=1) if not shortest <= step <= longest]
    usual = median_low(steps) if steps else 0
    return [i for i, step in enumerate(steps, start=1) if step > LONGEST_STEP * usual]


def _warn_of_odd(names: Sequence[str]) -> None:
    """Warn of the first name that keeps the dates in most names from being read as times."""
    times = [_date_and_time(name) for name in names]
    if sum(time is not None for time in times) < max(2, _MOSTLY * len(names)):
        return
    before = -math.inf
    for name, time in zip(names, times):
        if time is None or time <= before:
            why = "no date" if time is None else "no later date than the name before it"
            warnings.warn(
                f"{name!r} has {why}, so that gaps in time are not found; the other names of its folder hold dates",
                stacklevel=stacklevel_of_user(),
            )
            return
        before = time


def _date_and_time(name: str) -> float | None:
    """Return the date and time in a name in minutes, without time zones, or None if there is none."""
    return _minutes(_DATED.search(name), 0)


def _brief_date_and_time(name: str) -> float | None:
    """Return the date with a year of two digits, and the time, in a name in minutes, or None if there is none."""
    return _minutes(_DATED_BRIEFLY.search(name), 2000)


def _minutes(found: re.Match[str] | None, century: int) -> float | None:
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups())
    try:
        moment = datetime(century + year, month, day, hour, minute, second)
        return (moment - datetime(1900, 1, 1)).total_seconds() / 60
    except ValueError:
        return None


def _time_of_day(name: str) -> float | None:
    """Return the minutes of the day if a name ends in HHMM or HHMMSS, with or without separators, else None."""
    found = _OF_DAY.search(name)
    if found is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 60.0 * hours + minutes + seconds / 60


def _count(name: str) -> float | None:
    """Return a name's last number as a count, or None if it has no number."""
    number = _last_number(name)
    return None if number is None else float(number)


def _last_number(name: str) -> str | None:
    """Return the digits of a name's last number, or None if it has no number."""
    found = re.findall(r"\d+", name)
    return found[-1] if found else None
