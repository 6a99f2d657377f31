"""What the commands print: tables and the paths of what they wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .metrics import BETTER, LABELS, table_rows

COLUMNS = {
    **{name: f"{label} {BETTER[name]}" for name, label in LABELS.items()},
    "parameters": "parameters",
    "seconds_per_step": "s/step",
}


def print_results(
    results: Mapping[str, Mapping[str, Any]], *, per_lead: bool = False, title: str = "mean over lead times"
) -> None:
    """A table of models, and with `per_lead` one per model of its lead times."""
    columns = {key: label for key, label in COLUMNS.items() if any(key in row for row in results.values())}
    tables = [_table(title, table_rows(results, columns))]
    for label, result in results.items() if per_lead else ():
        tables.append(_table(label, _lead_rows(result["per_lead"])))
    console = Console()
    for table in tables:
        console.print(table)


def _table(title: str, rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _lead_rows(per_lead: Mapping[str, list[float]]) -> list[list[str]]:
    n_lead = len(next(iter(per_lead.values())))
    rows = {f"t+{i + 1}": {name: values[i] for name, values in per_lead.items()} for i in range(n_lead)}
    heading, *rest = table_rows(rows, {name: COLUMNS[name] for name in per_lead})
    return [["lead time", *heading[1:]], *rest]


def print_paths(paths: Iterable[Path]) -> None:
    print("written:")
    for path in paths:
        print(f"  {path}")
