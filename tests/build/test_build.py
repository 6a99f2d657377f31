"""Does the package build, say what it left out, and import without what was left out?

The slow tests install a copy of this tree with pip into fresh environments that borrow this one's PyTorch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cuda_binary import ToolMissing, find_tool
from repository import ROOT

import motionrnn_ext
from motionrnn_ext.backends import native

BUILT_HERE = ("build", "dist", "runs", "lib", "*.so", "*.egg-info", "__pycache__", "_build_skipped.txt", ".*")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """setup.py as a module."""
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # NamedTuple's annotations look there
    spec.loader.exec_module(module)
    return module


def package_folder(site: Path, version: str) -> Path:
    folder = site / "torch"
    (folder / "lib").mkdir(parents=True)
    (folder / "version.py").write_text(
        f"from typing import Optional\n\n__version__ = {version!r}\ncuda: Optional[str] = None\n"
    )
    return folder


class TestFindingTorch:
    def test_finds_the_one_of_this_environment(self, script: ModuleType) -> None:
        found = script.find_torch(script.torch_places(), {})
        assert found.folder.resolve() == Path(torch.__file__).resolve().parent
        assert found.version == torch.__version__

    def test_none(self, script: ModuleType, tmp_path: Path) -> None:
        with pytest.raises(SystemExit) as error:
            script.find_torch([tmp_path / "a", tmp_path / "b"], {})
        message = str(error.value)
        assert "no PyTorch >= 2.10 was found" in message
        assert "pip install --no-build-isolation ." in message
        assert str(tmp_path / "a" / "torch") in message and str(tmp_path / "b" / "torch") in message

    @pytest.mark.parametrize("version", ["2.9.1+cu130", "2.0.0a0+git123"])
    def test_too_old(self, script: ModuleType, tmp_path: Path, version: str) -> None:
        folder = package_folder(tmp_path, version)
        with pytest.raises(
            SystemExit,
            match=re.escape(f"PyTorch {version} in {folder} is too old: PyTorch >= 2.10 is needed"),
        ):
            script.find_torch([tmp_path], {})

    @pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "2.14.0a0+git123", "3.0.0"])
    def test_fine(self, script: ModuleType, tmp_path: Path, version: str) -> None:
        folder = package_folder(tmp_path, version)
        assert script.find_torch([tmp_path], {}) == (folder, version)

    def test_several_takes_the_one_that_python_would_import(self, script: ModuleType, tmp_path: Path) -> None:
        (tmp_path / "empty" / "torch").mkdir(parents=True)  # left behind by an uninstallation
        first = package_folder(tmp_path / "first", "2.11.0")
        package_folder(tmp_path / "second", "2.13.0")
        places = [tmp_path / "empty", tmp_path / "first", tmp_path / "second"]
        assert script.find_torch(places, {}) == (first, "2.11.0")

    def test_named_folder_comes_first(self, script: ModuleType, tmp_path: Path) -> None:
        package_folder(tmp_path / "first", "2.11.0")
        named = package_folder(tmp_path / "named", "2.12.0")
        env = {"MOTIONRNN_EXT_TORCH_DIR": str(named)}
        assert script.find_torch([tmp_path / "first"], env) == (named, "2.12.0")


class TestWhatIsBuilt:
    def test_no_compiler(self, script: ModuleType, tmp_path: Path) -> None:
        assert "no C++ compiler" in script.reason_to_skip({"PATH": str(tmp_path)})

    @pytest.mark.parametrize("demand", ["MOTIONRNN_EXT_NATIVE", "MOTIONRNN_EXT_CUDA"])
    def test_no_compiler_but_demanded(self, script: ModuleType, tmp_path: Path, demand: str) -> None:
        with pytest.raises(SystemExit, match=re.escape(f"{demand}=1 is set but no C++ compiler was found")):
            script.reason_to_skip({"PATH": str(tmp_path), demand: "1"})

    @pytest.mark.parametrize("name", ["c++", "g++", "clang++"])
    def test_compiler(self, script: ModuleType, tmp_path: Path, name: str) -> None:
        (tmp_path / name).touch(mode=0o755)
        assert script.reason_to_skip({"PATH": str(tmp_path)}) is None
        assert "MOTIONRNN_EXT_NATIVE=0" in script.reason_to_skip(
            {"PATH": str(tmp_path), "MOTIONRNN_EXT_NATIVE": "0"}
        )

    def test_cxx_that_is_not_there(self, script: ModuleType, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="CXX is 'g\\+\\+-99', which is not an executable file"):
            script.reason_to_skip({"PATH": str(tmp_path), "CXX": "g++-99"})

    def test_contradiction(self, script: ModuleType) -> None:
        with pytest.raises(SystemExit, match="MOTIONRNN_EXT_CUDA=1 needs the native library"):
            script.reason_to_skip({"MOTIONRNN_EXT_NATIVE": "0", "MOTIONRNN_EXT_CUDA": "1"})

    @pytest.mark.parametrize("name", ["MOTIONRNN_EXT_NATIVE", "MOTIONRNN_EXT_CUDA"])
    def test_unknown_value(self, script: ModuleType, name: str) -> None:
        with pytest.raises(SystemExit, match=f"{name} is 'yes'; it should be 1, 0 or unset"):
            script.reason_to_skip({name: "yes"})

    def test_no_build_tools(
        self, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        torch_found = script.Torch(tmp_path, "2.13.0")
        for tool, wanted in [("cmake", "cmake >= 3.24"), ("ninja", "ninja")]:
            with pytest.raises(SystemExit, match=f"{wanted} was not found .pip install {tool}."):
                script.configure_command(torch_found, tmp_path, tmp_path, {"PATH": str(tmp_path)})
            (tmp_path / tool).touch(mode=0o755)
        # pybind11 may be missing, and with it the module _build.
        for installed, wanted in ((True, "-Dpybind11_DIR=/"), (False, "-Dpybind11_DIR=")):
            if not installed:
                monkeypatch.setitem(sys.modules, "pybind11", None)
            command = script.configure_command(torch_found, tmp_path, tmp_path, {"PATH": str(tmp_path)})
            (option,) = (word for word in command if word.startswith("-Dpybind11_DIR="))
            assert option.startswith(wanted) and (option != wanted) == installed


class TestFirstError:
    def test_of_cmake(self, script: ModuleType) -> None:
        log = """-- The CXX compiler identification is GNU 12.2.0
CMake Error at CMakeLists.txt:123 (message):
  MOTIONRNN_EXT_CUDA=1 is set but no nvcc was found (looked at CUDACXX,
  CUDA_HOME)


-- Configuring incomplete, errors occurred!"""
        expected = "MOTIONRNN_EXT_CUDA=1 is set but no nvcc was found (looked at CUDACXX, CUDA_HOME)"
        assert script.first_error(log.split("\n")) == expected

    def test_of_a_compiler(self, script: ModuleType) -> None:
        log = """[1/2] Building CXX object pointwise.cpp.o
FAILED: pointwise.cpp.o
csrc/cpu/pointwise.cpp:7:3: error: 'x' was not declared in this scope
csrc/cpu/pointwise.cpp:9:3: error: expected ';'
ninja: build stopped: subcommand failed."""
        assert (
            script.first_error(log.split("\n"))
            == "csrc/cpu/pointwise.cpp:7:3: error: 'x' was not declared in this scope"
        )


def test_citation_names_the_version():
    cited = re.search(r"(?m)^version: (\S+)$", (ROOT / "CITATION.cff").read_text())
    assert cited is not None and cited[1] == motionrnn_ext.__version__


def test_source_distribution_holds_the_sources(tmp_path: Path) -> None:
    words = ["-q", "egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run([sys.executable, "setup.py", *words], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    assert archive.name == f"motionrnn_ext-{motionrnn_ext.__version__}.tar.gz"
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = [
        "CMakeLists.txt",
        "setup.py",
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "tests/build/test_build.py",
    ]
    for folder, pattern in [("csrc", "*.*"), ("motionrnn_ext", "*.py"), ("motionrnn_ext/pretrained", "*.*")]:
        wanted += [str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(pattern) if path.is_file()]
    wanted = [name for name in wanted if not name.endswith((".pyc", ".so"))]
    assert len(wanted) > 20
    assert sorted(set(wanted) - names) == []
    assert [name for name in names if name.endswith((".so", ".pyc", "_build_skipped.txt"))] == []


def test_an_installation_holds_the_shipped_weights(tmp_path: Path) -> None:
    words = ["-q", "egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path)]
    subprocess.run([sys.executable, "setup.py", *words], cwd=ROOT, check=True, capture_output=True)
    for path in (ROOT / "motionrnn_ext/pretrained").glob("*/*.*"):
        assert (tmp_path / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    assert len(list(tmp_path.glob("motionrnn_ext/pretrained/vmnist-small/*"))) == 3


PURE_PYTHON = """
import sys, torch, motionrnn_ext
from motionrnn_ext import ops
assert "cpu" not in motionrnn_ext.available_backends(), motionrnn_ext.available_backends()
assert "reference" in motionrnn_ext.available_backends()
logits, a, b = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64).unbind()
expected = logits.sigmoid() * a + (1 - logits.sigmoid()) * b
with motionrnn_ext.backend("reference"):
    torch.testing.assert_close(ops.gated_blend(logits, a, b), expected)
torch.testing.assert_close(ops.gated_blend(logits, a, b), expected)
print(motionrnn_ext.__file__)
"""


# Triton's kernels in such an installation: by Triton's interpreter, because there need not be a GPU.
TRITON = """
import torch, motionrnn_ext
from motionrnn_ext import ops
assert "cpu" not in motionrnn_ext.available_backends()
x, offset, mask = (torch.randn(1, c, 3, 4) for c in (2, 2, 1))
inputs = [t.requires_grad_() for t in (x, offset, mask, torch.randn(3, 2, 1, 1))]
results = {}
for name in ("reference", "triton"):
    with motionrnn_ext.backend(name):
        out = ops.offset_warp(*inputs)
    results[name] = [out, *torch.autograd.grad(out.square().sum(), inputs)]
for actual, expected in zip(results["triton"], results["reference"]):
    torch.testing.assert_close(actual, expected)
print(out.grad_fn.name())
"""


def test_wheel_without_the_native_library(tree: Path, tmp_path: Path) -> None:
    """It has no code of one machine or Python, its metadata say so, and it runs from its archive's files."""
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(tmp_path)]
    environment = {**os.environ, "MOTIONRNN_EXT_NATIVE": "0", "MOTIONRNN_EXT_CUDA": ""}
    subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"motionrnn_ext-{motionrnn_ext.__version__}-py3-none-any.whl"
    site = tmp_path / "site"
    shutil.unpack_archive(wheel, site, "zip")
    assert sorted(site.rglob("*.so")) == []
    assert "Root-Is-Purelib: true" in next(site.glob("*.dist-info/WHEEL")).read_text()
    result = subprocess.run([sys.executable, "-c", PURE_PYTHON], cwd=site, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).parent.resolve() == (site / "motionrnn_ext").resolve()


# ---- what was built here -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library() -> Path:
    import motionrnn_ext

    path = Path(motionrnn_ext.__file__).parent / "lib" / "libmotionrnn_ext_cpu.so"
    if not path.is_file():
        pytest.skip(f"{path.name} is not built")
    return path


def output_of(*command: str | Path) -> str:
    tool = shutil.which(str(command[0]))
    if tool is None:
        pytest.skip(f"{command[0]} is not on PATH (package binutils)")
    return subprocess.run([tool, *command[1:]], check=True, capture_output=True, text=True).stdout


def test_library_uses_the_stable_abi_only(library: Path) -> None:
    symbols = re.findall(r" U (\S+)", output_of("nm", "-D", "--undefined-only", library))
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in symbols)
    assert [name for name in symbols if re.match(r"_ZNK?(2at|3c10|5torch)", name)] == []


def test_library_can_be_moved(library: Path) -> None:
    dynamic = output_of("readelf", "-d", library)
    assert "libtorch_cpu.so" in dynamic
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


def test_library_holds_no_path_of_the_builder(library: Path) -> None:
    assert str(ROOT).encode() not in library.read_bytes()


def test_build_information(library: Path) -> None:
    info = native.build_info()
    assert tuple(map(int, re.findall(r"\d+", info["torch"])[:2])) >= (2, 10)
    assert info["abi_target"] == "2.10"
    assert info["instruction_sets"][0] == "baseline"
    assert "-O3" in info["flags"] and "fast-math" not in info["flags"]
    assert info["compiler"] and info["build_type"]
    assert info["cuda_ops"] == (library.with_name("libmotionrnn_ext_cuda.so")).is_file()
    assert (info["cuda_left_out"] is None) == info["cuda_ops"] == bool(info["cuda_architectures"])
    module = pytest.importorskip("motionrnn_ext._build", reason="built without pybind11")
    assert module.info() == info


# ---- real installations ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources."""
    folder = tmp_path_factory.mktemp("tree") / "motionrnn_ext"
    return Path(shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*BUILT_HERE)))


class Environment:
    """A virtual environment that sees, behind its own packages, those of this one: PyTorch, the build tools."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        self.outside = folder / "outside"
        self.outside.mkdir()
        (site,) = folder.glob("lib/python*/site-packages")
        self.site = site
        self.borrow([entry for entry in sys.path if entry.endswith("-packages")])

    def borrow(self, entries: list[str]) -> None:
        (self.site / "borrowed.pth").write_text("\n".join(entries) + "\n")

    def install(
        self, tree: Path, *options: str, path: str | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """`pip install` with the variables that steer the build set to `variables` alone; without CUDA unless asked."""
        steering = re.compile("MOTIONRNN_EXT_|CUDA|CXX|CMAKE|TORCH_|PYTHONPATH")
        env = {key: value for key, value in os.environ.items() if not steering.match(key)}
        env |= {
            "PATH": path if path is not None else f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        }
        command = [str(self.python), "-m", "pip", "install", "-v", "--no-deps", *options, str(tree)]
        return subprocess.run(
            command, env=env | {"MOTIONRNN_EXT_CUDA": "0"} | variables, cwd=self.outside, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, code: str, **variables: str) -> str:
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
        result = subprocess.run(
            [str(self.python), "-c", code], env=env, cwd=self.outside, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "env")


@pytest.fixture
def no_compiler(tmp_path: Path) -> str:
    """A PATH with cmake and ninja, but without any compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("cmake", "ninja"):
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    return str(folder)


NATIVE = """
import motionrnn_ext, torch
from motionrnn_ext import ops
from motionrnn_ext.backends import native
logits, a, b = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64).unbind()
with motionrnn_ext.backend("cpu"):
    blended = ops.gated_blend(logits, a, b)
torch.testing.assert_close(blended, logits.sigmoid() * a + (1 - logits.sigmoid()) * b)
assert native.build_info()["torch"] == torch.__version__, native.build_info()
print(motionrnn_ext.__file__)
"""


# The tag of the wheel that was installed.
TAG = """
import importlib.metadata, re
print(re.search("(?m)^Tag: (.*)$", importlib.metadata.distribution("motionrnn-ext").read_text("WHEEL"))[1])
"""


def nvcc() -> str:
    try:
        return find_tool("nvcc")
    except ToolMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def configure(
    script: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs CMake with given variables, all times in one build folder, and returns what it did."""
    build, here = tmp_path_factory.mktemp("build"), script.find_torch(script.torch_places(), {})
    environment = {"PATH": os.environ["PATH"], "CUDACXX": nvcc(), "MOTIONRNN_EXT_CUDA": "1"}

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        env = environment | variables
        command = script.configure_command(here, build, build, env)
        return subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return run


def test_empty_variables_are_unset_ones(configure, script: ModuleType) -> None:
    names = "CUDACXX CUDA_HOME CUDA_PATH CXX CMAKE_ARGS CMAKE_BUILD_TYPE TORCH_CUDA_ARCH_LIST"
    done = configure(**dict.fromkeys(names.split(), ""), MOTIONRNN_EXT_CUDA="")
    assert done.returncode == 0, done.stdout
    assert "CUDA kernels 8.0 8.6 9.0" in done.stdout or "no nvcc was found (looked at CUDACXX," in done.stdout
    assert script.reason_to_skip({"PATH": os.environ["PATH"], "MOTIONRNN_EXT_NATIVE": "", "CXX": ""}) is None


class TestArchitectures:
    @pytest.mark.parametrize(
        "variable, value, built",
        [
            ("TORCH_CUDA_ARCH_LIST", "7.5 8.0;8.6,9.0+PTX", "8.0 8.6 9.0+PTX"),
            # An empty list stands for the architectures of a release.
            ("TORCH_CUDA_ARCH_LIST", "", "8.0 8.6 9.0+PTX 10.0 12.0+PTX"),
            ("CMAKE_CUDA_ARCHITECTURES", "80-real;90", "8.0 9.0+PTX"),
        ],
    )
    def test_lists(self, configure, variable: str, value: str, built: str) -> None:
        done = configure(**{variable: value})
        assert done.returncode == 0, done.stdout
        if not value and "10.0" not in done.stdout:
            pytest.skip("this nvcc does not know the newest architectures")
        assert re.search(rf"; CUDA kernels {re.escape(built)}$", done.stdout, re.MULTILINE), done.stdout

    @pytest.mark.parametrize(
        "variable, value, error",
        [
            ("TORCH_CUDA_ARCH_LIST", "sm_90", "'sm_90' should be a compute capability such as 9.0"),
            ("TORCH_CUDA_ARCH_LIST", "7.0;7.5", "names no architecture from 8.0 on"),
            ("CMAKE_CUDA_ARCHITECTURES", "all-major", "'all-major' should be native or a number"),
        ],
    )
    def test_mistakes(self, configure, script: ModuleType, variable: str, value: str, error: str) -> None:
        done = configure(**{variable: value})
        assert done.returncode != 0
        assert error in script.first_error(done.stdout.splitlines())

    def test_native(self, configure, script: ModuleType) -> None:
        done = configure(CMAKE_CUDA_ARCHITECTURES="native")
        if torch.cuda.is_available():
            capability = "{}.{}".format(*torch.cuda.get_device_capability())
            assert re.search(rf"; CUDA kernels .*{re.escape(capability)}", done.stdout), done.stdout
        else:
            error = script.first_error(done.stdout.splitlines())
            assert error == "CMAKE_CUDA_ARCHITECTURES=native needs a GPU, and the CUDA driver shows none"


class TestNamesOfFolders:
    """Names of folders that the checkout may lie in."""

    @pytest.mark.parametrize("name", ['a "b"', "a;b", "a\\b", "a\nb"])
    def test_refused_at_once(self, script: ModuleType, name: str) -> None:
        with pytest.raises(SystemExit, match="CMake cannot build in .* in its path; move it"):
            script.check_path(Path("/home") / name)

    def test_built(self, script: ModuleType, tmp_path: Path) -> None:
        """The library with the build information, which is the quickest, and to the last command: strip's was wrong."""
        home, torch_here = tmp_path / "a (b) c's #$x é,", script.find_torch(script.torch_places(), {})
        script.check_path(home)
        home.mkdir()
        for name in ("CMakeLists.txt", "csrc"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, home / name)
        environment = {"PATH": os.environ["PATH"], "MOTIONRNN_EXT_CUDA": "0"}
        command = script.configure_command(torch_here, home / "build", home, environment)
        command[command.index("-S") + 1] = str(home)
        for step in (command, [command[0], "--build", str(home / "build"), "--target", "_build"]):
            done = subprocess.run(step, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        (built,) = (home / "build").glob("_build.*.so")
        assert output_of("nm", built) == ""  # stripped

    def test_nvcc_is_left_out(self, configure, script: ModuleType, tmp_path: Path) -> None:
        """It loses quotes and $ of a path; what is asked for by name is an error."""
        environment = {"PATH": os.environ["PATH"], "CUDACXX": nvcc()}
        here, build = script.find_torch(script.torch_places(), {}), tmp_path / "it's"
        for cuda, code in (("", 0), ("1", 1)):
            environment["MOTIONRNN_EXT_CUDA"] = cuda
            command = script.configure_command(here, build, build, environment)
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == code
            assert "nvcc cannot read from a folder with" in done.stdout + done.stderr


@pytest.mark.slow
class TestInstalling:
    def test_without_isolation(self, tree: Path, environment: Environment) -> None:
        result = environment.install(tree, "--no-build-isolation")
        assert result.returncode == 0, result.stdout
        assert Path(environment.run(NATIVE)).is_relative_to(environment.site)
        assert environment.run(TAG) == f"py3-none-linux_{platform.machine()}"
        # As on a Python that the module was not built for.
        (module,) = environment.site.glob("motionrnn_ext/_build.*.so")
        module.unlink()
        environment.run(NATIVE)
        self.check_instruction_sets(tree)

    def check_instruction_sets(self, tree: Path) -> None:
        """A baseline object carries every inline function that objects of newer instruction sets carry."""
        (build,) = (tree / "build").glob("cmake-*")
        weak: dict[str, set[str]] = {}
        for file in sorted(build.glob("CMakeFiles/cpu_*.dir/**/*.o")):
            part = file.relative_to(build).parts[1]
            weak.setdefault(part, set()).update(
                re.findall(r" [WVu] (\S+)", output_of("nm", "--defined-only", file))
            )
        baseline = weak.pop("cpu_bindings.dir") | weak.pop("cpu_kernels_baseline.dir")
        assert {part: sorted(names - baseline) for part, names in weak.items()} == {part: [] for part in weak}

    def test_editable_and_again(self, tree: Path, environment: Environment) -> None:
        for _ in range(2):
            result = environment.install(tree, "--no-build-isolation", "--editable")
            assert result.returncode == 0, result.stdout
            assert Path(environment.run(NATIVE)).is_relative_to(tree)
        assert "ninja: no work to do" in result.stdout

    def test_with_isolation(self, tree: Path, environment: Environment) -> None:
        download = ("-m", "pip", "download", "--no-deps", "--dest", str(environment.outside), "ninja")
        if subprocess.run([str(environment.python), *download], capture_output=True).returncode != 0:
            pytest.skip("the package index cannot be reached")
        result = environment.install(tree)
        assert result.returncode == 0, result.stdout
        assert Path(environment.run(NATIVE)).is_relative_to(environment.site)

    def test_no_compiler(self, tree: Path, environment: Environment, no_compiler: str) -> None:
        result = environment.install(tree, "--no-build-isolation", path=no_compiler)
        assert result.returncode == 0, result.stdout
        assert (
            "motionrnn_ext: installed without the native library: no C++ compiler was found" in result.stdout
        )
        package = Path(environment.run(PURE_PYTHON)).parent
        assert "no C++ compiler was found" in (package / "_build_skipped.txt").read_text()
        assert environment.run(TAG) == "py3-none-any"
        if importlib.util.find_spec("triton") is not None:
            made_by = environment.run(TRITON, TRITON_INTERPRET="1", PATH=no_compiler)
            assert "motionrnn_ext_triton" in made_by
        # A later build with a compiler takes its place.
        result = environment.install(tree, "--no-build-isolation", "--force-reinstall")
        assert result.returncode == 0, result.stdout
        environment.run(NATIVE)
        assert not (package / "_build_skipped.txt").exists()

    def test_cuda_for_one_architecture(self, tree: Path, environment: Environment) -> None:
        cuda = {"MOTIONRNN_EXT_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0", "CUDACXX": nvcc()}
        result = environment.install(tree, "--no-build-isolation", **cuda)
        assert result.returncode == 0, result.stdout
        package = Path(environment.run(NATIVE)).parent
        assert (package / "lib" / "libmotionrnn_ext_cuda.so").is_file()
        facts = json.loads(environment.run("from motionrnn_ext.cli import main; main(['info', '--json'])"))
        build = facts["build"]
        assert build["cuda_ops"] == "True" and build["cuda_left_out"] == "none"
        assert build["cuda_architectures"] == "9.0" and re.fullmatch(r"\d+\.\d+\.\d+", build["nvcc"])
        assert facts["load_errors"] == {}
        if torch.version.cuda is None:
            assert facts["backends"]["cuda"]["why_not"] == "this PyTorch was built without CUDA"
        # A later build without CUDA leaves none of it behind.
        result = environment.install(tree, "--no-build-isolation", "--force-reinstall")
        assert result.returncode == 0, result.stdout
        assert "CUDA kernels left out: MOTIONRNN_EXT_CUDA=0 was set" in result.stdout
        assert not (package / "lib" / "libmotionrnn_ext_cuda.so").exists()

    def test_broken_source_is_an_error(self, tree: Path, environment: Environment, tmp_path: Path) -> None:
        broken = tmp_path / "tree"
        shutil.copytree(tree, broken, ignore=shutil.ignore_patterns("build"))
        (broken / "csrc" / "cpu" / "pointwise.cpp").write_text("int x = ;\n")
        result = environment.install(broken, "--no-build-isolation")
        assert result.returncode != 0
        assert re.search(r"motionrnn_ext: the build failed: \S*pointwise.cpp:1:9: error:", result.stdout)
