"""Build the package for the GPU of this machine, prove it there, measure it; no network is needed.

    benchmarks/on_gpu.sh [--dry-run] [--experiments] OUT

Needs Python with torch, numpy, pytest, pip, setuptools, wheel, cmake, ninja and pybind11; nvcc; compute-sanitizer; for
two columns of the table triton and torchvision. Leaves in OUT: summary.md, rows.json (to be kept in
benchmarks/results), ceilings.json, steps.tsv and four logs. Ends within nine minutes: each step has a limit, and one
that fails or is stopped is reported while the later ones run. Exit status: 0 if every step passed, 1 if one did not,
2 if there is no GPU.

MOTIONRNN_EXT_BUILT names a folder with the installed package, to build nothing; MOTIONRNN_EXT_COMMIT the commit where
there is no git; MOTIONRNN_EXT_GOLDEN more golden files for the tests; MOTIONRNN_EXT_EMULATOR, in a dry run, the library
of the emulated kernels.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ..measuring import machine
from .steps import Runner, stop

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = (
    "CMakeLists.txt",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "pyproject.toml",
    "setup.py",
    "csrc",
    "motionrnn_ext",
    "benchmarks",
)
BUILT = "motionrnn_ext.benchmarks"  # where modules of this folder are in the built package
LEFT_IN_OUT = ("summary.md", "rows.json", "ceilings.json", "steps.tsv", "build.log", "tests.log", "sanitizer.log",
               "rows.log")  # fmt: skip
SECONDS_IN_ALL = 520
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
COMPILING_PROCESSES = 6
TRITON_PROCESSES = 6  # Triton compiles a kernel per form that the tests ask for, a second or two each
NO_GPU = "not run: no GPU"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks/on_gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="what can be tried without a GPU: the build (for sm_90), tests on the CPU, rows of tiny shapes on the CPU",
    )  # fmt: skip
    parser.add_argument(
        "--experiments", action="store_true", help="rows for far offsets and single gradients as well"
    )
    options = parser.parse_args()
    architecture = "9.0" if options.dry_run else capability()
    if architecture is None:
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    for name in LEFT_IN_OUT:
        (options.out / name).unlink(missing_ok=True)
    os.environ["MOTIONRNN_EXT_COMMIT"] = machine.commit()  # what runs is a copy elsewhere
    seconds = 3600 if options.dry_run else SECONDS_IN_ALL
    with tempfile.TemporaryDirectory(prefix="motionrnn_ext-", ignore_cleanup_errors=True) as work:
        runner = Runner(options.out.resolve(), Path(work), seconds)
        site = Path(os.environ.get("MOTIONRNN_EXT_BUILT") or runner.work / "site").resolve()
        run(runner, site, architecture, options)
        summarise(runner)
    return 0 if runner.passed() else 1


def capability() -> str | None:
    """The GPU's, as 9.0; None, and said why, if there is none."""
    ask = "import torch; print('{}.{}'.format(*torch.cuda.get_device_capability()))"
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if answer.returncode == 0:
        return answer.stdout.strip()
    reason = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
    print(f"PyTorch finds no GPU ({reason}); --dry-run tries this program without one", file=sys.stderr)
    return None


def run(runner: Runner, site: Path, architecture: str, options: argparse.Namespace) -> None:
    """Build; then tests and sanitizers side by side; then, alone on the card, ceilings and rows."""
    dry_run, kernels = options.dry_run, runner.work / "libceilings.so"
    python_path = {"PYTHONPATH": str(site)}
    with compiling_peers(runner, enabled=not dry_run):
        with ThreadPoolExecutor() as together:
            building = together.submit(build, runner, site, architecture)
            building_ceilings = together.submit(build_ceilings, runner, kernels, architecture)
        if not building.result():
            for name in ("tests", "sanitizers", "ceilings", "rows"):
                runner.record(name, "not run: no package")
            return
        with ThreadPoolExecutor() as together:
            proofs = [together.submit(run_tests, runner, dry_run, python_path)]
            for share in range(0 if dry_run else TRITON_PROCESSES):
                proofs.append(together.submit(run_triton_tests, runner, share, python_path))
            for tool in ("none",) if dry_run else SANITIZERS:
                proofs.append(together.submit(sanitize, runner, tool, python_path))
        for proof in proofs:
            proof.result()
    append(runner.out / "tests.log", sorted(runner.work.glob("triton.*.log")))
    append(runner.out / "sanitizer.log", sorted(runner.work.glob("sanitizer.*.log")))
    if dry_run:
        runner.record("ceilings", NO_GPU)
    elif building_ceilings.result():
        measure_ceilings(runner, kernels, python_path)
    measure_rows(runner, options, python_path)


def append(log: Path, parts: Iterable[Path]) -> None:
    with log.open("ab") as to:
        for part in parts:
            to.write(f"\n== {part.stem}\n".encode() + part.read_bytes())


def build(runner: Runner, site: Path, architecture: str) -> bool:
    """The package for one architecture, from a copy of the sources: nothing is left in the repository."""
    if os.environ.get("MOTIONRNN_EXT_BUILT"):
        runner.record("build", f"not run: {site.name} was given")
        return True
    source = runner.work / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                source / name,
                ignore=shutil.ignore_patterns("*.so", "_build_skipped.txt", "__pycache__"),
            )
        else:
            shutil.copy(ROOT / name, source)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "--verbose",
    ]
    limit = 200 if runner.seconds == SECONDS_IN_ALL else 1200
    return runner.step(
        "build", [*pip, "--target", site, source], limit, runner.out / "build.log",
        MOTIONRNN_EXT_NATIVE="1", MOTIONRNN_EXT_CUDA="1", TORCH_CUDA_ARCH_LIST=architecture,
        CMAKE_ARGS="-DCMAKE_CUDA_FLAGS=-lineinfo",  # compute-sanitizer then names lines
    )  # fmt: skip


def build_ceilings(runner: Runner, library: Path, architecture: str) -> bool:
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    command = [nvcc, "-O3", "-std=c++20", f"-arch=sm_{architecture.replace('.', '')}", "-shared", "-Xcompiler",
               "-fPIC", "-o", library, HERE / "ceilings.cu"]  # fmt: skip
    log = runner.work / "ceilings.log"
    passed = runner.step("build of the ceilings", command, 120, log)
    append(runner.out / "build.log", [log])
    return passed


@contextmanager
def compiling_peers(runner: Runner, enabled: bool) -> Iterator[None]:
    """Meanwhile, fill torch.compile's cache with what the rows will compile; stopped at the end, done or not."""
    processes = []
    for i in range(COMPILING_PROCESSES if enabled else 0):
        command = [
            sys.executable,
            "-m",
            "benchmarks.rows",
            "--fill-compile-cache",
            "--part",
            f"{i}/{COMPILING_PROCESSES}",
        ]
        with (runner.work / f"compile.{i}.log").open("wb") as log:  # the reference needs no compiled library
            processes.append(
                runner.start(command, log, PYTHONPATH=str(ROOT), TORCHINDUCTOR_COMPILE_THREADS="2")
            )
    try:
        yield
    finally:
        for process in processes:
            stop(process)
        append(runner.out / "build.log", sorted(runner.work.glob("compile.*.log")))


PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml",
          "--rootdir", ROOT]  # fmt: skip


def run_tests(runner: Runner, dry_run: bool, python_path: dict[str, str]) -> bool:
    if dry_run:
        tests = ["-m", "not cuda and not slow", ROOT / "tests" / "ops" / "test_ops.py"]
    else:
        tests = ["-m", "cuda", "-k", "not triton", "--continue-on-collection-errors", ROOT / "tests"]
    limit = 900 if dry_run else 130
    name = "tests on the CPU" if dry_run else "tests on the GPU"
    return runner.step(name, [*PYTEST, *tests], limit, runner.out / "tests.log", **python_path)


def run_triton_tests(runner: Runner, share: int, python_path: dict[str, str]) -> bool:
    part = f"{share + 1}/{TRITON_PROCESSES}"
    tests = ["-m", "cuda", "-k", "triton", "--continue-on-collection-errors", "--share", part, ROOT / "tests"]
    log = runner.work / f"triton.{share}.log"
    return runner.step(f"tests of Triton {part}", [*PYTEST, *tests], 160, log, **python_path)


def sanitize(runner: Runner, tool: str, python_path: dict[str, str]) -> bool:
    """A sanitizer over every kernel on small inputs; "none" tries those inputs on the CPU."""
    log, program = runner.work / f"sanitizer.{tool}.log", [sys.executable, "-m", f"{BUILT}.sanitizer_set"]
    if tool == "none":
        for name in SANITIZERS:
            runner.record(name, NO_GPU)
        return runner.step("sanitizer set on the CPU", [*program, "--device", "cpu"], 600, log, **python_path)
    found = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    command = [found, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *program]
    return runner.step(tool, command, 130, log, PYTORCH_NO_CUDA_MEMORY_CACHING="1", **python_path)


def measure_ceilings(runner: Runner, library: Path, python_path: dict[str, str]) -> bool:
    command = [
        sys.executable,
        "-m",
        f"{BUILT}.ceilings",
        "--library",
        library,
        "--json",
        runner.out / "ceilings.json",
    ]
    return runner.step("ceilings", command, 45, runner.out / "rows.log", **python_path)


def measure_rows(runner: Runner, options: argparse.Namespace, python_path: dict[str, str]) -> bool:
    """With all the time that is left but for the summary: the program itself stops in time."""
    seconds = max(runner.left() - 30, 0)
    command = [
        sys.executable,
        "-m",
        f"{BUILT}.rows",
        "--json",
        runner.out / "rows.json",
        "--seconds",
        f"{seconds:.0f}",
    ]
    command += ["--device", "cpu", "--dry-run"] if options.dry_run else []
    command += ["--experiments"] if options.experiments else []
    if (runner.out / "ceilings.json").is_file():
        command += ["--ceilings", runner.out / "ceilings.json"]
    name = "rows of tiny shapes on the CPU" if options.dry_run else "rows"
    return runner.step(name, command, runner.left() - 12, runner.out / "rows.log", **python_path)


def summarise(runner: Runner) -> None:
    out = runner.out
    command = [sys.executable, "-m", "benchmarks.gpu_summary", out / "rows.json", "--markdown", out / "summary.md",
               "--steps", out / "steps.tsv", "--ceilings", out / "ceilings.json"]  # fmt: skip
    print(flush=True)
    status = subprocess.run(
        [str(part) for part in command], env={**os.environ, "PYTHONPATH": str(ROOT)}
    ).returncode
    if status:
        runner.record("summary", f"failed with {status}")


if __name__ == "__main__":
    sys.exit(main())
