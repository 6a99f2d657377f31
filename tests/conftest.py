"""Options, checks and reports of every run of the tests.

Several processes share a run: `pytest -n 2` on one machine, `pytest --share 2/8` where each is started by hand. What
passed is compared with the compatibility table at a run's end (features.py), and the figures that tests have recorded
are printed.
"""

from __future__ import annotations

from collections.abc import Generator

import features
import pytest

pytest_plugins = ("perceptual_networks",)

WHAT_DISAGREES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="I/N", help="run every Nth of the selected tests, from the Ith on")
    parser.addoption(
        "--nightly", action="store_true", help="run the tests marked nightly, too, and whole tables of cases"
    )


def pytest_configure(config: pytest.Config) -> None:
    features.begin()


@pytest.fixture(scope="session")
def nightly(pytestconfig: pytest.Config) -> bool:
    """Whether this run takes whole tables of cases."""
    return pytestconfig.getoption("--nightly")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--nightly"):
        nightly = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if item not in nightly]
    if share := config.getoption("--share"):
        first, step = map(int, share.split("/"))
        items[:] = items[first - 1 :: step]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and not report.skipped:
        features.note(item, report.passed)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run whose tests say something else than the compatibility table."""
    config = session.config
    is_selected = any((config.option.keyword, config.option.markexpr, config.getoption("--share")))
    of_all_files = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    whole = of_all_files and config.getoption("--nightly") and not is_selected
    found = features.end()
    finished = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if found is not None and finished and not config.option.collectonly:
        config.stash[WHAT_DISAGREES] = features.disagreements(found, whole)
        if config.stash[WHAT_DISAGREES]:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for wrong in config.stash.get(WHAT_DISAGREES, []):
        terminalreporter.write_line(f"compatibility table (docs/pytorch.md): {wrong}", red=True)
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "figure":
                terminalreporter.write_line(value)
