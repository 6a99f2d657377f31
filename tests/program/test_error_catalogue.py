"""docs/errors.md: messages of the ops, backends, layers and models are provoked, one by one, and none is missing there;
the other rows must be words of the sources."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from provocations import GROUPS, Place, Provocation
from repository import ROOT
from under_test import CPU, NOT_TESTED

PAGE = ROOT / "docs" / "errors.md"
ALL = [(group, message) for group, entries in GROUPS.items() for message in entries]
OF_KERNELS = ("motionrnn_ext: mixed", "motionrnn_ext: mismatched", "MOTIONRNN_EXT_CPU_ISA")


def on_the_page() -> list[tuple[str, str]]:
    """Return the heading and the message of every row."""
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
def test_a_message_is_provoked(group: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if message.startswith(OF_KERNELS) and CPU.name in NOT_TESTED:
        pytest.skip(f"no kernels: {NOT_TESTED['cpu']}")
    said = provoked(GROUPS[group][message], Place(tmp_path, monkeypatch))
    assert re.search(pattern(message), said), said


def provoked(provocation: Provocation, place: Place) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            said = provocation(place)
        except (
            ValueError,
            TypeError,
            AttributeError,
            RuntimeError,
            OSError,
            ImportError,
            UserWarning,
        ) as error:
            return str(error)
    assert isinstance(said, str), "nothing was raised"
    return said


# Rows that tests elsewhere provoke, since they need a build or a GPU, or are PyTorch's own words.
ELSEWHERE = {
    "motionrnn_ext: this build has CUDA kernels for the architectures ..., not for this GPU; ...",
    "warmup: a CUDA graph is being captured; warmup should come before",
    "No ONNX function found for ...motionrnn_ext...",
    "... does not have a deterministic implementation, ...",
}


def test_the_page_has_what_is_provoked_and_nothing_else():
    rows = [(heading, message) for heading, message in on_the_page() if heading in GROUPS]
    assert sorted(row for row in rows if row[1] not in ELSEWHERE) == sorted(ALL)


# ---- The other way round: what the sources raise is on the page, and what the page has is in the sources

SOURCES = [
    path
    for folder in ("ops", "layers", "models", "backends", "graphs")
    for path in sorted((ROOT / "motionrnn_ext" / folder).rglob("*.py"))
] + [ROOT / "motionrnn_ext" / "warmup.py"]


def raised() -> Iterator[tuple[str, str]]:
    """Yield where each message is raised, and the message with `...` for every value."""
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


def texts() -> Iterator[str]:
    """Yield every text of the sources that may be part of a message, with `...` for every value."""
    folders = [ROOT / "motionrnn_ext", ROOT / "benchmarks"]
    for path in [ROOT / "setup.py", *(path for folder in folders for path in folder.rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr) or (
                isinstance(node, ast.Constant) and isinstance(node.value, str)
            ):
                yield words(node)
    for path in (ROOT / "csrc").rglob("*.[hc]*"):
        yield from re.findall(r'"([^"\n]+)"', path.read_text())


def test_every_row_is_made_of_the_words_of_the_sources():
    """Most pairs of neighbouring words stand so in the sources; a value may stand where the page has an example."""
    everything = "\n".join(set(texts()))
    for heading, message in on_the_page():
        if heading not in GROUPS:
            parts = [part.split() for part in message.split("...")]
            pairs = [" ".join(pair) for words in parts for pair in pairwise(words)]
            absent = [pair for pair in pairs if pair not in everything]
            assert len(absent) <= max(1, len(pairs) / 2), (message, absent)
