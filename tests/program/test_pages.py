"""The pages of docs/ that readers paste from: every Python block runs, page by page, in the order given.

A block with the language tag `python notest` is left out. The SVGs of docs/pictures are what their
program draws.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

DOCS = ROOT / "docs"
PAGES = (
    "quick-start",
    "porting",
    "conventions",
    "own-predictor",
    "faq",
    "environment",
    "how-the-kernels-work",
)
PICTURES = DOCS / "pictures"


def blocks(text: str) -> list[tuple[str, str]]:
    """Language tag and content of every fenced block."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


@pytest.mark.parametrize("name", PAGES)
def test_python_blocks_run(name: str, tmp_path: Path):
    code = [content for tag, content in blocks(page(name)) if tag == "python"]
    if not code:
        pytest.skip("the page has no Python")
    program = tmp_path / f"{name}.py"
    program.write_text("\n".join(code))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, program.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", PAGES)
def test_lines_are_short_and_links_lead_somewhere(name: str):
    text = page(name)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    long = [line for line in prose.splitlines() if len(line) > 100 and not line.startswith(("|", "!["))]
    assert not long
    for target, anchor in re.findall(r"\]\(([^)#\s]*[./][^)#\s]*)(?:#([^)]*))?\)", prose):
        if "://" in target:
            continue
        assert (DOCS / target).exists(), target
        headings = re.findall(r"^#+ (.*)$", (DOCS / target).read_text(), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, f"{target}#{anchor}"


def test_names_of_the_code_exist():
    """Files and functions that the walk through the kernels names."""
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
    shown = {name for text in map(page, PAGES) for name in re.findall(r"pictures/(\w+\.svg)", text)}
    assert shown == set(kept)
