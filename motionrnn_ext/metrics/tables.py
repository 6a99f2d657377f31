"""The names of the metrics for people, and tables of results as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABELS = {
    "mse": "MSE",
    "mae": "MAE",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "gdl": "GDL",
    "lpips": "LPIPS",
    "fvd": "FVD",
    "crps": "CRPS",
    "faircrps": "fair CRPS",
    "spread": "spread",
    "rmse": "RMSE of mean",
    "ratio": "spread/skill",
    "pod": "POD",
    "far": "FAR",
    "csi": "CSI",
    "hss": "HSS",
    "bias": "bias",
    "fss": "FSS",
}
# The metrics of events; their names in results end with a threshold, such as "csi_20".
EVENTS = ("pod", "far", "csi", "hss", "bias", "fss")
_UP, _DOWN = "\u2191", "\u2193"
# The arrow of a metric points in the direction that is better, or to the best value.
BETTER = {name: _UP if name in ("psnr", "ssim", "pod", "csi", "hss", "fss") else _DOWN for name in LABELS} | {
    "bias": "\u2192 1",
    "ratio": "\u2192 1",
    "spread": "",
}


def heading(name: str) -> str:
    """Return a metric's label with the arrow of `BETTER`: "mse" -> "MSE ↓", "fss_20_3px" -> "FSS 20 3px ↑"."""
    kind, *about = name.split("_")
    if kind not in LABELS:
        return name
    return " ".join(part for part in (LABELS[kind], *about, BETTER[kind]) if part)


def counted(n: int, one: str, many: str = "") -> str:
    """Return a number with its noun: "1 clip", "1,000 clips". `many` is the plural if it is not `one` with an s."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def table_rows(
    results: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str] | None = None
) -> list[list[str]]:
    """Return a header and a row per model, all text, for a rich table or for `plain_table`.

    A number that was not measured reads "-" and nan reads "nan", or "no event" for scores of events if the MSE is a
    number.

    Args:
        results: a mapping from the models' labels to the results of `FrameMetrics.compute`, and any further numbers.
        columns: a mapping from keys of the results to headings; None for all metrics in the results.
    """
    if columns is None:
        columns = {key: label for key, label in LABELS.items() if any(key in row for row in results.values())}
    rows = [[label, *(_text(key, row) for key in columns)] for label, row in results.items()]
    return [["model", *columns.values()], *rows]


def _text(key: str, row: Mapping[str, Any]) -> str:
    """Return the text of one number of a model's results."""
    value, mse = row.get(key), row.get("mse")
    if value is None or isinstance(value, str):
        return value or "-"
    if value != value:
        return "no event" if key.startswith(EVENTS) and mse == mse else "nan"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def plain_table(rows: list[list[str]]) -> str:
    """Return rows as aligned text, the first column flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(
        "  ".join(f"{text:{'>' if i else '<'}{widths[i]}}" for i, text in enumerate(row)).rstrip()
        for row in rows
    )
