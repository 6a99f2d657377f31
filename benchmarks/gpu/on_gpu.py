"""Build the package for the GPU of this machine, test it, sanitize it, measure it, and print the targets.

    benchmarks/on_gpu.sh [--dry-run] [--seconds 520] OUT

Needs Python with torch, numpy, pytest, pip, setuptools, wheel, cmake, ninja and pybind11; nvcc; compute-sanitizer; for
two columns of the table triton and torchvision; no network. Leaves in OUT: summary.md (the steps, the targets, and
rollouts beside what was predicted of them), rollouts.json, rows.json (to be kept as benchmarks/results/bench_NAME.json,
from which `motionrnn bench --report` writes the pages) and a log per step. Each step has a time limit; one that fails
or is stopped is reported, and the later ones run. Exit status: 0 if every step passed, 1 if one did not, 2 if there is
no GPU.

MOTIONRNN_EXT_BUILT names a folder with the installed package, so that nothing is built; MOTIONRNN_EXT_COMMIT the commit
where there is no git; MOTIONRNN_EXT_GOLDEN more golden files for the tests; MOTIONRNN_EXT_PTX, in a dry run, the build
of the kernels on the PTX interpreter (and LD_PRELOAD its library for memory).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .. import wording
from ..cases import GPU_MAPS
from ..measuring import machine
from .rollouts import table
from .steps import Runner
from .targets import Rows, targets

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("CMakeLists.txt", "MANIFEST.in", "README.md", "LICENSE", "pyproject.toml", "setup.py", "csrc",
           "motionrnn_ext", "benchmarks")  # fmt: skip
# The name that the built package gives to the modules of this folder.
PROGRAMS = "motionrnn_ext.benchmarks.gpu"
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
TRITON_PROCESSES = 6  # Triton compiles a kernel per form that the tests ask for, a second or two each
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml",
          "--rootdir", ROOT]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks/on_gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    help = (
        "try without a GPU: the build (for sm_90), tests and sanitized calls on the CPU, rows of tiny shapes"
    )
    parser.add_argument("--dry-run", action="store_true", help=help)
    help = "end within so many seconds (default: 520, in a dry run 3600)"
    parser.add_argument("--seconds", type=float, metavar="N", help=help)
    options = parser.parse_args()
    architecture = "9.0" if options.dry_run else capability()
    if architecture is None:
        return 2
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("*.log"), out / "summary.md", out / "rows.json", out / "rollouts.json"]:
        old.unlink(missing_ok=True)
    os.environ["MOTIONRNN_EXT_COMMIT"] = machine.commit()  # the built package is a copy without git
    with tempfile.TemporaryDirectory(prefix="motionrnn_ext-", ignore_cleanup_errors=True) as work:
        for compiler in ("TRITON", "TORCHINDUCTOR"):
            os.environ[f"{compiler}_CACHE_DIR"] = str(Path(work, compiler.lower()))
        runner = Runner(out, Path(work), options.seconds or (3600 if options.dry_run else 520))
        site = Path(os.environ.get("MOTIONRNN_EXT_BUILT") or runner.work / "site").resolve()
        if build(runner, site, architecture, 1200 if options.dry_run else 200):
            os.environ["PYTHONPATH"] = str(site)
            prove(runner, options.dry_run)
            measure(runner, options.dry_run)
    text = summary(runner, out / "rows.json", out / "rollouts.json")
    (out / "summary.md").write_text(text)
    print(f"\n{text}")
    return 0 if runner.passed() else 1


def capability() -> str | None:
    """Return the GPU's capability, such as 9.0; without a GPU say so and return None."""
    ask = "import torch; print('{}.{}'.format(*torch.cuda.get_device_capability()))"
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if answer.returncode == 0:
        return answer.stdout.strip()
    reason = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
    print(f"PyTorch finds no GPU ({reason}); --dry-run tries this program without one", file=sys.stderr)
    return None


def build(runner: Runner, site: Path, architecture: str, limit: float) -> bool:
    """Build the package for one architecture, from a copy of the sources: nothing is left in the repository."""
    if os.environ.get("MOTIONRNN_EXT_BUILT"):
        runner.record("build", f"not run: {site.name} was given")
        return True
    source = runner.work / "source"
    source.mkdir()
    unwanted = shutil.ignore_patterns("*.so", "_build_skipped.txt", "__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, source)
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--verbose", "--target", site]
    return runner.step(
        "build", [sys.executable, "-m", "pip", "install", *options, source], limit,
        MOTIONRNN_EXT_NATIVE="1", MOTIONRNN_EXT_CUDA="1", TORCH_CUDA_ARCH_LIST=architecture,
        CMAKE_ARGS="-DCMAKE_CUDA_FLAGS=-lineinfo",  # compute-sanitizer then names lines
    )  # fmt: skip


def prove(runner: Runner, dry_run: bool) -> None:
    """Run the tests and the sanitizers side by side."""
    sanitized = [sys.executable, "-m", f"{PROGRAMS}.sanitizer_set"]
    if dry_run:
        runner.step("tests", [*PYTEST, "-m", "not cuda and not slow", ROOT / "tests/ops/test_ops.py"], 900)
        runner.step("sanitized calls", [*sanitized, "--device", "cpu"], 600)
        return
    on_gpu = [*PYTEST, "-m", "cuda", "--continue-on-collection-errors", ROOT / "tests"]
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    with ThreadPoolExecutor(1 + TRITON_PROCESSES + len(SANITIZERS)) as together:
        proofs = [together.submit(runner.step, "tests", [*on_gpu, "-k", "not triton"], 130)]
        for i in range(TRITON_PROCESSES):
            part = f"{i + 1}/{TRITON_PROCESSES}"
            command = [*on_gpu, "-k", "triton", "--share", part]
            proofs.append(together.submit(runner.step, f"tests of Triton {part}", command, 160))
        for tool in SANITIZERS:
            command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *sanitized]
            uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            proofs.append(together.submit(runner.step, tool, command, 130, **uncached))
    for proof in proofs:
        proof.result()


def measure(runner: Runner, dry_run: bool) -> None:
    """Measure, alone on the card, in all the time that is left; the program stops by itself a little before."""
    options = ["--dry-run"] if dry_run else []
    rollouts = [sys.executable, "-m", f"{PROGRAMS}.rollouts", runner.logs / "rollouts.json", *options]
    limit = min(150.0, runner.left() / 3)
    runner.step("rollouts", [*rollouts, "--seconds", f"{limit - 20:.0f}"], limit)
    seconds = max(runner.left() - 45, 0)
    command = [sys.executable, "-m", f"{PROGRAMS}.measure", runner.logs / "rows.json"]
    runner.step("rows", [*command, "--seconds", f"{seconds:.0f}", *options], runner.left() - 5)


def summary(runner: Runner, rows: Path, rollouts: Path) -> str:
    report = json.loads(rows.read_text()) if rows.is_file() else {"rows": [], "gpu": None}
    found = targets(Rows(report), GPU_MAPS) if report["gpu"] else []
    steps = wording.table(("step", "outcome", "seconds"), runner.outcomes)
    verdicts = wording.table(
        ("target", "measured", "verdict"), [(t.what, t.measured, t.verdict) for t in found]
    )
    checked = verdicts if found else "A GPU is needed to check them."
    predictions = table(rollouts)
    return f"## Steps\n\n{steps}\n\n## Targets\n\n{checked}\n\n## Rollouts\n\n{predictions}\n"


if __name__ == "__main__":
    sys.exit(main())
