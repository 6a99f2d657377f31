"""Does the package as a kernel of the Hugging Face Hub load by `kernels`, and run right, beside the installed one?"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hub_copy import REPO_ID, layout, write_copy
from native_build import tool
from official_modules import StandIn, UserModel
from repository import ROOT

import motionrnn_ext

kernels = pytest.importorskip("kernels", reason="the package kernels is not installed")
NATIVE = f"torch-stable-abi210-cpu-{platform.machine()}-linux"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a layout of Python and Triton alone."""
    out = tmp_path_factory.mktemp("hub") / "out"
    write_copy(out)
    return out


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a layout of another version, with the CPU library: minutes, unless build/ has its objects."""
    tool("cmake"), tool("ninja"), tool("c++")
    pytest.importorskip("pybind11")
    out = tmp_path_factory.mktemp("hub") / "out"
    write_copy(out, version=1, native=["cpu"])
    return out


@pytest.fixture(scope="module", params=["out", pytest.param("built", marks=pytest.mark.slow)])
def either(request: pytest.FixtureRequest) -> Path:
    """Return a layout without the native library, and one with it."""
    return request.getfixturevalue(request.param)


def rollout(package: ModuleType, backend: str) -> list[torch.Tensor]:
    """Return two steps of a MotionGRU, and the gradients of its input and parameters."""
    torch.manual_seed(0)
    gru = package.MotionGRU(16)
    hidden = torch.randn(2, 16, 8, 6, requires_grad=True)
    with package.backend(backend):
        first, state = gru(hidden)
        second, state = gru(first, state)
        second.square().sum().backward()
    return [second, *state, hidden.grad, *[p.grad for p in gru.parameters()]]


def differences(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Return the largest difference, relative to the largest value of each tensor."""
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item() for a, b in zip(found, wanted))


@pytest.mark.slow
@pytest.mark.skipif("cpu" not in motionrnn_ext.available_backends(), reason="no native library")
def test_the_copy_runs_beside_the_installed_package_and_another_version(out: Path, built: Path):
    other, copy = kernels.get_local_kernel(out), kernels.get_local_kernel(built)
    packages = [other, copy, motionrnn_ext]
    names = [package.__name__ for package in packages]
    assert len(set(names)) == 3
    wanted = rollout(motionrnn_ext, "reference")
    assert "cpu" not in other.available_backends()
    assert differences(rollout(other, "reference"), wanted) == 0
    for package in (copy, motionrnn_ext):
        assert package.available_backends()[:2] == ("reference", "cpu")
        assert Path(package.backends.native._LIBRARIES["cpu"]).is_relative_to(Path(package.__file__).parent)
        # Each calls the ops of its own library.
        assert package.__name__ == package.backends.native.NAMESPACE
        op = getattr(torch.ops, package.__name__).offset_warp.default
        assert str(op._schema).startswith(f"{package.__name__}::offset_warp(")
        assert differences(rollout(package, "cpu"), wanted) < 1e-5  # 5e-7 measured
    keys = torch.compiler.config.cache_key_tag
    assert all(f" {name} {motionrnn_ext.__version__}" in keys for name in names)


@pytest.mark.slow
def test_the_copy_loads_from_the_cache_of_the_hub_whose_files_are_links(built: Path, tmp_path: Path):
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(p for p in (built / "build" / NATIVE).rglob("*") if p.is_file())):
        if "__pycache__" in path.parts:
            continue
        link = snapshot / path.relative_to(built)
        link.parent.mkdir(parents=True, exist_ok=True)
        (blobs / str(number)).write_bytes(path.read_bytes())
        link.symlink_to(blobs / str(number))
    code = (
        "import sys, torch, kernels; k = kernels.get_local_kernel(__import__('pathlib').Path(sys.argv[1]))\n"
        "assert 'motionrnn_ext' not in sys.modules\n"
        "with k.backend('cpu'): k.MotionGRU(4)(torch.ones(1, 4, 4, 4))[0].sum().backward()\n"
        "print(k.available_backends())"
    )
    assert run(code, snapshot) == "('reference', 'cpu')"


def run(code: str, *arguments: object, **env: str) -> str:
    """Return the last line that a new process prints, to which only the tests' helpers are known."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_copy_of_triton_runs_in_the_interpreter(out: Path):
    pytest.importorskip("triton")
    code = (
        "import sys, kernels; sys.path[:0] = sys.argv[2:]; from test_hub import differences, rollout\n"
        "k = kernels.get_local_kernel(__import__('pathlib').Path(sys.argv[1]))\n"
        "print(k.available_backends(), differences(rollout(k, 'triton'), rollout(k, 'reference')))"
    )
    folders = ROOT / "tests" / "build", ROOT / "tests" / "support", ROOT
    backends, _, error = run(code, out / "build" / "torch-cuda", *folders, TRITON_INTERPRET="1").rpartition(
        " "
    )
    assert backends == "('reference', 'triton')"
    assert float(error) < 1e-5  # 7e-7 measured


@pytest.mark.parametrize("mode", ["INFERENCE", "TRAINING", "TRAINING | TORCH_COMPILE"])
def test_kernelize_puts_the_forward_into_a_model(either: Path, mode: str):
    class MotionGRU(StandIn):
        pass

    torch.manual_seed(0)
    model = UserModel(MotionGRU).double()
    x = torch.randn(2, 1, 8, 6, dtype=torch.float64)
    wanted = model(x)
    gradients = torch.autograd.grad(wanted.square().sum(), list(model.parameters()))
    kernels.replace_kernel_forward_from_hub(MotionGRU, "MotionGRU")
    layer = kernels.LocalLayerRepository(either, layer_name="OfficialMotionGRU")
    with kernels.use_kernel_mapping({"MotionGRU": {"cpu": layer}}, inherit_mapping=False):
        modes = [kernels.Mode[name] for name in mode.split(" | ")]
        kernels.kernelize(model, mode=modes[0] | modes[-1], use_fallback=False)
    of = {module.forward.__func__.__module__ for module in model.motion_list}
    assert of == {f"{kernels.get_local_kernel(either).__name__}.layers.official_forward"}
    called = torch.compile(model, backend="aot_eager", fullgraph=True) if "COMPILE" in mode else model
    found = called(x)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    for a, b in zip(torch.autograd.grad(found.square().sum(), list(model.parameters())), gradients):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def stand_in(backend: str, name: str, prefix: Path) -> dict[str, Any]:
    """Install files in place of native libraries, as hub/layout.py's `build` with nvcc 13.0 would."""
    for library in ("cpu", "cuda") if backend == "cuda" else ("cpu",):
        path = prefix / "lib" / f"libmotionrnn_ext_{library}.so"
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    return {"nvcc": "13.0.48", "cuda_architectures": ["8.0", "9.0+PTX"] if backend == "cuda" else []}


def test_the_hub_accepts_the_descriptions(tmp_path: Path):
    """`kernels` parses build.toml and metadata.json, finds every build, and its digests are those of the files."""
    from kernels._rust import Build, Digest, DigestAlgorithm, Metadata
    from kernels.variants import get_variants_local, parse_variant

    script, out = layout(), tmp_path / "out"
    script.build = stand_in
    script.write(out, REPO_ID, 0, ["cpu", "cuda"])
    assert [str(backend) for backend in Build.open(out).general.backends] == ["cpu", "cuda", "rocm"]
    folders = [folder for folder in (out / "build").iterdir() if folder.is_dir()]
    assert {v.variant_str for v in get_variants_local(out / "build")} == {folder.name for folder in folders}
    cuda = NATIVE.replace("cpu", "cu130")
    assert {"torch-cpu", "torch-cuda", "torch-rocm", NATIVE, cuda} == {folder.name for folder in folders}
    for folder in folders:
        metadata = Metadata.read_from_file(folder / "metadata.json")
        assert metadata.id.isidentifier() and metadata.name.python_name == "motionrnn_ext"
        arch = parse_variant(folder.name).arch
        backend = arch.backend.name if hasattr(arch, "backend") else arch.backend_name
        assert str(metadata.backend.backend_type).lower() == backend
        metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, folder))
        assert {path.read_text() for path in folder.glob("lib/*")} <= {metadata.id}
    assert (out / "build" / "CARD.md").read_text().startswith("---\nlibrary_name: kernels\n")
    assert "@" not in (out / "CARD.md").read_text().replace("@torch", "")


@pytest.mark.slow
def test_the_test_and_the_benchmark_of_the_layout_run(built: Path):
    env = {"LOCAL_KERNELS": f"{REPO_ID}={built}"}
    code = "import sys, pytest; sys.exit(pytest.main(['-q', '-W', 'ignore', '-p', 'no:cacheprovider', sys.argv[1]]))"
    assert "1 passed" in run(code, built / "tests", **env)
    measure = (
        "import runpy, sys, kernels, torch; from pathlib import Path\n"
        "made = runpy.run_path(sys.argv[1] + '/benchmarks/benchmark_motionrnn_ext.py')['MotionGRU']()\n"
        "made.kernel = kernels.get_local_kernel(Path(sys.argv[1])); made.setup()\n"
        "for name in ('offset_warp', 'step'):\n"
        "    getattr(made, 'benchmark_' + name)()\n"
        "    torch.testing.assert_close(made.out, getattr(made, 'verify_' + name)(), atol=1e-4, rtol=1e-4)\n"
        "print('same')"
    )
    assert run(measure, built) == "same"


def test_what_is_there_is_left_alone(out: Path):
    with pytest.raises(SystemExit, match="exists already; name a new or empty folder"):
        write_copy(out)
