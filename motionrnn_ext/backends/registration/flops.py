"""The FLOPs that `torch.utils.flop_counter.FlopCounterMode` counts for an op: those of its matrix products.

    offset_warp     2 B H W C_out C K, the sum over channels and taps
    motion_gates    2 B H W for each element of its convolutions' weights
    their backward  as many for the gradients of samples and maps, and as many again for those of weights
    winograd_conv, winograd_weight_gradient   those of the convolution that they compute, as for cuDNN's

The reference counts as many, as its contraction is one product. Sampling and the pointwise ops count nothing, as
elementwise ops of PyTorch do.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

from ..torch_private import argument_names
from .wanted import Wanted

_COUNTER = "torch.utils.flop_counter"
_later: list[tuple[Any, Callable[..., int]]] = []


def register(op: Any, products: Mapping[str, Wanted]) -> None:
    """Register the FLOPs of an op or of its backward: now, or when the counter is imported.

    products: the weights that are a factor of a matrix product, each with the wanted gradients for which backward needs
    the gradient of the other factor.
    """
    register_formula(op, _formula(op, products))


def register_formula(op: Any, formula: Callable[..., int]) -> None:
    """Register the FLOPs of an op as a function of its arguments, with shapes in place of tensors."""
    _later.append((op, formula))
    if _COUNTER in sys.modules:
        _register_all()
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())


def _formula(op: Any, products: Mapping[str, Wanted]) -> Callable[..., int]:
    names = argument_names(op)

    def count(*arguments: Any, **unused: Any) -> int:
        # The counter hands over shapes in place of tensors.
        given = dict(zip(names, arguments))
        batch, _, height, width = given["x"]
        wanted = given.get("wanted")
        total = 0
        for weight, needs in products.items():
            times = 1 if wanted is None else bool(wanted & needs) + bool(wanted & Wanted.WEIGHTS)
            total += times * math.prod(given[weight])
        return 2 * batch * height * width * total

    return count


def _register_all() -> None:
    while _later:
        target, formula = _later.pop()
        sys.modules[_COUNTER].register_flop_formula(target)(formula)


class _WhenImported(MetaPathFinder):
    """The import hook that registers the formulas after torch.utils.flop_counter has been loaded.

    It is not imported for that, as it imports Triton, which takes 0.2 s.
    """

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                load(module)
                _register_all()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
