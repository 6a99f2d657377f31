"""Write this package as a kernel of the Hugging Face Hub: `python hub/layout.py OUT --repo-id OWNER/motionrnn-ext`.

    OUT/build/torch-stable-abi210-cpu-x86_64-linux    with the native library of the CPU, for PyTorch 2.10 and newer
    OUT/build/torch-stable-abi210-cu130-x86_64-linux  with the CUDA kernels, if the package has them
    OUT/build/torch-cuda, torch-rocm                  Python and Triton alone, for all other GPUs
    OUT/build/torch-cpu                               the same, for all other CPUs
    OUT/build/CARD.md                                 the page of the repository on the Hub
    OUT/torch-ext, build.toml, flake.nix              the source, as the Hub's `kernel-builder` reads it
    OUT/tests, benchmarks                             a test, and what `kernels benchmark` runs

The package is the one that this Python imports, such as an installed wheel. A variant is its copy without the programs
(training, evaluation and the like). The Hub loads it under the name that `metadata.json` gives, which is also the
namespace of its ops. The name depends on the contents: two versions in one process have different ops.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import platform
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import motionrnn_ext
from motionrnn_ext.backends import native

HERE = Path(__file__).resolve().parent
PACKAGE = Path(motionrnn_ext.__file__).resolve().parent
NAME = "motionrnn-ext"
# Metadata that is complete enough for `kernels` 0.17 is what this script writes.
KERNELS = "0.17.0"
# What needs other packages than PyTorch, or a terminal.
PROGRAMS = {
    "__main__.py", "benchmarks", "cli", "data", "evaluation", "experiments", "lib", "metrics", "terminal", "training",
    "visualize",
}  # fmt: skip
# The mark that csrc/library.h puts before the namespace, which ends at the first zero byte.
MARK = b"MOTIONRNN_EXT_NAMESPACE="
ROOM = 96


class Variant(NamedTuple):
    """A folder of build/: its name, the Hub's name of its backend, and the libraries and GPU architectures it has."""

    folder: str
    backend: str
    libraries: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()


def variants(info: dict[str, Any]) -> Iterable[Variant]:
    """Yield what the package can be published as, with `info` of `native.build_info()`."""
    abi, system = "torch-stable-abi210", f"{platform.machine()}-linux"
    if library("cpu").is_file():
        yield Variant(f"{abi}-cpu-{system}", "cpu", ("cpu",))
        if library("cuda").is_file():
            major, minor = str(info["nvcc"]).split(".")[:2]
            architectures = tuple(re.split(r"[ ,;]+", str(info["cuda_architectures"])))
            yield Variant(f"{abi}-cu{major}{minor}-{system}", "cuda", ("cpu", "cuda"), architectures)
    yield from (Variant(f"torch-{backend}", backend) for backend in ("cpu", "cuda", "rocm"))


def library(name: str) -> Path:
    """Return the path of the package's native library "cpu" or "cuda", which may be missing."""
    return PACKAGE / "lib" / f"libmotionrnn_ext_{name}.so"


def sources() -> dict[str, bytes]:
    """Return the Python files of the package that a variant has, by relative path."""
    paths = sorted(p for p in PACKAGE.rglob("*") if p.suffix == ".py" or p.name == "py.typed")
    names = {path.relative_to(PACKAGE): path for path in paths}
    return {str(name): path.read_bytes() for name, path in names.items() if name.parts[0] not in PROGRAMS}


def renamed(library: bytes, namespace: str) -> bytes:
    """Return a native library whose ops are in another namespace.

    Raises:
        ValueError: the namespace is too long, or the library has no place for it.
    """
    if len(namespace) >= ROOM - len(MARK):
        raise ValueError(
            f"the namespace {namespace} has {len(namespace)} characters; it should have fewer than {ROOM - len(MARK)}"
        )
    places = [found.start() for found in re.finditer(re.escape(MARK), library)]
    if not places:
        raise ValueError(
            "the native library does not say its namespace; it should be built from this version"
        )
    for start in places:
        library = library[:start] + (MARK + namespace.encode()).ljust(ROOM, b"\0") + library[start + ROOM :]
    return library


def write_variant(build: Path, variant: Variant, version: int) -> None:
    """Write a variant into the folder `build`."""
    files = sources()
    libraries = {f"lib/libmotionrnn_ext_{name}.so": library(name).read_bytes() for name in variant.libraries}
    digest = hashlib.sha256(f"{variant} {version}".encode())
    for name, content in (files | libraries).items():
        digest.update(f"{name} {len(content)} ".encode() + content)
    namespace = f"_{NAME.replace('-', '_')}_{variant.backend}_{digest.hexdigest()[:8]}"
    files |= {name: renamed(content, namespace) for name, content in libraries.items()}
    if not libraries:
        files["_build_skipped.txt"] = b"this variant of the Hub's kernel has Triton's kernels alone\n"
    for name, content in files.items():
        path = build / variant.folder / name
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
        "id": namespace,
        "version": version,
        "kernels-minver": KERNELS,
        "license": "mit",
        "python-depends": [],
        "backend": backend,
        "digest": {"algorithm": "sha256", "files": digests},
    }
    (build / variant.folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def write(out: Path, repo_id: str, version: int) -> list[Variant]:
    """Write the whole layout into the folder `out`, which is new or empty, and return its variants."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SystemExit(f"error: {out} exists already; name a new or empty folder")
    made = list(variants(native.build_info()))
    for variant in made:
        write_variant(out / "build", variant, version)
    for name, content in sources().items():
        path = out / "torch-ext" / NAME.replace("-", "_") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    known = {"REPO_ID": repo_id, "VERSION": str(version), "PACKAGE_VERSION": motionrnn_ext.__version__}
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
    arguments = parser.parse_args(argv)
    for variant in write(arguments.out, arguments.repo_id, arguments.version):
        print(arguments.out / "build" / variant.folder)


if __name__ == "__main__":
    main(sys.argv[1:])
