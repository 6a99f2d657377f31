"""A committed table of what a compiler makes of the kernels, a row per compiler, kernel and GPU.

Its file, what counts as worse, and its short form on a page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from cuda_binary import Row, Table

Tables = dict[str, Table]  # by version of the compiler

MORE_IS_WORSE = ("registers", "stack", "LDL/STL")


def read(path: Path, compiler: str, gpu: str) -> Tables:
    """compiler, gpu: what a row calls them."""
    tables: Tables = {}
    for row in json.loads(path.read_text()) if path.is_file() else ():
        kernels = tables.setdefault(row.pop(compiler), {})
        kernels.setdefault(row.pop("kernel"), {})[row.pop(gpu)] = row
    return tables


def write(path: Path, tables: Tables, compiler: str, gpu: str) -> None:
    """A line per row, so that a change reads well in a diff."""
    rows = [
        json.dumps({compiler: version, "kernel": name, gpu: target} | row)
        for version, table in sorted(tables.items())
        for name, rows in sorted(table.items())
        for target, row in sorted(rows.items(), key=lambda item: (len(item[0]), item[0]))
    ]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n")


def problems(
    table: Table,
    committed: Table | None,
    broken_promises: Callable[[str, Row], list[str]],
    where: Callable[[str, str], str],
    source: str,
) -> list[str]:
    """Everything that makes a test fail, a sentence each.

    committed: the rows of the same compiler, if there are. where: names a kernel on a GPU. source: of the rows at hand,
    for the kernels that are gone from there; GPUs that it has no rows of say nothing.
    """
    found = []
    built = {target for rows in table.values() for target in rows}
    for name, rows in table.items():
        for target, row in rows.items():
            complaints = broken_promises(name, row)
            if committed is not None:
                before = committed.get(name, {}).get(target)
                new = ["not in the committed table (--update)"]
                complaints += new if before is None else worse(row, before)
            found += [f"{where(name, target)}: {complaint}" for complaint in complaints]
    for name, rows in (committed or {}).items():
        gone = [target for target in rows if target in built and name not in table]
        found += [f"{where(name, t)}: in the committed table, not {source} (--update)" for t in gone]
    return found


def worse(row: Row, before: Row) -> list[str]:
    found = [
        f"{key} {before.get(key, 0)} -> {row.get(key, 0)}"
        for key in MORE_IS_WORSE
        if row.get(key, 0) > before.get(key, 0)
    ]
    if row.get("occupancy", 1) < before.get("occupancy", 1):  # AMD's rows have none
        found.append(f"occupancy {before['occupancy']} -> {row['occupancy']}, limited by {row['limit']}")
    return found


def markdown(
    columns: Mapping[str, Callable[[Row], str]], kernels: Iterable[tuple[str, Sequence[Row]]]
) -> str:
    """A line per kernel; where its rows differ, each row's figure."""
    lines = ["| " + " | ".join(["kernel", *columns]) + " |", "|---" * (1 + len(columns)) + "|"]
    for name, rows in kernels:
        cells = [[show(row) for row in rows] for show in columns.values()]
        merged = [cell[0] if len(set(cell)) == 1 else " / ".join(cell) for cell in cells]
        lines.append("| " + " | ".join([f"`{name}`", *merged]) + " |")
    return "\n".join(lines) + "\n"


def page_with(markers: tuple[str, str], text: str, page: str) -> str:
    begin, end = markers
    before, _, rest = page.partition(begin)
    return before + begin + text + end + rest.partition(end)[2]
