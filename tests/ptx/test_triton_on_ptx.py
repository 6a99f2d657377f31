"""The Triton kernels as they are compiled: the case table passes on the PTX of Triton's compiler, for two
architectures."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import on_ptx
import pytest
from ptx_runs import build, environment, run_tests
from side_by_side import Runs, check_passed, side_by_side

FILES = [
    "test_ops.py",
    "test_lstm_steps.py",
    "test_deterministic.py",
    "test_triton_large.py",
    "test_gated_warp.py",
    "test_decode_blend.py",
]
# Each case of gates and warp compiles up to eight kernels: these cases have every form of them.
OF_GATED_WARP = (
    "not gated_warp or usual or c33 or c6_channels_last or c32_channels_last or no_entries"
    " or 16-1x1 or 19-3x3"
)
# motion_warp is two ops here, each of which has cases of its own.
SELECTED = (
    f"triton and not motion_warp and (values or deterministic or lstm_steps or views) and ({OF_GATED_WARP})"
)
# Nearly all of the time is Triton's: a second for each form of a kernel, of which dtypes, channels and layouts make
# many. So some cases are in three dtypes, and each other case is in one: in bfloat16 with channels last, in float32
# else. (Nearly all are in float64 in Triton's interpreter, see tests/triton.)
IN_ALL_DTYPES = "plain or usual or c16 or c33 or no_highway"
IN_ONE_DTYPE = (
    "not triton-float16 and not triton-float64 and not (triton-float32 and channels_last)"
    " and (channels_last or not triton-bfloat16)"
)
# By night every test runs on both architectures, by day one of four on each. They differ in matrix products, wgmma or
# mma, and in conversions of bfloat16; each launches every kernel.
SHARES_BY_DAY = {90: "1/4", 80: "3/4"}
AT_LEAST = 600


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs leave what they executed."""
    return tmp_path_factory.mktemp("executed")


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest, executed: Path, nightly: bool) -> Iterator[Runs]:
    def run(architecture: int) -> CompletedProcess[str]:
        variables = environment(folder, architecture, "triton", MOTIONRNN_EXT_PTX_COVERAGE=str(executed))
        select = f"{SELECTED} and ({IN_ONE_DTYPE} or {IN_ALL_DTYPES})"
        return run_tests(FILES, select, variables, "1/1" if nightly else SHARES_BY_DAY[architecture])

    folder = build(on_ptx.INTERPRETER)
    with side_by_side(request, "test_compiled_triton_kernels", run) as runs:
        yield runs


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not installed")
@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARES_BY_DAY)
def test_compiled_triton_kernels(
    running: Runs,
    executed: Path,
    architecture: int,
    nightly: bool,
    record_property: Callable[[str, object], None],
):
    at_least = AT_LEAST if nightly else AT_LEAST // 4
    check_passed(f"Triton's PTX {architecture}", running[architecture].result(), at_least)
    coverage = on_ptx.recorded_coverage(executed, f"triton-{architecture}")
    record_property("figure", f"Triton, PTX of sm_{architecture}: {coverage}")
    from triton_static import all_kernels

    launched = {re.sub("_[0-9a-f]{8}$", "", name) for name, k in coverage.kernels.items() if k.launched}
    assert launched == {kernel.__name__ for kernel in all_kernels()}
