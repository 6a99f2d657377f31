"""Do the private names of PyTorch that the package uses exist, and do what backends/torch_private.py says of them?"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from repository import ROOT
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import grad, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from motionrnn_ext.backends import torch_private

PACKAGE = ROOT / "motionrnn_ext"


def private_names(path: Path) -> list[str]:
    """Return the dotted names of torch in a file that have a private part."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [name for name in [ast.unparse(node)] if "(" not in name]
        for name in names:
            first, *rest = name.split(".")
            if first in ("torch", "nn", "forward_ad") and any(
                part.startswith("_") and not part.startswith("__") for part in rest
            ):
                found.append(name)
    return found


def test_no_other_file_names_them():
    files = [p for p in PACKAGE.rglob("*.py") if "benchmarks" not in p.relative_to(PACKAGE).parts]
    found = {p.relative_to(PACKAGE).as_posix(): private_names(p) for p in files}
    assert {name for name, names in found.items() if names} == {"backends/torch_private.py"}


def test_a_function_is_applied_without_the_search_for_transforms():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return 2 * grad

    x = torch.ones(3, requires_grad=True)
    out = torch_private.plain_apply(Doubled)(x)
    assert out.tolist() == [2, 2, 2] and torch.autograd.grad(out.sum(), x)[0].tolist() == [2, 2, 2]


def test_transforms_are_told_from_the_outermost_on():
    seen: list[Any] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch_private.transforms())
        return x.sin()

    assert torch_private.transforms() == []
    x = torch.zeros(3)
    vmap(function)(x)
    assert seen.pop() == [torch_private.VMAP]
    vmap(grad(function))(x)
    outer, inner = seen.pop()
    assert outer == torch_private.VMAP and inner != torch_private.VMAP


def test_is_wrapped():
    seen = []
    vmap(lambda x: seen.append(torch_private.is_wrapped(x)) or x)(torch.zeros(2))
    assert seen == [True] and not torch_private.is_wrapped(torch.zeros(2))


def test_is_batched_gradient():
    seen, x = [], torch.zeros(2, requires_grad=True)
    y = 2 * x
    y.register_hook(lambda grad: seen.append(torch_private.is_batched_gradient(grad)))
    torch.autograd.grad(y, x, torch.ones(3, 2), is_grads_batched=True, retain_graph=True)
    torch.autograd.grad(y, x, torch.ones(2))
    assert seen == [True, False]


def test_is_differentiating_forward():
    assert not torch_private.is_differentiating_forward()
    with forward_ad.dual_level():
        assert torch_private.is_differentiating_forward()


def test_has_saved_tensor_hooks():
    assert not torch_private.has_saved_tensor_hooks()
    with torch.autograd.graph.save_on_cpu():
        assert torch_private.has_saved_tensor_hooks()
    assert not torch_private.has_saved_tensor_hooks()


def test_has_dispatch_modes():
    assert not torch_private.has_dispatch_modes()
    with TorchDispatchMode():
        assert torch_private.has_dispatch_modes()


def test_has_function_modes():
    assert not torch_private.has_function_modes()
    with torch.device("cpu"):
        assert not torch_private.has_function_modes()
        with TorchFunctionMode():
            assert torch_private.has_function_modes()


def test_has_hooks_on_all_modules():
    assert not torch_private.has_hooks_on_all_modules()
    for register in (
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_full_backward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
    ):
        handle = register(lambda *_: None)
        assert torch_private.has_hooks_on_all_modules()
        handle.remove()
    assert not torch_private.has_hooks_on_all_modules()


def test_runs_forward():
    class Called(nn.Linear):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x

    class Recalled(nn.Linear):
        def _call_impl(self, x: torch.Tensor) -> torch.Tensor:
            return x

    compiled = nn.Linear(1, 1)
    assert torch_private.runs_forward(compiled)
    compiled.compile()
    assert not any(map(torch_private.runs_forward, (compiled, Called(1, 1), Recalled(1, 1))))


def test_constant_in_a_trace():
    calls: list[bool] = []

    def is_asked() -> bool:
        calls.append(torch.compiler.is_compiling())
        return True

    asked = torch_private.constant_in_a_trace(is_asked)
    compiled = torch.compile(lambda x: x + asked(), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)) == 1 and compiled(torch.zeros(1)) == 1
    # One call in the trace. Dynamo could not trace the list, which would fail with fullgraph.
    assert len(calls) == 1


def test_is_traced():
    assert not torch_private.is_traced(torch.zeros(2))
    with FakeTensorMode():
        assert torch_private.is_traced(torch.zeros(2))
    functional = torch_private.FunctionalTensor
    seen = []
    with torch._subclasses.functional_tensor.FunctionalTensorMode():
        seen.append(torch_private.is_traced(functional.to_functional(torch.zeros(2))))
    assert seen == [True]


def test_uncompiled():
    class Own(nn.Module):
        def step(self, x: torch.Tensor) -> torch.Tensor:
            return x

    method = Own().step
    assert torch_private.uncompiled(method) is method
    assert torch_private.uncompiled(torch.compile(method, backend="eager")).__self__ is method.__self__


def test_arguments_of_a_schema():
    with torch.library._scoped_library("motionrnn_ext_test", "DEF") as library:
        library.define("op(Tensor a, Tensor? b, float c, int wanted, bool d) -> Tensor")
        op = torch.ops.motionrnn_ext_test.op
        assert torch_private.argument_names(op) == ("a", "b", "c", "wanted", "d")
        assert torch_private.count_tensor_arguments(op) == 2


def test_version():
    t = torch.zeros(2)
    before = torch_private.version(t)
    t.add_(1)
    assert torch_private.version(t) == before + 1


def test_conv_nd_is_the_base_of_convolutions():
    for kind in (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d):
        assert issubclass(kind, torch_private.ConvNd)
        assert kind.reset_parameters is torch_private.ConvNd.reset_parameters


class Pair(NamedTuple):
    left: torch.Tensor
    right: tuple[torch.Tensor, int]


def test_trees():
    pair = Pair(torch.zeros(1), (torch.ones(1), 7))
    assert torch_private.tree_leaves(({"a": pair}, [8])) == [pair.left, pair.right[0], 7, 8]
    doubled = torch_private.tree_map(lambda leaf: leaf * 2, pair)
    assert isinstance(doubled, Pair) and doubled.right == (torch.full((1,), 2.0), 14)
    kept = torch_private.tree_map_only(torch.Tensor, lambda t: t + 1, pair)
    assert kept.left == 1 and kept.right[1] == 7


def test_a_registered_named_tuple_can_be_exported(tmp_path: Path):
    torch_private.register_namedtuple(Pair, serialized_type_name="motionrnn_ext_test.Pair")

    class Made(nn.Module):
        def forward(self, x: torch.Tensor) -> Pair:
            return Pair(x, (x + 1, 7))

    program = torch.export.export(Made(), (torch.zeros(1),))
    torch.export.save(program, tmp_path / "program.pt2")
    found = torch.export.load(tmp_path / "program.pt2").module()(torch.zeros(1))
    assert isinstance(found, Pair) and found.right[0] == 1


def test_the_module_imports_no_dynamo():
    """Importing Dynamo takes more than a second."""
    code = "import sys, motionrnn_ext.backends.torch_private; print('torch._dynamo' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
