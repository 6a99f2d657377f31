"""docs/errors.md has every message of the ops, layers, models and backends, and what the program says of mistakes; each
is provoked."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from provocations import ELSEWHERE, GROUPS, Place, Provocation
from repository import ROOT, path_of_test
from under_test import CPU, NOT_TESTED

PAGE = ROOT / "docs" / "errors.md"
ALL = [(group, message) for group, entries in GROUPS.items() for message in entries]
OF_KERNELS = ("motionrnn_ext: mixed", "motionrnn_ext: mismatched", "MOTIONRNN_EXT_CPU_ISA")


def on_the_page() -> list[tuple[str, str]]:
    """The heading and the message of every row."""
    found, heading = [], ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        if row := re.match(r"\| (`+) ?(.+?) ?\1 \|", line):
            found.append((heading, row[2]))
    return found


def pattern(message: str) -> str:
    return re.escape(message).replace(re.escape("..."), "(.*)")


@pytest.mark.parametrize("group, message", ALL)
def test_a_message_is_provoked(
    group: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    if message.startswith(OF_KERNELS) and CPU.name in NOT_TESTED:
        pytest.skip(f"no kernels: {NOT_TESTED['cpu']}")
    said = provoked(GROUPS[group][message], Place(tmp_path, monkeypatch, capsys))
    assert re.search(pattern(message), said), said


def provoked(provocation: Provocation, place: Place) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            said = provocation(place)
        except (ValueError, TypeError, RuntimeError, OSError, ImportError, UserWarning) as error:
            return str(error)
    assert isinstance(said, str), "nothing was raised"
    return said


def test_the_page_has_what_is_provoked_and_nothing_else():
    page = on_the_page()
    assert sorted(m for _, m in page) == sorted([*(m for _, m in ALL), *ELSEWHERE])
    assert {(h, m) for h, m in page if m not in ELSEWHERE} == set(ALL)


@pytest.mark.parametrize("message", ELSEWHERE)
def test_the_test_of_a_message_elsewhere_is_there(message: str):
    name, _, function = ELSEWHERE[message].partition("::")
    source = path_of_test(name).read_text()
    defined = {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    assert function in defined


# ---- The other way round: what the sources raise is on the page

SOURCES = [
    path
    for folder in ("ops", "layers", "models", "backends")
    for path in sorted((ROOT / "motionrnn_ext" / folder).rglob("*.py"))
] + [ROOT / "motionrnn_ext" / "warmup.py"]


def raised() -> Iterator[tuple[str, str]]:
    """Where, and the message with `...` for every value."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else node
            is_warning = isinstance(call, ast.Call) and ast.unparse(call.func) == "warnings.warn"
            if isinstance(call, ast.Call) and call.args and (isinstance(node, ast.Raise) or is_warning):
                yield f"{path.name}:{node.lineno}", words(call.args[0])


def words(text: ast.expr) -> str:
    if isinstance(text, ast.Constant):
        return str(text.value)
    if isinstance(text, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "..." for part in text.values)
    raise AssertionError(f"no message: {ast.unparse(text)}")


def test_every_message_of_the_sources_is_on_the_page():
    """Either form may be the more general one."""
    page = [message for _, message in on_the_page()]
    found = dict(raised())
    assert len(found) > 50
    absent = [
        f"{where}: {said}"
        for where, said in found.items()
        if not any(re.search(pattern(m), said) or re.fullmatch(pattern(said), m) for m in page)
    ]
    assert absent == []
