"""The compatibility table of docs/pytorch.md: this run's tests, the record and the page agree.

conftest.py puts this file last. After a change, `MOTIONRNN_EXT_FEATURES=NOTES make test-all` keeps what passed,
and `python tests/support/features.py --update NOTES` writes it into record and page.
"""

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


def test_what_passed_is_what_the_record_says(request: pytest.FixtureRequest):
    """A run of all tests also covers all of the record, for the backends that it had."""
    config = request.config
    whole = not config.option.keyword and not config.option.markexpr
    whole = whole and config.args_source is pytest.Config.ArgsSource.TESTPATHS
    found = features.noted()
    recorded = features.recorded()
    outcomes = {
        name: {c: said.partition(",")[0] for c, said in row.items()} for name, row in recorded.items()
    }
    for name, row in found.items():
        for column, said in row.items():
            assert said.partition(",")[0] == outcomes.get(name, {}).get(column), (name, column, said)
    if whole:
        ran = {column for row in found.values() for column in row}
        missing = {
            (n, c) for n, row in recorded.items() for c in row if c in ran and c not in found.get(n, {})
        }
        assert not missing, f"no test of this run covers {sorted(missing)}"


def test_the_page_shows_the_record():
    shown = PAGE.read_text().partition(START)[2].partition(END)[0]
    assert shown == "\n".join(features.table(features.recorded())) + "\n"
    assert all(set(row) <= set(COLUMNS) for row in features.recorded().values())
