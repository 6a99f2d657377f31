"""Tests that are pytest runs in processes of their own, two at a time: each keeps one core busy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from subprocess import CompletedProcess

import pytest

Runs = dict[str, "Future[CompletedProcess[str]]"]


@contextmanager
def side_by_side(
    request: pytest.FixtureRequest, test: str, run: Callable[[str], CompletedProcess[str]]
) -> Iterator[Runs]:
    """The runs of the one parameter's values that `test` is asked for with, the last first: it is the slowest."""
    values = [
        value
        for item in request.session.items
        if item.originalname == test
        for value in item.callspec.params.values()
    ]
    with ThreadPoolExecutor(2) as pool:
        yield {value: pool.submit(run, value) for value in reversed(values)}


def check_passed(name: str, result: CompletedProcess[str], at_least: int) -> None:
    assert result.returncode == 0, result.stdout[-10_000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) >= at_least, result.stdout[-2000:]
    print(name, result.stdout.splitlines()[-1])
