"""Output of the commands: tables of results, how they were measured, and the paths of written files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from ..metrics import LABELS, heading, table_rows
from ..terminal.console import wide_console

_EVENTS = ("csi", "far")
COLUMNS = {
    **{name: heading(name) for name in LABELS if name not in _EVENTS},
    "parameters": "parameters",
    "seconds_per_step": "s/step",
}


def print_results(
    results: Mapping[str, Mapping[str, Any]], *, per_lead: bool = False, title: str = "mean over lead times"
) -> None:
    """Print a table of models, and one of CSI and FAR if these were measured.

    With `per_lead` the tables of each model's lead times follow.
    """
    columns = {key: label for key, label in COLUMNS.items() if any(key in row for row in results.values())}
    tables = [_table(title, table_rows(results, columns))]
    thresholds = _thresholds(results)
    if thresholds:
        tables.append(_table("events: value >= threshold", _event_rows(results, thresholds)))
    for label, result in results.items() if per_lead else ():
        frames = {name: values for name, values in result["per_lead"].items() if name in LABELS}
        tables.append(_table(label, _lead_rows(frames)))
        events = {name: values for name, values in result["per_lead"].items() if name not in LABELS}
        if events:
            tables.append(_table(f"{label}: events, pooled", _lead_rows(events, frames.get("mse"))))
    for table in tables:
        wide_console().print(table)


def print_protocol(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print how the numbers were measured, as far as the results of `Meter` say it; each sentence once."""
    sentences = [text for result in results.values() for text in result.get("protocol", {}).values()]
    for text in dict.fromkeys(sentences):
        print(text)


def _thresholds(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the thresholds that any model was scored with, as text such as "20", in order."""
    names = [name for result in results.values() for name in result.get("per_batch", {})]
    return list(dict.fromkeys(name.removeprefix("csi_") for name in names if name.startswith("csi_")))


def _event_rows(results: Mapping[str, Mapping[str, Any]], thresholds: list[str]) -> list[list[str]]:
    """Return a heading and a row per model and threshold, with CSI and FAR pooled and per batch."""
    keys = {f"{kind} {how}": f"{heading(kind)} {how}" for kind in _EVENTS for how in ("pooled", "per batch")}
    rows = {}
    for label, result in results.items():
        for threshold in thresholds:
            row = {"mse": result.get("mse")}
            for kind in _EVENTS:
                row[f"{kind} pooled"] = result.get(f"{kind}_{threshold}")
                row[f"{kind} per batch"] = result.get("per_batch", {}).get(f"{kind}_{threshold}")
            rows[f"{label}, {threshold}"] = row
    (_, *titles), *values = table_rows(rows, keys)
    return [["model, threshold", *titles], *values]


def _table(title: str, rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _lead_rows(per_lead: Mapping[str, list[float]], mse: list[float] | None = None) -> list[list[str]]:
    """Return a heading and a row per lead time, with a column per metric.

    By `mse`, the MSE of every lead time, `table_rows` tells a lead time without events from one whose predictions are
    nan.
    """
    n_lead = len(next(iter(per_lead.values())))
    known = per_lead if mse is None else {"mse": mse, **per_lead}
    rows = {f"t+{i + 1}": {name: values[i] for name, values in known.items()} for i in range(n_lead)}
    first, *rest = table_rows(rows, {name: heading(name) for name in per_lead})
    return [["lead time", *first[1:]], *rest]


def print_paths(paths: Iterable[Path]) -> None:
    """Print the paths of files that were written."""
    print("written:")
    for path in paths:
        print(f"  {path}")
