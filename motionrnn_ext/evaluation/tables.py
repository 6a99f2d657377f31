"""Output of the commands: tables of results, how they were measured, and the paths of written files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from ..metrics import EVENTS, LABELS, heading, table_rows
from ..terminal.console import wide_console

COLUMNS = {
    **{name: heading(name) for name in LABELS if name not in EVENTS},
    "parameters": "parameters",
    "seconds_per_step": "s/step",
}


def print_results(
    results: Mapping[str, Mapping[str, Any]], *, per_lead: bool = False, title: str = "mean over lead times"
) -> None:
    """Print a table of models, and one of events at thresholds if these were measured.

    With `per_lead` the tables of each model's lead times follow.
    """
    columns = {key: label for key, label in COLUMNS.items() if any(key in row for row in results.values())}
    tables = [_table(title, table_rows(results, columns))]
    thresholds = _thresholds(results)
    if thresholds:
        tables.append(_table("events: value >= threshold, pooled", event_rows(results, thresholds)))
    for label, result in results.items() if per_lead else ():
        frames = {name: values for name, values in result["per_lead"].items() if name in LABELS}
        tables.append(_table(label, _lead_rows(frames)))
        for threshold in thresholds:
            events = _of_threshold(result["per_lead"], threshold)
            if events:
                title = f"{label}: events, value >= {threshold}, pooled"
                tables.append(_table(title, _lead_rows(events, frames.get("mse"))))
    ranks = {label: result["ranks"] for label, result in results.items() if result.get("members", 1) > 1}
    if ranks:
        tables.append(_table("share of true values above k members", _rank_rows(ranks)))
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


def event_rows(results: Mapping[str, Mapping[str, Any]], thresholds: list[str]) -> list[list[str]]:
    """Return a heading and a row per model and threshold, with the number of observed events and their scores."""
    rows: dict[str, dict[str, Any]] = {}
    for label, result in results.items():
        for threshold in thresholds:
            found = _of_threshold(result.get("per_lead", {}), threshold)
            means = {kind: result.get(_name(kind, threshold)) for kind in found}
            if "observed" in found:
                means["observed"] = sum(found["observed"])
            for name in ("csi", "far"):
                means[f"{name} per batch"] = result.get("per_batch", {}).get(f"{name}_{threshold}")
            rows[f"{label}, {threshold}"] = {"mse": result.get("mse"), **means}
    kinds = dict.fromkeys(name for row in rows.values() for name in row if name != "mse")
    titles = {kind: " ".join([heading(kind.split(" ")[0]), *kind.split(" ")[1:]]) for kind in kinds}
    (_, *first), *values = table_rows(rows, titles)
    return [["model, threshold", *first], *values]


def _rank_rows(ranks: Mapping[str, list[float]]) -> list[list[str]]:
    """Return a heading and a row per model, with the rank histogram."""
    first = next(iter(ranks.values()))
    return [["k", *map(str, range(len(first)))]] + [
        [label, *(f"{x:.3f}" for x in row)] for label, row in ranks.items()
    ]


def _name(kind: str, threshold: str) -> str:
    """Return the name of a score in results: "csi" -> "csi_20", "fss_3px" -> "fss_20_3px"."""
    name, *scale = kind.split("_")
    return "_".join([name, threshold, *scale])


def _of_threshold(per_lead: Mapping[str, list[Any]], threshold: str) -> dict[str, list[Any]]:
    """Return the scores of events at one threshold without the threshold in their names, the number of events first."""
    parts = {name: name.split("_") for name in per_lead}
    found = {
        "_".join([kind, *scale]): per_lead[name]
        for name, (kind, *about) in parts.items()
        if about[:1] == [threshold]
        for scale in [about[1:]]
    }
    return {name: found[name] for name in sorted(found, key=lambda name: name != "observed")}


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
