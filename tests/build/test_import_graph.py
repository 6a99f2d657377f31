"""Do imports within the package go one way: from a room to those below it, and in no circle between modules?

And does `import motionrnn_ext` leave out what is imported when it is first used?
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from repository import ROOT

PACKAGE = "motionrnn_ext"
# The rooms from the ground up: a module imports from its own room and from those before it.
ROOMS = [
    "name", "lazy", "caller", "files", "pixels", "pretrained", "backends", "ops", "layers", "models", "onnx", "warmup",
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


# ---- What is imported when it is first used


# The modules below the package, those in their folders included, that `import motionrnn_ext` does not import.
ON_USE = [
    "adapters", "cli", "data", "evaluation", "experiments", "files", "graphs", "metrics", "onnx", "pixels",
    "pretrained", "terminal", "training", "visualize", "backends.triton.ops", "backends.triton.launch",
    "layers.comparison", "layers.conversion", "layers.convert_messages", "layers.converted_cell",
    "layers.converted_motion_gru", "layers.forward_rollout", "layers.module_state", "layers.official_forward",
    "layers.recognition", "layers.sharing", "models.checkpoints.architecture", "models.checkpoints.loading",
    "models.checkpoints.names", "models.checkpoints.pretrained", "models.checkpoints.reading",
    "models.checkpoints.reparametrised", "models.checkpoints.saving", "layers.nodes.common",
    *(f"layers.nodes.{name}" for name in ("conv_lstm", "conv_tt_lstm", "mim", "motion_gru", "motion_step")),
    *(f"layers.nodes.{name}" for name in ("output_gate", "peephole_lstm", "st_lstm")),
]  # fmt: skip
LAZY = [
    name
    for name, path in MODULES.items()
    if "imported_on_use(\n" in path.read_text() and name != f"{PACKAGE}.lazy"
]


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_import_leaves_out_what_is_imported_on_use():
    unknown = [name for name in ON_USE if f"{PACKAGE}.{name}" not in MODULES]
    assert not unknown, f"there is no {', '.join(unknown)}"
    loaded = run(f"import sys, {PACKAGE}; print(*sys.modules)").split()
    later = [f"{PACKAGE}.{name}" for name in ON_USE]
    found = [name for name in loaded if any(name == one or name.startswith(f"{one}.") for one in later)]
    assert not found, f"import {PACKAGE} imports {', '.join(found)}"
    assert not {"sympy", "torch._dynamo", "triton", "sysconfig"} & set(loaded)


@pytest.mark.parametrize("package", LAZY)
def test_names_that_are_imported_on_use_are_told_to_type_checkers(package: str):
    """The names and modules under `if TYPE_CHECKING` are those of `imported_on_use`."""
    body = ast.parse(MODULES[package].read_text()).body
    (block,) = [n for n in body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    told = {
        alias.name: node.module or alias.name
        for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    (given,) = [ast.literal_eval(node) for node in ast.walk(block.orelse[0]) if isinstance(node, ast.Dict)]
    assert given == told


@pytest.mark.parametrize("package", LAZY)
def test_every_public_name_is_there_on_use(package: str):
    program = f"""
import {PACKAGE} as package
for name in {package.split(".")[1:]}:
    package = getattr(package, name)
assert set(package.__all__) <= set(dir(package))
for name in package.__all__:
    assert getattr(package, name) is getattr(package, name) is vars(package)[name], name
try:
    package.unknown
except AttributeError as error:
    print(error)
"""
    assert run(program).strip() == f"module '{package}' has no attribute 'unknown'"
