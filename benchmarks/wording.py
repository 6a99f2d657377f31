"""Figures and tables as the pages write them: three digits, the unit that fits, "-" where nothing was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NONE = "-"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, without a newline at its end."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def digits(value: float) -> str:
    """Return the value with three digits: 0.123, 1.23, 12.3, 123, 1,234."""
    places = 3 if value < 0.9995 else 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{places}f}"


def _scaled(value: float | None, units: tuple[tuple[float, str], ...]) -> str:
    """Return the value in the largest unit that it fills, or in the last one; the units begin with the largest."""
    if value is None:
        return NONE
    scale, unit = next(((s, u) for s, u in units if value >= 0.9995 * s), units[-1])
    text = f"{value:.0f}" if scale == 1 and isinstance(value, int) else digits(value / scale)
    return f"{text} {unit}"


def duration(microseconds: float | None) -> str:
    return _scaled(microseconds, ((1e6, "s"), (1e3, "ms"), (1.0, "µs")))


def span(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return NONE
    first, last = duration(low).split(), duration(high).split()
    return " ".join([*(first[:1] if first[1:] == last[1:] else first), "to", *last])


def size(count: float | None) -> str:
    """Return an amount of memory."""
    return _scaled(count, ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")))


def amount(count: float | None, unit: str) -> str:
    """Return an amount of FLOPs, of bytes moved, or of either per second."""
    return _scaled(
        count, ((1e12, f"T{unit}"), (1e9, f"G{unit}"), (1e6, f"M{unit}"), (1e3, f"k{unit}"), (1.0, unit))
    )


def times(ratio: float | None) -> str:
    """Return a ratio such as 1.23x; a ratio below 1 is never rounded up to 1."""
    if ratio is None:
        return NONE
    if 0.995 <= ratio < 1:
        return f"{min(ratio, 0.999):.3f}x"
    return f"{ratio:.2f}x" if ratio < 9.995 else f"{ratio:.1f}x"


def share(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}" if value >= 0.001 else "<0.1%"


def number(value: float | None) -> str:
    return NONE if value is None else f"{value:g}" if value < 1e6 else f"{value:,.0f}"
