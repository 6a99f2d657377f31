"""The Triton kernels without a GPU: tests of the ops under Triton's interpreter; compiled ahead of time for GPUs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import features
import pytest
from cuda_binary import ToolMissing, find_tool
from repository import ROOT, path_of_test
from side_by_side import Runs, check_passed, side_by_side

NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)

# ---- The interpreter takes minutes. It runs nearly every case in float64 and few in other dtypes; by night two
# processes also run the tests that have no table of cases. Bands of gates are left out, as they take 12 s each; the
# tests on PTX run them in float32, and most cases in one dtype.

FILES = [
    "test_ops.py",
    "test_ops_autograd.py",
    "test_lstm_steps.py",
    "test_deterministic.py",
    "test_triton_kernels.py",
    "test_triton_large.py",
    "test_golden.py",
    "test_rollouts.py",
    "test_gated_warp.py",
    "test_decode_blend.py",
    "test_triton_launches.py",
]
VALUES = "values and (float64 and not bands or usual or plain or c16)"
DERIVATIVES = "gradcheck or opcheck or (golden and float64 and (warp or motiongru))"
REST = [
    "not values",
    "not golden",
    "not (deterministic and offset_warp) or float32",
    "not large_maps and not long_sums",  # of what is compiled: tensor cores, many blocks
]
SHARES = {
    # `motion_warp` is left out: it is two ops here, which have cases of their own.
    "table": f"triton and ({VALUES} or {DERIVATIVES} or launches) and not motion_warp",
    "rest": " and ".join(["triton", f"not ({DERIVATIVES})", *(f"({part})" for part in REST)]),
    "features": "triton",
}


def run_interpreted(share: str) -> subprocess.CompletedProcess[str]:
    files = ["test_fuzz.py", *features.FILES] if share == "features" else FILES
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", SHARES[share],
               "--durations=25", *(str(path_of_test(name)) for name in files)]  # fmt: skip
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("MOTIONRNN_EXT_PTX", None)
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, cwd=ROOT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[Runs]:
    with side_by_side(request, "test_interpreted", run_interpreted) as runs:
        yield runs


@NEEDS_TRITON
@pytest.mark.slow
@pytest.mark.parametrize(
    "share", [s if s == "table" else pytest.param(s, marks=pytest.mark.nightly) for s in SHARES]
)
def test_interpreted(running: Runs, share: str):
    check_passed(share, running[share].result(), at_least={"table": 450, "rest": 280, "features": 130}[share])


# ---- Ahead of time


@NEEDS_TRITON
@pytest.mark.slow
def test_every_kernel_compiles_and_stays_in_registers(nightly: bool):
    """Every kernel compiles without spills, for one GPU of each maker, by night for every GPU of the list."""
    import triton_static as report

    try:
        find_tool("cuobjdump")
    except ToolMissing as missing:
        pytest.skip(str(missing))
    targets = tuple(report.TARGETS) if nightly else ("sm_90", "gfx942")
    table, failed = report.compile_all(targets=targets)
    assert failed + report.problems(table) == []
    kernels = {kernel.__name__.removesuffix("_kernel") for kernel in report.all_kernels()}
    for dtype in report.DTYPES:
        for target in targets:
            names = [name for name in table if target in table[name] and dtype in name]
            assert {report.kernel_of(name) for name in names} == kernels, (dtype, target)


@NEEDS_TRITON
@pytest.mark.slow
def test_every_kernel_compiles_with_indices_of_64_bits():
    """The interpreter lets a variable change its type where the compiler does not."""
    import triton_static as report

    wanted = ": bf16( C16| 1x1| packed warp|$)"
    forms = [launch for name, launch in report.launches("tf32x3").items() if re.search(wanted, name)]
    kernels = {launch.kernel.__name__ for launch in forms}
    assert kernels == {kernel.__name__ for kernel in report.all_kernels()}
    for launch in forms:
        strides = {
            name: "i64"
            for name, kind in launch.signature.items()
            if kind == "i32" and name.endswith(("_batch", "_stride"))
        }
        constants = launch.constants | {"WIDE": True}
        report.compiled(launch._replace(signature=launch.signature | strides, constants=constants), "sm_80")


@NEEDS_TRITON
def test_launches_ask_for_fused_multiply_add():
    """Left out, it is on up to Triton 3.9, which warns, and off in later ones."""
    import triton_static as report

    launches = report.launches("ieee").values()
    assert launches and all(launch.options["enable_fp_fusion"] for launch in launches)
