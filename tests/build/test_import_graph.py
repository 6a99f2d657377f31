"""Do imports within the package go one way: from a room to those below it, and in no circle between modules?"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from repository import ROOT

PACKAGE = "motionrnn_ext"
# The rooms from the ground up: a module imports from its own room and from those before it.
ROOMS = [
    "name", "caller", "files", "pixels", "pretrained", "backends", "ops", "layers", "models", "onnx", "warmup",
    "graphs", "data", "metrics", "visualize", "terminal", "training", "evaluation", "experiments", "cli", "__main__",
    "adapters",
]  # fmt: skip
# The package itself is above its core, and everything may ask it for the public names and the version.
EXEMPT = {PACKAGE, f"{PACKAGE}.benchmarks"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
    if "benchmarks" not in path.relative_to(ROOT).parts
}


def imported(module: str, top_level: bool) -> Iterator[str]:
    """The modules of the package that a module imports: when it is itself imported, or ever."""
    tree = ast.parse(MODULES[module].read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            if origin.split(".")[0] == PACKAGE:
                for alias in node.names:
                    name = f"{origin}.{alias.name}"
                    yield name if name in MODULES else origin


@cache
def room(module: str) -> int:
    return ROOMS.index(module.split(".")[1])


def test_every_module_has_a_room():
    assert {name.split(".")[1] for name in MODULES if name != PACKAGE} == set(ROOMS)


@pytest.mark.parametrize("module", [name for name in MODULES if name not in EXEMPT])
def test_no_import_goes_up(module: str):
    up = {
        name for name in imported(module, top_level=False) if name not in EXEMPT and room(name) > room(module)
    }
    assert not up, f"{module} imports {', '.join(sorted(up))} from a room above its own"


def test_no_module_imports_itself_by_way_of_others():
    """Imports at the top of modules; a package's own `__init__` lists its modules, which is no circle."""
    graph = {
        module: {
            name for name in imported(module, top_level=True)
            if name != module and not module.startswith(f"{name}.") and name not in EXEMPT
        }
        for module in MODULES if module not in EXEMPT
    }  # fmt: skip
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
