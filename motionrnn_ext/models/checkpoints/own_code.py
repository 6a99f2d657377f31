"""Find what a user has changed in a MotionRNN that neither its arguments nor its tensors show: code and padding."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from types import FunctionType
from typing import Any

from torch import nn

from ...backends.torch_private import ConvNd
from ...layers.cells import CELLS
from ...name import PACKAGE

# Methods that change no prediction.
_HARMLESS = {"extra_repr", "reset_parameters", "reset"}


def own_code(model: Any) -> list[str]:
    """Return a phrase for every part whose class replaces a method, and for every convolution changed in place.

    A class of torch, such as the wrapper of torch.compile, replaces nothing. The cells of a predictor that the user has
    registered are made again by its class, and are not looked at.
    """
    own_cells = not _is_known(CELLS.get(model.predictor, object))
    return list(_phrases(model, "", {"cells"} if own_cells else set()))


def _phrases(module: nn.Module, path: str, left_out: Collection[str] = ()) -> Iterator[str]:
    """Yield the phrases of `own_code` for a part of the model at `path`, which is "" for the model itself."""
    if methods := sorted(_replaced(type(module))):
        yield f"{type(module).__name__}.{methods[0]} of {path or 'the model'}"
    if isinstance(module, ConvNd):
        made: dict[str, Any] = {"dilation": (1,) * len(module.kernel_size), "groups": 1}
        if max(module.kernel_size) > 1:
            made["padding_mode"] = "zeros"
        yield from (
            f"{name}={getattr(module, name)!r} of {path}"
            for name, value in made.items()
            if getattr(module, name) != value
        )
    for name, child in module.named_children():
        if name not in left_out:
            yield from _phrases(child, f"{path}.{name}" if path else name)


def _replaced(cls: type) -> set[str]:
    """Return the names of the methods that a class of the user's replaces."""
    known = next((i for i, base in enumerate(cls.__mro__) if _is_known(base)), 0)
    methods = {"forward", "_conv_forward"}
    for base in cls.__mro__[known:]:
        if base.__module__.partition(".")[0] == PACKAGE:
            methods |= {name for name, value in vars(base).items() if isinstance(value, FunctionType)}
    own = {name for base in cls.__mro__[:known] for name in vars(base)}
    return {name for name in own & methods - _HARMLESS if not name.startswith("__")}


def _is_known(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in (PACKAGE, "torch")
