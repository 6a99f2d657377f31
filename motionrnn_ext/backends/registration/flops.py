"""How many FLOPs `torch.utils.flop_counter.FlopCounterMode` counts for an op: as ever those of its matrix products.

    offset_warp     2 B H W C_out C K, the sum over channels and taps
    motion_gates    2 B H W for each element of its convolutions' weights
    their backward  as many for the gradients of samples and maps, as many again for the weights'

These are the reference's own, whose contraction is one product. Sampling and the pointwise ops count nothing, as
elementwise ops do.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

from .places import PLACES, Places

_COUNTER = "torch.utils.flop_counter"
_later: list[tuple[Any, Callable[..., int]]] = []


def _formula(places: Places) -> Callable[..., int]:
    def count(*arguments: Any, **unused: Any) -> int:
        """The counter hands over shapes in place of tensors."""
        batch, _, height, width = arguments[places.x]
        total = 0
        for weight, products in zip(places.weights, places.products(arguments)):
            shape = arguments[weight]
            total += products * math.prod(shape) if len(shape) == 4 else 0  # a bias is only added
        return 2 * batch * height * width * total

    return count


def register(op: Any, backward: Any) -> None:
    """Of an op and its backward, as `torch.ops` has them: now, or when the counter is imported."""
    for target in (op, backward):
        if places := PLACES.get(target.__name__):
            _later.append((target, _formula(places)))
    if _COUNTER in sys.modules:
        _register_all()
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())


def _register_all() -> None:
    while _later:
        target, formula = _later.pop()
        sys.modules[_COUNTER].register_flop_formula(target)(formula)


class _WhenImported(MetaPathFinder):
    """Registers the formulas after torch.utils.flop_counter, which imports Triton (0.2 s), has been loaded."""

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
