"""How many FLOPs `torch.utils.flop_counter.FlopCounterMode` counts for an op: as ever those of its matrix products.

    offset_warp     2 B H W C_out C K, the sum over channels and taps
    its backward    as many for the samples' gradients (x, offset, mask logits), as many again for weight's

These are the reference's own, whose contraction is one product. Sampling and the pointwise ops count nothing, as
elementwise ops do.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

_COUNTER = "torch.utils.flop_counter"


def _contraction(x: Any, weight: Any) -> int:
    """Of shapes (B, C, H, W) and (C_out, C, k, k)."""
    batch, channels, height, width = x
    return 2 * batch * height * width * channels * weight[0] * weight[2] * weight[3]


def _offset_warp(x: Any, offset: Any, mask_logits: Any, weight: Any, **_: Any) -> int:
    return _contraction(x, weight)


def _offset_warp_backward(
    grad: Any, x: Any, offset: Any, mask_logits: Any, weight: Any, wanted: int, deterministic: bool, **_: Any
) -> int:
    return _contraction(x, weight) * (bool(wanted & 7) + bool(wanted & 8))


def _motion_warp(x: Any, *arguments: Any, **_: Any) -> int:
    return _contraction(x, arguments[5])


def _motion_warp_backward(*arguments: Any, **_: Any) -> int:
    x, weight, wanted = arguments[3], arguments[9], arguments[11]
    return _contraction(x, weight) * (bool(wanted & 7) + bool(wanted & 8))


_FORMULAS: dict[str, tuple[Callable[..., int], ...]] = {
    "offset_warp": (_offset_warp, _offset_warp_backward),
    "motion_warp": (_motion_warp, _motion_warp_backward),
}


_later: list[tuple[Any, Callable[..., int]]] = []


def register(op: Any, backward: Any) -> None:
    """Of an op and its backward, as `torch.ops` has them: now, or when the counter is imported."""
    _later.extend(zip((op, backward), _FORMULAS.get(op.__name__, ())))
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
