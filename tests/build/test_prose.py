"""Docstrings are sentences, lines of Markdown prose are short, and links between the project's files lead somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT

# A docstring that begins so leaves out its noun: "Of a dense image that may be left out."
FRAGMENT = re.compile(r"(Of|That|With|Where|What|For)\b")
SOURCES = sorted(
    {path.resolve() for folder in ("motionrnn_ext", "benchmarks") for path in (ROOT / folder).rglob("*.py")}
)

# `motionrnn bench --report` writes this page anew, a line per item.
GENERATED = {"docs/benchmarks.md"}
# `python docs/results.py` writes these parts of a page.
TABLES = re.compile(r"^<!-- results/.*?^<!-- end of results -->$", re.MULTILINE | re.DOTALL)
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md"), *ROOT.glob("docs/**/*.md")]
)
LONGEST = 100
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^ {4,}.*$|`[^`\n]+`", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]*)\)")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def fragments(source: str) -> list[str]:
    return [f"{line}: {text.splitlines()[0]}" for line, text in docstrings(source) if FRAGMENT.match(text)]


def long_lines(text: str) -> list[str]:
    """Return the lines of prose that are too long; code, tables and links that cannot be broken are left out."""
    lines = FENCE.sub("", TABLES.sub("", text)).splitlines()
    prose = [line for line in lines if not line.lstrip().startswith(("|", "![", "<!--")) and line[:4].strip()]
    return [line for line in prose if len(line) > LONGEST and " " in LINK.sub("", line.strip("-* "))]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def broken_links(page: str, text: str) -> list[str]:
    broken = []
    for link in LINK.findall(CODE.sub("", FENCE.sub("", text))):
        target, _, anchor = link.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (ROOT / page).parent / target
        content = text if not target else path.read_text() if anchor and path.is_file() else ""
        if not path.exists() or (anchor and anchor not in anchors(content)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_docstrings_are_sentences(path: Path):
    assert not fragments(path.read_text())


@pytest.mark.parametrize("page", [page for page in PAGES if page not in GENERATED])
def test_lines_of_prose_are_short(page: str):
    assert not long_lines((ROOT / page).read_text())


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    assert not broken_links(page, (ROOT / page).read_text())


def test_mistakes_are_found():
    source = 'class Place:\n    """Where it is."""\n\n    def of(self):\n        """Offer a place."""\n'
    assert fragments(source) == ["1: Where it is."]
    words = "word " * 30
    assert long_lines(f"{words}\n| {words} |\n\n    {words}\n```\n{words}\n```\n") == [words]
    text = (
        "# A page, new\n[a](#a-page-new) [b](#b) [c](nowhere.md) [d](README.md#no) [e](https://example.org)\n"
    )
    assert broken_links("README.md", text) == ["#b", "nowhere.md", "README.md#no"]
