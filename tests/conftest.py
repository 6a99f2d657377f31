"""`pytest --share 2/8` runs the second of eight parts of the tests, so that several processes can share them."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="I/N", help="run every Nth of the selected tests, from the Ith on")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if share := config.getoption("--share"):
        first, step = map(int, share.split("/"))
        items[:] = items[first - 1 :: step]
