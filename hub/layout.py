"""Write this package as a kernel of the Hugging Face Hub: `python hub/layout.py OUT --repo-id OWNER/motionrnn-ext`.

    OUT/build/torch-stable-abi210-cpu-x86_64-linux    with the native library of the CPU, for PyTorch 2.10 and newer
    OUT/build/torch-stable-abi210-cu130-x86_64-linux  with the CUDA kernels, after --native cpu cuda
    OUT/build/torch-cuda, torch-rocm                  Python and Triton alone, for all other GPUs
    OUT/build/torch-cpu                               the same, for all other CPUs
    OUT/build/CARD.md                                 the page of the repository on the Hub
    OUT/torch-ext, build.toml, flake.nix              the source, as the Hub's `kernel-builder` reads it
    OUT/tests, benchmarks                             a test, and what `kernels benchmark` runs

A variant has the package of this checkout without the programs (training, evaluation and the like). The Hub loads it
under the name that `metadata.json` gives, which is also the namespace of its ops, and its libraries are built for that.
The name depends on the sources, so that two versions in one process have different ops.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGE = ROOT / "motionrnn_ext"
NAME = "motionrnn-ext"
# Metadata that is complete enough for `kernels` 0.17 is what this script writes.
KERNELS = "0.17.0"
# What needs other packages than PyTorch, or a terminal.
PROGRAMS = {
    "__main__.py", "adapters", "benchmarks", "cli", "data", "evaluation", "experiments", "lib", "metrics", "terminal",
    "training", "visualize",
}  # fmt: skip


class Variant(NamedTuple):
    """A folder of build/: its name, the Hub's name of its backend, and the libraries and GPU architectures it has."""

    folder: str
    backend: str
    libraries: Mapping[str, bytes]
    architectures: Sequence[str]


def variants(version: int, native: Iterable[str]) -> Iterable[Variant]:
    """Yield the variants, those of `native` ("cpu", "cuda") with libraries that are built for them."""
    for backend in native:
        with tempfile.TemporaryDirectory() as prefix:
            info = build(backend, namespace(backend, version), Path(prefix))
            libraries = {f"lib/{path.name}": path.read_bytes() for path in Path(prefix, "lib").iterdir()}
        device = backend if backend == "cpu" else "cu{}{}".format(*info["nvcc"].split(".")[:2])
        folder = f"torch-stable-abi210-{device}-{platform.machine()}-linux"
        yield Variant(folder, backend, libraries, info["cuda_architectures"])
    yield from (Variant(f"torch-{backend}", backend, {}, ()) for backend in ("cpu", "cuda", "rocm"))


def build(backend: str, name: str, prefix: Path) -> dict[str, Any]:
    """Build the native libraries with their ops in the namespace `name`, install them, and return what was built.

    What was compiled is kept in build/ of the checkout: another namespace compiles the bindings alone.
    """
    script = module(ROOT / "setup.py")
    options = f"{os.environ.get('CMAKE_ARGS', '')} -DMOTIONRNN_EXT_NAMESPACE={name}"
    env = {**os.environ, "CMAKE_ARGS": options, "MOTIONRNN_EXT_CUDA": "1" if backend == "cuda" else "0"}
    torch = script.find_torch(script.torch_places(), env)
    script.build_native(torch, ROOT / "build" / f"hub-{backend}", prefix, env)
    return dict(json.loads((prefix / "lib" / "build.json").read_text()))


def module(path: Path) -> ModuleType:
    """Return a file as a module."""
    spec = importlib.util.spec_from_file_location(path.name.partition(".")[0], path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # NamedTuple's annotations look there
    spec.loader.exec_module(made)
    return made


def sources() -> dict[str, bytes]:
    """Return the Python files of the package that a variant has, by relative path."""
    paths = sorted(p for p in PACKAGE.rglob("*") if p.suffix == ".py" or p.name == "py.typed")
    names = {path.relative_to(PACKAGE): path for path in paths}
    return {str(name): path.read_bytes() for name, path in names.items() if name.parts[0] not in PROGRAMS}


def namespace(backend: str, version: int) -> str:
    """Return the name of a variant and its ops in the form of `kernel-builder`, with a digest of all sources."""
    native = [ROOT / "CMakeLists.txt", *sorted(p for p in (ROOT / "csrc").rglob("*") if p.is_file())]
    files = sources() | {str(path.relative_to(ROOT)): path.read_bytes() for path in native}
    digest = hashlib.sha256(str(version).encode())
    for name, content in files.items():
        digest.update(f"{name} {len(content)} ".encode() + content)
    return f"_{NAME.replace('-', '_')}_{backend}_{digest.hexdigest()[:8]}"


def write_variant(folder: Path, variant: Variant, version: int) -> None:
    """Write a variant into the folder `folder`."""
    files = {**sources(), **variant.libraries}
    if not variant.libraries:
        files["_build_skipped.txt"] = b"this variant of the Hub's kernel has Triton's kernels alone\n"
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    backend: dict[str, Any] = {"type": variant.backend}
    if variant.architectures:
        backend["archs"] = list(variant.architectures)
    digests = {
        name: base64.b64encode(hashlib.sha256(files[name]).digest()).decode() for name in sorted(files)
    }
    metadata = {
        "name": NAME,
        "id": namespace(variant.backend, version),
        "version": version,
        "kernels-minver": KERNELS,
        "license": "mit",
        "python-depends": [],
        "backend": backend,
        "digest": {"algorithm": "sha256", "files": digests},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def write(out: Path, repo_id: str, version: int, native: Iterable[str]) -> list[Path]:
    """Write the whole layout into the folder `out`, which is new or empty, and return the folders of its variants."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SystemExit(f"error: {out} exists already; name a new or empty folder")
    made = []
    for variant in variants(version, native):
        made.append(out / "build" / variant.folder)
        write_variant(made[-1], variant, version)
    for name, content in sources().items():
        path = out / "torch-ext" / NAME.replace("-", "_") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    release = re.findall(r'^__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text(), re.MULTILINE)
    known = {"REPO_ID": repo_id, "VERSION": str(version), "PACKAGE_VERSION": release[0]}
    for template in ("build.toml", "flake.nix", "CARD.md", "tests/test_motionrnn_ext.py",
                     "benchmarks/benchmark_motionrnn_ext.py"):  # fmt: skip
        text = (HERE / template).read_text()
        for word, value in known.items():
            text = text.replace(f"@{word}@", value)
        (out / template).parent.mkdir(exist_ok=True)
        (out / template).write_text(text)
    shutil.copy(out / "CARD.md", out / "build" / "CARD.md")
    return made


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    parser.add_argument("--repo-id", required=True, help="the repository on the Hub, OWNER/motionrnn-ext")
    parser.add_argument(
        "--version", type=int, default=0, help="the kernel's version, a whole number (default: 0)"
    )
    parser.add_argument(
        "--native",
        nargs="*",
        choices=["cpu", "cuda"],
        default=["cpu"],
        help="native libraries (default: cpu)",
    )
    arguments = parser.parse_args(argv)
    for folder in write(arguments.out, arguments.repo_id, arguments.version, arguments.native):
        print(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
