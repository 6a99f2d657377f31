"""The Triton kernels without a GPU: tests of the ops under Triton's interpreter; compiled ahead of time for GPUs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)

# ---- The interpreter. Two processes share minutes of it: every case in float32, in the other dtypes a part of the warp's.

FILES = [
    "test_ops.py",
    "test_ops_autograd.py",
    "test_deterministic.py",
    "test_triton_kernels.py",
    "test_golden.py",
]
TABLE = "((values and float32) or (golden and float64 and (warp or motiongru)))"
REST = [
    "not golden",
    "not values or not warp or c24 or c33_to_8",
    "not (deterministic and offset_warp) or float32",
    "not large_maps and not long_sums",  # of what is compiled: tensor cores, many blocks
]
SHARES = {
    "table": f"triton and {TABLE} and not motion_warp",  # which is two ops here
    "rest": " and ".join(["triton", f"not {TABLE}", *(f"({part})" for part in REST)]),
}


def run_interpreted(share: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", SHARES[share],
               "--durations=25", *(str(TESTS / name) for name in FILES)]  # fmt: skip
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("MOTIONRNN_EXT_EMULATOR", None)
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, cwd=TESTS.parent,
    )  # fmt: skip


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    shares = [
        i.callspec.params["share"] for i in request.session.items if i.originalname == "test_interpreted"
    ]
    with ThreadPoolExecutor() as pool:
        yield {share: pool.submit(run_interpreted, share) for share in shares}


@NEEDS_TRITON
@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
def test_interpreted(running: dict[str, Future[subprocess.CompletedProcess[str]]], share: str):
    result = running[share].result()
    assert result.returncode == 0, result.stdout[-10_000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) >= {"table": 180, "rest": 450}[share], result.stdout[-2000:]
    print(share, result.stdout.splitlines()[-1])
