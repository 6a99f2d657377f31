"""The compatibility table of docs/pytorch.md: runs of the tests, the record and the page agree."""

from __future__ import annotations

import features
import pytest
from features import COLUMNS, END, PAGE, START


def test_a_failure_counts_most_and_a_refusal_least():
    cells: features.Cells = {}
    for said in ("refused", "works, emulated", "fails", "works"):
        features._put(cells, "vmap", "cuda", said)
    assert cells == {"vmap": {"cuda": "fails"}}
    features._put(cells, "vmap", "cpu", "refused")
    features._put(cells, "vmap", "cpu", "works")
    assert cells["vmap"]["cpu"] == "works"


def test_a_run_is_compared_with_the_record(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "recorded", lambda: {"vmap": {"cpu": "works", "cuda": "works, emulated"}})
    found = {"vmap": {"cpu": "works"}}
    assert features.disagreements(found, whole=True) == []
    assert features.disagreements({"vmap": {"cuda": "works"}}, whole=False) == []
    (wrong,) = features.disagreements({"vmap": {"cpu": "refused"}}, whole=False)
    assert wrong == "vmap on cpu: this run says 'refused', the record 'works'"
    (wrong,) = features.disagreements({"vmap": {"cpu": "works"}, "func": {"cpu": "works"}}, whole=True)
    assert wrong == "func on cpu: this run says 'works', the record 'nothing'"
    (wrong,) = features.disagreements({"func": {"cuda": "works"}, "vmap": {"cpu": "works"}}, whole=True)[1:]
    assert wrong == "vmap on cuda: no test of this run covers it"


def test_the_page_shows_the_record():
    shown = PAGE.read_text().partition(START)[2].partition(END)[0]
    assert shown == "\n".join(features.table(features.recorded())) + "\n"
    assert all(set(row) <= set(COLUMNS) for row in features.recorded().values())
