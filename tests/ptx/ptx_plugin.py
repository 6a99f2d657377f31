"""What the PTX interpreter reports in a test fails that test. tests/conftest.py loads this where MOTIONRNN_EXT_PTX is
set."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from under_test import PTX


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    yield
    if PTX and (reports := PTX.reports()):
        pytest.fail("\n".join(["the PTX interpreter reports", *map(str, reports[:5])]), pytrace=False)
