"""Front end of pip for CMakeLists.txt, which is the only build description.

Environment variables:
    MOTIONRNN_EXT_NATIVE     unset: the C++ library if there is a compiler; 1: fail without one; 0: pure Python
    MOTIONRNN_EXT_CUDA       unset: the CUDA kernels if there is an nvcc; 1: fail without one; 0: no CUDA
    MOTIONRNN_EXT_TORCH_DIR  site-packages/torch to build against, instead of the target environment's
    CMAKE_CUDA_ARCHITECTURES, TORCH_CUDA_ARCH_LIST   GPU architectures, in CMake's or PyTorch's notation
    MAX_JOBS, CMAKE_ARGS, CMAKE_BUILD_TYPE, CXX, CUDACXX, CUDA_HOME   as usual
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
PACKAGE = "motionrnn_ext"
BENCHMARKS = f"{PACKAGE}.benchmarks"  # the folder benchmarks/ of the repository
BENCHMARK_ROOMS = [f"{BENCHMARKS}.{room}" for room in find_packages("benchmarks")]
SKIPPED = "_build_skipped.txt"  # why there is no native library; `motionrnn info` shows it
MIN_TORCH = (2, 10)
NEEDED = "PyTorch >= {}.{}".format(*MIN_TORCH)


class BuildError(SystemExit):
    """Stops the build with one message on stderr and exit status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(f"\n{PACKAGE}: {message}\n")


# ---- what to build -----------------------------------------------------------------------------------------


def switch(name: str, env: Mapping[str, str]) -> bool | None:
    """True, False or None (automatic) for the variable `name`, which is 1, 0 or unset."""
    value = env.get(name, "").strip()
    known = {"": None, "1": True, "0": False}
    if value not in known:
        raise BuildError(f"{name} is {value!r}; it should be 1, 0 or unset")
    return known[value]


def reason_to_skip(env: Mapping[str, str]) -> str | None:
    """Why the native library is left out, or None if it is to be built."""
    native, cuda = switch("MOTIONRNN_EXT_NATIVE", env), switch("MOTIONRNN_EXT_CUDA", env)
    if native is False:
        if cuda:
            raise BuildError(
                "MOTIONRNN_EXT_CUDA=1 needs the native library that MOTIONRNN_EXT_NATIVE=0 leaves out"
            )
        return "it was built with MOTIONRNN_EXT_NATIVE=0"
    if has_compiler(env):
        return None
    demand = "MOTIONRNN_EXT_NATIVE=1" if native else "MOTIONRNN_EXT_CUDA=1" if cuda else None
    if demand:
        raise BuildError(
            f"{demand} is set but no C++ compiler was found (looked for c++, g++, clang++ on PATH; set CXX)"
        )
    return "no C++ compiler was found at installation (c++, g++ or clang++ on PATH, or CXX)"


def has_compiler(env: Mapping[str, str]) -> bool:
    """Whether there is a C++ compiler; a CXX that names none is an error."""
    path = env.get("PATH")
    if env.get("CXX"):
        named = shlex.split(env["CXX"])[0]
        if shutil.which(named, path=path) is None:
            raise BuildError(f"CXX is {env['CXX']!r}, which is not an executable file")
        return True
    return any(shutil.which(name, path=path) for name in ("c++", "g++", "clang++"))


def check_path(root: Path) -> None:
    """Fails where CMake could not work; brackets, spaces, single quotes and the like are well."""
    found = [character for character in '";\\\n' if character in str(root)]
    if found:
        raise BuildError(f"CMake cannot build in {str(root)!r}, which has {found[0]!r} in its path; move it")


# ---- the PyTorch to build against --------------------------------------------------------------------------


class Torch(NamedTuple):
    folder: Path
    version: str


def torch_places() -> list[Path]:
    """Folders that Python searches for PyTorch here, then in the environment that is installed into."""
    # Under pip's build isolation sys.path is a throw-away environment's, made of PYTHONPATH and a start-up hook;
    # without those the same executable sees its own packages again, .pth files and system packages included.
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    ask = [sys.executable, "-c", "import sys; print(*sys.path[1:], sep='\\n')"]
    target = subprocess.run(ask, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [Path(entry) for entry in dict.fromkeys([*sys.path, *target]) if entry]


def find_torch(places: Iterable[Path], env: Mapping[str, str]) -> Torch:
    """The first PyTorch in `places`, read from its files: an import is slow and can fail in a build environment."""
    named = env.get("MOTIONRNN_EXT_TORCH_DIR")
    folders = [Path(named)] if named else [place / "torch" for place in places]
    for folder in folders:
        version_file = folder / "version.py"
        if not (version_file.is_file() and (folder / "lib").is_dir()):
            continue
        found = re.search(
            r"(?m)^__version__\s*(?::[^=]*)?=\s*['\"](([0-9]+)\.([0-9]+)[^'\"]*)", version_file.read_text()
        )
        if found is None:
            raise BuildError(f"{version_file} does not say which PyTorch it is")
        if (int(found[2]), int(found[3])) < MIN_TORCH:
            raise BuildError(f"PyTorch {found[1]} in {folder} is too old: {NEEDED} is needed")
        return Torch(folder, found[1])
    looked = "\n".join(f"    {folder}" for folder in folders)
    raise BuildError(
        f"no {NEEDED} was found to build against. Install PyTorch first, then run\n"
        "    pip install --no-build-isolation .\n"
        f"or set MOTIONRNN_EXT_TORCH_DIR to its folder. Looked at:\n{looked}"
    )


# ---- running CMake -----------------------------------------------------------------------------------------


def tool(name: str, env: Mapping[str, str]) -> str | None:
    """Path of an executable: beside this Python, whose environment may not be activated, else on PATH."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([beside, env.get("PATH", os.defpath)]))


def configure_command(torch: Torch, build: Path, prefix: Path, env: Mapping[str, str]) -> list[str]:
    """The cmake call. All is passed every time, so that nothing old lives on in the kept build folder's cache."""
    cmake, ninja = env.get("CMAKE") or tool("cmake", env), tool("ninja", env)
    if cmake is None:
        raise BuildError("cmake >= 3.24 was not found (pip install cmake)")
    if ninja is None:
        raise BuildError("ninja was not found (pip install ninja)")
    try:
        import pybind11
    except ImportError:
        pybind11 = None
    values = {
        "CMAKE_BUILD_TYPE": env.get("CMAKE_BUILD_TYPE") or "Release",
        "CMAKE_INSTALL_PREFIX": prefix,
        "CMAKE_MAKE_PROGRAM": ninja,
        "MOTIONRNN_EXT_CUDA": env.get("MOTIONRNN_EXT_CUDA", ""),
        "MOTIONRNN_EXT_TORCH_DIR": torch.folder,
        "MOTIONRNN_EXT_TORCH_VERSION": torch.version,
        "Python_EXECUTABLE": sys.executable,
        "TORCH_CUDA_ARCH_LIST": env.get("TORCH_CUDA_ARCH_LIST", ""),
        "pybind11_DIR": pybind11.get_cmake_dir() if pybind11 else "",
    }
    options = [f"-D{key}={value}" for key, value in values.items()]
    name = "CMAKE_CUDA_ARCHITECTURES"
    options.append(f"-D{name}={env[name]}" if env.get(name) else f"-U{name}")
    extra = shlex.split(env.get("CMAKE_ARGS", ""))
    return [cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *options, *extra]


def run(command: list[str], log: Path) -> None:
    """Runs a command, showing and keeping its output; if it fails, ends the build with its first error."""
    lines = [shlex.join(command)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    with log.open("a") as file:
        file.write("\n".join(lines) + "\n")
    if process.returncode != 0:
        raise BuildError(f"the build failed: {first_error(lines)}\n(all of its output: {log})")


def first_error(lines: list[str]) -> str:
    """The first error in the output of CMake or a compiler, on one line."""
    for i, line in enumerate(lines):
        if line.startswith("CMake Error"):  # its text follows, wrapped, as an indented paragraph
            text = []
            for follow in lines[i + 1 :]:
                if text and not follow.startswith("  "):
                    break
                if follow.strip():
                    text.append(follow.strip())
            return " ".join(text) or line
        if re.search(r"\berror\b\s*:", line, re.IGNORECASE):
            return line.strip()
    return lines[-1]


def build_native(torch: Torch, build: Path, package: Path, env: Mapping[str, str]) -> None:
    """Builds everything native in the folder `build`, and installs it into the folder `package`."""
    build.mkdir(parents=True, exist_ok=True)
    log = build / "build.log"
    log.unlink(missing_ok=True)
    configure = configure_command(torch, build, package, env)
    cmake, jobs = configure[0], env.get("MAX_JOBS") or str(os.cpu_count() or 1)
    run(configure, log)
    run([cmake, "--build", str(build), "--parallel", jobs], log)
    remove_native(package)
    run([cmake, "--install", str(build), "--component", "python"], log)


def remove_native(package: Path) -> None:
    """Removes what an earlier build, with other choices, left in an editable installation."""
    for stale in (*package.glob("lib/*"), *package.glob("_build.*.so"), package / SKIPPED):
        stale.unlink(missing_ok=True)


class CMakeBuild(build_ext):
    """Builds and installs everything native with one CMake project."""

    def run(self) -> None:
        if reason_to_skip(os.environ):
            return
        in_place = self.inplace or getattr(self, "editable_mode", False)
        package = (ROOT if in_place else Path(self.build_lib).resolve()) / PACKAGE
        check_path(ROOT)
        torch = find_torch(torch_places(), os.environ)
        tag = f"cmake-{sys.implementation.cache_tag}-torch{torch.version}".replace("+", "_")
        # kept, so that a second installation compiles only what changed
        build_native(torch, ROOT / "build" / tag, package, os.environ)

    def get_outputs(self) -> list[str]:
        return []


class FreshBuildPy(build_py):
    """Starts from an empty build/lib*: setuptools would pack modules that the tree no longer has.

    Where the native library is left out, it leaves the reason in its place.
    """

    def run(self) -> None:
        in_place = getattr(self, "editable_mode", False)
        package = (ROOT if in_place else Path(self.build_lib)) / PACKAGE
        if not in_place:
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        reason = reason_to_skip(os.environ)
        if reason:
            remove_native(package)
            (package / SKIPPED).write_text(reason + "\n")
            print(f"\n{PACKAGE}: installed without the native library: {reason}\n", flush=True)


class Wheel(bdist_wheel):
    """One wheel for every Python, py3-none-linux_x86_64; py3-none-any where the native library is left out.

    PyTorch loads the library, which uses nothing of Python; the module _build may be missing.
    """

    def finalize_options(self) -> None:
        if reason_to_skip(os.environ):
            self.distribution.ext_modules = []
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


if __name__ == "__main__":
    setup(
        packages=[*find_packages(include=[PACKAGE, f"{PACKAGE}.*"]), BENCHMARKS, *BENCHMARK_ROOMS],
        package_dir={BENCHMARKS: "benchmarks"},
        include_package_data=False,  # of benchmarks/, the sources alone
        package_data={PACKAGE: ["py.typed", "pretrained/*/*"], BENCHMARKS: ["*.sh", "*/*.cpp", "*/*.cu"]},
        ext_modules=[Extension(f"{PACKAGE}._build", sources=[])],
        cmdclass={"bdist_wheel": Wheel, "build_ext": CMakeBuild, "build_py": FreshBuildPy},
    )
