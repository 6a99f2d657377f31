"""The CUDA kernels on the CPU: the emulator reports what it should, and the tests of the ops pass on it, also when
AddressSanitizer with UndefinedBehaviorSanitizer watches, or ThreadSanitizer. The former two
watch the CPU kernels, too."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import features
import pytest
from native_build import build, configure, run
from repository import ROOT, path_of_test
from side_by_side import Runs, check_passed, side_by_side

SANITIZERS = {"plain": "", "address": "address;undefined", "thread": "thread"}
ENVIRONMENT = {
    # What is read before it is written shows in the results: fresh memory holds large numbers or NaN.
    "plain": {"MALLOC_PERTURB_": "113"},
    "address": {"ASAN_OPTIONS": "detect_leaks=0:max_malloc_fill_size=1000000000:malloc_fill_byte=255"},
    "thread": {"TSAN_OPTIONS": "halt_on_error=1:exitcode=66", "OMP_NUM_THREADS": "1"},
}
RUNTIMES = {"plain": (), "address": ("libasan.so", "libstdc++.so"), "thread": ("libtsan.so", "libstdc++.so")}

# ---- Building


def options(mode: str, kernels: str = "emulator") -> dict[str, str]:
    """The name of a mode's build, and CMake's variables; kernels "emulator" or "cpu"."""
    return {
        "name": f"{kernels}-{mode}",
        "MOTIONRNN_EXT_CUDA": "0",
        "MOTIONRNN_EXT_EMULATOR": "ON" if kernels == "emulator" else "OFF",
        "MOTIONRNN_EXT_SANITIZE": SANITIZERS[mode],
    }


def runtime(mode: str, kernels: str = "emulator") -> str:
    """The sanitizer's libraries, which have to come first in a Python that was built without them."""
    folder, _ = configure(**options(mode, kernels))
    assert folder is not None
    compiler = re.search(r"CMAKE_CXX_COMPILER:\w+=(.*)", (folder / "CMakeCache.txt").read_text())
    assert compiler
    found = [run(compiler[1], f"-print-file-name={name}").stdout.strip() for name in RUNTIMES[mode]]
    for path in found:
        if not Path(path).is_absolute():
            pytest.skip(f"{compiler[1]} has no {path}")
    return " ".join(found)


# ---- Instructions and order


def instructions(**environment: str) -> dict[str, str]:
    result = run(build("emulator_instructions", **options("plain")), **environment)
    assert result.returncode == 0, result.stdout
    return dict(line.split(" ", 1) for line in result.stdout.splitlines())


def test_instructions_of_a_warp():
    said = instructions()
    for name in ("bf16", "f16", "tf32"):
        assert float(said[name]) < 2**-23, name  # cut to float, once
    assert said["transpose"] == "0"
    assert said["division"] == "0"


def test_order_of_blocks_and_threads():
    """Their own by default; another for each seed, the same again for the same one."""

    def order(**environment: str) -> list[int]:
        return [int(i) for i in instructions(**environment)["order"].split()]

    own = [thread for block in range(4) for _ in range(2) for thread in range(8 * block, 8 * block + 8)]
    before_and_after = order()
    assert sorted(before_and_after) == sorted(own)
    assert before_and_after[::16] == own[::16]  # blocks; the last thread to meet a barrier goes on first
    first, again, other = (order(MOTIONRNN_EXT_EMULATOR_SEED=seed) for seed in ("1", "1", "2"))
    assert first == again and sorted(first) == sorted(other) == sorted(own)
    for found in (first, other):
        blocks = [i // 8 for i in found]
        assert all(len(set(blocks[i : i + 16])) == 1 for i in range(0, 64, 16))  # one block after another
        assert blocks[::16] != [0, 1, 2, 3] and found[:8] != sorted(found[:8])
    assert first != other


# ---- Mistakes that must be found, by name; what each mode that finds one says

MISTAKES = {
    "barrier_meets_shuffle": {"plain": "deadlock.* 32 threads wait at __shfl_xor_sync .*32 threads wait at __sync"},
    "barrier_without_all": {"plain": r"deadlock.* 40 threads wait at __syncthreads .*24 have returned"},
    "block_too_large": {"plain": r"1 to 1024 threads in one dimension, not \(1025,1,1\)"},
    "conversion_out_of_range": {"plain": r"__float2ll_rn of .*no long long holds"},
    "grid_empty": {"plain": r"not \(0,1,1\)"},
    "grid_too_large": {"plain": r"not \(1,65536,1\)"},
    "lane_missing_in_mask": {"plain": r"without the calling lane in its mask.* thread 16"},
    "lane_missing_in_mma": {"plain": "deadlock.* 31 threads wait at mma"},
    "lane_missing_in_shuffle": {"plain": "deadlock.* 62 threads wait at __shfl_xor_sync"},
    "misaligned_reduction": {"plain": r"red_add of an address that is not a multiple of 16, at .*thread 0"},
    "misaligned_vector": {"address": r"emulator_mistakes.cu:\d+.*misaligned address"},
    "missing_barrier": {"thread": r"(?s)data race.*missing_barrier"},
    "missing_warp_barrier": {"thread": r"(?s)data race.*missing_warp_barrier"},
    "overrun_of_global_memory": {"address": r"(?s)heap-buffer-overflow.*overrun_of_global_memory"},
    "overrun_of_shared_memory": {"address": r"(?s)heap-buffer-overflow.*overrun_of_shared_memory"},
    "race_between_blocks": {"thread": r"(?s)data race.*race_between_blocks"},
    "race_in_a_block": {"thread": r"(?s)data race.*race_in_a_block"},
    "shared_memory_too_large": {"plain": "at most 232448 bytes of shared memory, not 232449"},
    "source_missing_in_mask": {"plain": "reads a lane that is not in the mask"},
    "two_barriers_at_once": {"plain": r"__syncthreads .*meets __syncthreads .*in the same block"},
    "uninitialised_shared_memory": {"plain": r"out\[0\] = -?nan"},
}  # fmt: skip


def mistakes(mode: str) -> Path:
    return build("emulator_mistakes", **options(mode))


def test_every_mistake_is_looked_for():
    assert set(run(mistakes("plain")).stdout.split()) == set(MISTAKES)


@pytest.mark.parametrize(
    "name, mode",
    [
        pytest.param(name, mode, marks=() if mode == "plain" else pytest.mark.slow)
        for name, found in MISTAKES.items()
        for mode in found
    ],
)
def test_a_mistake_is_found(name: str, mode: str):
    result = run(mistakes(mode), name, **ENVIRONMENT[mode])
    assert re.search(MISTAKES[name][mode], result.stdout), result.stdout[-4000:]


@pytest.mark.parametrize(
    "mode", [pytest.param(m, marks=() if m == "plain" else pytest.mark.slow) for m in SANITIZERS]
)
def test_nothing_is_found_where_nothing_is_wrong(mode: str):
    for name in MISTAKES:
        result = run(mistakes(mode), name, "right", **ENVIRONMENT[mode])
        assert result.returncode == 0 and re.fullmatch(r"out\[0\] = [0-9.e+]+\n", result.stdout), (
            name,
            result.stdout[-4000:],
        )


# ---- The kernels

# Many runs of the same and torch.compile bring nothing new under a sanitizer; float16 runs the code of bfloat16, which
# is enough for the slowest one.
SELECTED = {
    "plain": "emulated",
    "address": "emulated and not compiles and not order and not bitwise",
    "thread": "emulated and not compiles and not order and not bitwise and not opcheck and not emulated-float16",
}
FILES = [
    "test_ops.py",
    "test_ops_autograd.py",
    "test_lstm_steps.py",
    "test_deterministic.py",
    "test_cuda_kernels.py",
    "test_cuda_layers.py",
    "test_fuzz.py",
]
# Whole models, and what PyTorch does around them.
ALSO = {"plain": ["test_golden.py", "test_rollouts.py", *features.FILES]}


def run_tests(mode: str) -> subprocess.CompletedProcess[str]:
    library = build("motionrnn_ext_emulated", **options(mode))
    return run(
        sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "-m", "not slow", "-k", SELECTED[mode],
        *map(path_of_test, FILES + ALSO.get(mode, [])),
        **ENVIRONMENT[mode], LD_PRELOAD=runtime(mode), MOTIONRNN_EXT_EMULATOR=str(library),
    )  # fmt: skip


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[Runs]:
    with side_by_side(request, "test_kernels", run_tests) as runs:
        yield runs


@pytest.mark.slow
@pytest.mark.parametrize("mode", SANITIZERS)
def test_kernels(running: Runs, mode: str):
    check_passed(mode, running[mode].result(), at_least={"plain": 1150}.get(mode, 501))


# ---- The CPU kernels


def package_with(library: Path, folder: Path) -> Path:
    """`folder`, to import the package from: as it is here, with another CPU library."""
    package = folder / "motionrnn_ext"
    (package / "lib").mkdir(parents=True)
    for entry in (ROOT / "motionrnn_ext").iterdir():
        if entry.name != "lib":
            (package / entry.name).symlink_to(entry)
    (package / "lib" / "libmotionrnn_ext_cpu.so").symlink_to(library)
    return folder


@pytest.mark.slow
def test_cpu_kernels_with_sanitizers(tmp_path: Path):
    """Every case of the table, and two thousand random ones."""
    library = build("motionrnn_ext_cpu", **options("address", "cpu"))
    assert b"__asan_report_load" in library.read_bytes() and b"__ubsan_handle" in library.read_bytes()
    run_there = partial(
        run, sys.executable, cwd=tmp_path,  # `python -m` looks there first
        **ENVIRONMENT["address"], LD_PRELOAD=runtime("address", "cpu"), MOTIONRNN_EXT_EMULATOR="",
        PYTHONPATH=str(package_with(library, tmp_path / "package")),
        OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive",  # images are cut into bands; whoever waits leaves the core
    )  # fmt: skip
    loaded = run_there("-c", "from motionrnn_ext.backends import native; print(native._LIBRARIES['cpu'])")
    assert str(tmp_path) in loaded.stdout, loaded.stdout
    files = [path_of_test(name) for name in ("test_ops.py", "test_lstm_steps.py", "test_fuzz.py")]
    result = run_there("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cpu", *files)
    check_passed("cpu", result, at_least=900)
