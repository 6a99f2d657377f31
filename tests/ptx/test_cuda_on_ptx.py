"""The CUDA kernels as they are compiled: the tests of the ops pass on nvcc's PTX, every kernel is launched there, and
mistakes are reported."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from subprocess import CompletedProcess

import features
import native_build
import on_ptx
import pytest
from ptx_runs import build, environment, run_tests
from side_by_side import Runs, check_passed, side_by_side

# ---- The kernels

FILES = [
    "test_ops.py",
    "test_ops_autograd.py",
    "test_gated_warp.py",
    "test_decode_blend.py",
    "test_lstm_steps.py",
    "test_deterministic.py",
    "test_cuda_kernels.py",
    "test_cuda_layers.py",
    "test_cuda_launches.py",
    "test_fuzz.py",
]
# Whole models, and what PyTorch does around them, for the newer architecture. For the older, approximations are wrong
# by up to 2 units in the last place, matrix products are cut as tensor cores cut them, and warps take turns at random;
# one test is for exact values alone. By day one test of three runs for the older.
RUNS = {
    90: (FILES + ["test_golden.py", "test_rollouts.py", *features.FILES], "emulated", ""),
    80: (
        FILES[:-1],
        "emulated and not compiles and not opcheck and not half_storage",
        "noise=2,mma_mode=1,seed=7",
    ),
}
SHARES_BY_DAY = {90: "1/1", 80: "1/3"}
AT_LEAST = {90: 1900, 80: 1600}
EXECUTED = 0.93  # of all instructions; measured 93.8 % for 90; of 80 the tests are fewer


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs leave what they executed."""
    return tmp_path_factory.mktemp("executed")


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest, executed: Path, nightly: bool) -> Iterator[Runs]:
    def run(architecture: int) -> CompletedProcess[str]:
        files, select, options = RUNS[architecture]
        variables = environment(
            folder, architecture, MOTIONRNN_EXT_PTX_COVERAGE=str(executed), MOTIONRNN_EXT_PTX_OPTIONS=options
        )
        return run_tests(files, select, variables, "1/1" if nightly else SHARES_BY_DAY[architecture])

    folder = build(on_ptx.LIBRARY)
    with side_by_side(request, "test_cuda_kernels", run) as runs:
        yield runs


@pytest.mark.slow
@pytest.mark.parametrize("architecture", RUNS)
def test_cuda_kernels(
    running: Runs,
    executed: Path,
    architecture: int,
    nightly: bool,
    record_property: Callable[[str, object], None],
):
    is_whole = nightly or SHARES_BY_DAY[architecture] == "1/1"
    at_least = AT_LEAST[architecture] // (1 if is_whole else 3)
    check_passed(f"PTX {architecture}", running[architecture].result(), at_least)
    coverage = on_ptx.recorded_coverage(executed, f"cuda-{architecture}")
    record_property("figure", f"CUDA, PTX of compute_{architecture}: {coverage}")
    if is_whole:
        assert coverage.never_launched == []
        assert coverage.share > EXECUTED


@pytest.mark.slow
def test_every_instruction_is_known():
    folder = build(on_ptx.LIBRARY)
    for architecture in RUNS:
        code = "import on_ptx; print(*on_ptx.load_cuda().unsupported(), sep='\\n')"
        said = native_build.run(sys.executable, "-c", code, **environment(folder, architecture))
        assert (said.returncode, said.stdout.strip()) == (0, "")


# ---- Mistakes that must be found, by name: what is reported

MISTAKES = {
    "barrier_meets_shuffle": r"divergence .*shfl\.sync",
    "barrier_without_all": r"divergence .*bar\.sync",
    "block_too_large": "grid or block out of range: blocks of 1025 x 1 x 1 threads",
    "grid_empty": "grid or block out of range: 0 x 1 x 1 blocks",
    "grid_too_large": "grid or block out of range: 1 x 65536 x 1 blocks",
    "lane_missing_in_mask": "the calling lane is not in it",
    "lane_missing_in_mma": r"divergence .*mma\.sync",
    "lane_missing_in_shuffle": r"divergence .*shfl\.sync",
    "misaligned_reduction": r"misaligned .*red\.global\.add\.v4",
    "misaligned_vector": r"misaligned .*st\.global\.v4",
    "missing_barrier": "race in a block",
    "missing_warp_barrier": "race in a warp",
    "overrun_of_global_memory": r"out of range .*st\.global",
    "overrun_of_shared_memory": r"out of range .*st\.shared",
    "race_between_blocks": "global race",
    "race_in_a_block": "global race",
    "shared_memory_too_large": "232449 bytes of shared memory, more than the target has",
    "source_missing_in_mask": "reads an inactive lane",
    "uninitialised_shared_memory": "uninitialised shared memory",
}
# What is wrong in CUDA C++ and, for these architectures, right as it is compiled: cvt.rni.s64.f32 of a number that is
# too large gives the largest; nvcc makes one bar.sync of the two; four red.global.add.f32 are aligned.
RIGHT_AS_COMPILED = {
    "conversion_out_of_range": (80, 90),
    "two_barriers_at_once": (80, 90),
    "misaligned_reduction": (80,),
}
NAMES = sorted({*MISTAKES, *RIGHT_AS_COMPILED})


@cache
def reports(architecture: int) -> dict[str, list[list[str]]]:
    """Of each mistake: what is reported of it, and what of the same kernel without it."""
    folder = build("ptx_small_kernels")
    said = native_build.run(
        sys.executable, Path(__file__).parent / "mistakes.py", folder, str(architecture), *NAMES,
        **environment(folder, architecture),
    )  # fmt: skip
    assert said.returncode == 0, said.stdout
    return json.loads(said.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", RUNS)
@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_reported(name: str, architecture: int):
    wrong, right = reports(architecture)[name]
    assert right == []
    if architecture in RIGHT_AS_COMPILED.get(name, ()):
        assert wrong == []
    else:
        assert re.search(MISTAKES[name], "\n".join(wrong)), wrong


@pytest.mark.slow
@pytest.mark.parametrize("architecture", RUNS)
def test_divisions_are_exact(architecture: int):
    """Index arithmetic of the kernels: the quotient by a multiplication, for the smallest and largest numbers."""
    assert reports(architecture)["wrong quotients"] == [0.0]
