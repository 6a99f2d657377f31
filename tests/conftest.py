"""`pytest --share 2/8` runs the second of eight parts of the tests, so that several processes can share them. What
passed is noted for the compatibility table (features.py); the test that looks at it comes last."""

from __future__ import annotations

from collections.abc import Generator

import features
import pytest

pytest_plugins = ("perceptual_networks",)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="I/N", help="run every Nth of the selected tests, from the Ith on")


def pytest_configure(config: pytest.Config) -> None:
    features.begin()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if share := config.getoption("--share"):
        first, step = map(int, share.split("/"))
        items[:] = items[first - 1 :: step]
    items.sort(key=lambda item: item.path.name == "test_features.py")  # stable: nothing else moves


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and not report.skipped:
        features.note(item, report.passed)
    return report


def pytest_sessionfinish() -> None:
    features.end()
