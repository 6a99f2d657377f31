"""README and the pages of docs/: the Python blocks of a page run in one process, in the order given.

A block with the language tag `python notest` is left out: it needs a GPU, or packages that a reader may lack. One with
the tag `python pysteps` is a program of its own, which runs where that package is. The SVGs of docs/pictures are what
their program draws.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hub_copy import REPO_ID, write_copy
from repository import ROOT

DOCS = ROOT / "docs"
PICTURES = DOCS / "pictures"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
SLOW = {"onnx", "pytorch"}  # they compile and export


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


def python_blocks(text: str, tag: str = "python") -> list[str]:
    """Return the content of the fenced blocks with this language tag."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for found, content in blocks if found == tag]


WITH_PYTHON = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
    for path in PAGES
    if python_blocks(path.read_text())
]


# The packages of docs/adapters.md, each with the part that its program needs.
PARTS = {"pysteps": "nowcasts", "openstl": "api", "mlcast": "nowcasting_module"}


@pytest.mark.parametrize("path", WITH_PYTHON)
def test_python_blocks_run(path: Path, tmp_path: Path):
    env = {}
    if path.stem == "data":
        pytest.importorskip("sklearn")  # whose digits move
    if path.stem == "hub":
        pytest.importorskip("kernels")
        write_copy(tmp_path / "copy")
        env["LOCAL_KERNELS"] = f"{REPO_ID}={tmp_path / 'copy'}"
    if path.stem == "pretrained":
        pytest.importorskip("safetensors")
    if path.stem == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime", minversion="1.25")
    check_runs("\n".join(python_blocks(path.read_text())), path.stem, tmp_path, env=env)


@pytest.mark.parametrize("package", PARTS)
def test_adapters_run(package: str, tmp_path: Path):
    checkout = os.environ.get("MOTIONRNN_EXT_OPENSTL") if package == "openstl" else None
    paths = [checkout] if checkout else []
    looked = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path += {paths}; import {package}.{PARTS[package]}"],
        capture_output=True,
        text=True,
    )
    if looked.returncode:
        pytest.skip(f"{package} is not installed: {looked.stderr.strip().splitlines()[-1]}")
    (program,) = python_blocks(page("adapters"), f"python {package}")
    check_runs(program, package, tmp_path, paths)


def check_runs(
    text: str, name: str, tmp_path: Path, further: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> None:
    program = tmp_path / f"page_{name}.py"  # no name of a package
    program.write_text(text)
    paths = os.pathsep.join(filter(None, [str(ROOT), *further, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, program.name],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {}), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_few_blocks_do_not_run():
    texts = [path.read_text() for path in PAGES]
    assert sum(len(python_blocks(text, "python notest")) for text in texts) <= 2
    tags = {tag for text in texts for tag in re.findall(r"^```(python[^\n]+)$", text, re.MULTILINE)}
    assert tags == {"python notest", *(f"python {package}" for package in PARTS)}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_names_of_the_code_exist():
    """The walk through the kernels names only files and functions that exist."""
    text = page("how-the-kernels-work")
    rows = re.findall(
        r"`([a-z_/0-9]+\.(?:cuh|cu|cpp|h|py))`(?:,\s((?:`[A-Za-z_0-9]+`(?:,\s|\sand\s)?)+))?", text
    )
    assert sum(bool(names) for _, names in rows) > 20
    for file, names in rows:
        found = [ROOT / folder / file for folder in ("", "csrc", "motionrnn_ext", "tests")]
        source = next((path for path in found if path.is_file()), None)
        assert source is not None, file
        content = source.read_text()
        for name in re.findall(r"`([A-Za-z_0-9]+)`", names):
            assert re.search(rf"\b{name}\b", content), f"{name} in {file}"
    sources = [*ROOT.glob("csrc/**/*"), *ROOT.glob("motionrnn_ext/**/*.py")]
    everything = "\n".join(path.read_text() for path in sources if path.is_file())
    named = set(re.findall(r"`([A-Za-z]\w*_\w+|[A-Z]\w+)`", text))
    assert not {name for name in named if not re.search(rf"\b{name}\b", everything)}


def test_variables_are_those_that_the_code_reads():
    text = page("environment")
    folders = (
        "motionrnn_ext/**/*.py",
        "csrc/**/*.cpp",
        "benchmarks/**/*.py",
        "tests/**/*.py",
        "setup.py",
        "CMakeLists.txt",
    )
    sources = [
        path.read_text()
        for folder in folders
        for path in ROOT.glob(folder)
        if path.name != Path(__file__).name
    ]
    pattern = (
        r"(?:environ|getenv|ENV|env|switch)[^\n]{0,24}?[\"({](MOTIONRNN_EXT_[A-Z_]+)"
        r"|^_\w+ = \"(MOTIONRNN_EXT_[A-Z_]+)\""
    )
    found = [match for source in sources for match in re.findall(pattern, source, re.MULTILINE)]
    read = {first or second for first, second in found}
    assert {"MOTIONRNN_EXT_BACKEND", "MOTIONRNN_EXT_NATIVE", "MOTIONRNN_EXT_CPU_ISA"} <= read
    assert not {name for name in read if f"`{name}`" not in text}
    everything = "\n".join(sources)
    assert not {name for name in re.findall(r"`(MOTIONRNN_EXT_\w+)`", text) if name not in everything}


def test_pictures_are_what_their_program_draws(tmp_path: Path):
    kept = {path.name: path.read_bytes() for path in PICTURES.glob("*.svg")}
    subprocess.run([sys.executable, str(PICTURES / "draw.py"), str(tmp_path)], check=True)
    assert kept == {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    shown = {name for path in PAGES for name in re.findall(r"pictures/(\w+\.svg)", path.read_text())}
    assert shown == set(kept)
