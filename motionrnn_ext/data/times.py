"""Times in the names of frames, and the gaps between them, which no clip may span."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from statistics import median_low

# A step longer than this many median steps is a gap.
LONGEST_STEP = 1.5
_DATE_AND_TIME = re.compile(r"(?<!\d)((?:19|20)\d\d)\D?(\d\d)\D?(\d\d)\D?(\d\d)\D?(\d\d)(?:\D?(\d\d))?(?!\d)")


def gaps(names: Sequence[str], interval: float | None = None) -> list[int]:
    """Return the positions i at which names[i] comes after a gap in time: its step from names[i-1] is longer than 1.5
    times the median step of all names.

    A name's time is the date and time of day in it, such as `20170509_1305` or `2017-05-09T13:05:00`. Without a date
    it is the last number, read as a time of day (`2355`) or as a count. If all names increase by both readings, the one
    with fewer gaps counts. If they increase by neither, the names hold no times, and there is no gap.

    Args:
        names: the names in their order.
        interval: the time between frames, in minutes, or in counts for names that hold counts. Steps that are longer
            than 1.5 times this, or of which 1.5 are shorter than it, are gaps. None takes the median step.

    Raises:
        ValueError: an interval for names that hold no times.
    """
    # Dates come first: times of day alone could go on at the same hour of another day.
    if dated := _all(_date_and_time, names):
        return _leaps(dated, None if interval is None else 60 * interval)
    found = [_leaps(times, interval) for read in (_time_of_day, _count) if (times := _all(read, names))]
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


def _date_and_time(name: str) -> float | None:
    """Return the date and time in a name in seconds, without time zones, or None if there is none."""
    found = _DATE_AND_TIME.search(name)
    if found is None:
        return None
    try:
        moment = datetime(*(int(part or 0) for part in found.groups()))  # type: ignore[arg-type]
    except ValueError:
        return None
    return (moment - datetime(1900, 1, 1)).total_seconds()


def _time_of_day(name: str) -> float | None:
    """Return the minutes of the day if a name's last number reads HHMM, else None."""
    number = _last_number(name)
    if number is None or len(number) != 4 or int(number[:2]) > 23 or int(number[2:]) > 59:
        return None
    return 60.0 * int(number[:2]) + int(number[2:])


def _count(name: str) -> float | None:
    """Return a name's last number as a count, or None if it has no number."""
    number = _last_number(name)
    return None if number is None else float(number)


def _last_number(name: str) -> str | None:
    """Return the digits of a name's last number, or None if it has no number."""
    found = re.findall(r"\d+", name)
    return found[-1] if found else None
