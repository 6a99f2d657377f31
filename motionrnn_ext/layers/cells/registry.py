"""The predictors by name: those of the package, and those that a user registers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch.types import Device

from ..arguments import shown
from .base import RecurrentCell
from .conv_lstm import ConvLSTMCell
from .conv_tt_lstm import ConvTTLSTMCell
from .e3d_lstm import E3DLSTMCell
from .mim import MIMCell
from .st_lstm import SpatioTemporalLSTMCell

CELLS: dict[str, type[RecurrentCell]] = {
    "convlstm": ConvLSTMCell,
    "predrnn": SpatioTemporalLSTMCell,
    "mim": MIMCell,
    "e3d_lstm": E3DLSTMCell,
    "conv_tt_lstm": ConvTTLSTMCell,
}
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
Cell = TypeVar("Cell", bound=type[RecurrentCell])


def register_predictor(name: str) -> Callable[[Cell], Cell]:
    """Give a recurrent cell a name, by which `MotionRNN` and the command line know it from then on.

    This is a class decorator. The class is called as
    `cell(in_channels, hidden_channels, filter_size, layer_norm=, map_size=, compat=)`; keyword arguments of its own
    come from `cell_options` of `MotionRNN`. If its `__init__` names `device` and `dtype`, it gets them; otherwise it is
    made on the device, and then cast to the dtype.

    Args:
        name: the predictor's name, which should be new. A class of the same module and name may be registered again.

    Returns:
        The decorator, which returns the class as it is.

    Raises:
        ValueError: the name is taken.
        TypeError: the name is no word, or the decorated class is no `RecurrentCell`.

    Examples:
        >>> @register_predictor("my_cell")
        ... class MyCell(RecurrentCell): ...
    """

    if not isinstance(name, str) or not name:
        raise TypeError(f"name is {shown(name)}; it should be a word, as in @register_predictor('my_cell')")

    def register(cell: Cell) -> Cell:
        if not (isinstance(cell, type) and issubclass(cell, RecurrentCell)):
            raise TypeError(f"predictor {name!r} is {cell!r}; it should be a subclass of RecurrentCell")
        taken = CELLS.get(name, cell)
        # A class of the same module and name is the same predictor, defined again in a notebook or by a reload.
        if (taken.__module__, taken.__qualname__) != (cell.__module__, cell.__qualname__):
            raise ValueError(f"the name {name!r} is taken by {taken.__name__}; it should be a new one")
        CELLS[name] = cell
        return cell

    return register


def cell_class(predictor: str) -> type[RecurrentCell]:
    """Return the cell of the predictor of that name.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if not isinstance(predictor, str) or predictor not in CELLS:
        raise ValueError(f"unknown predictor {shown(predictor)}; known: {', '.join(CELLS)}")
    return CELLS[predictor]


def make_cell(
    cls: type[RecurrentCell], *sizes: int, device: Device, dtype: torch.dtype | None, **options: Any
) -> RecurrentCell:
    """Return a cell of that class, device and dtype; the class need not know the arguments `device` and `dtype`."""
    if {"device", "dtype"} <= inspect.signature(cls).parameters.keys():
        return cls(*sizes, device=device, dtype=dtype, **options)
    with torch.device(device) if device is not None else nullcontext():
        cell = cls(*sizes, **options)
    return cell if dtype is None else cell.to(dtype)


def cell_options(predictor: str) -> list[str]:
    """Return the names of the arguments that only this predictor's cell and its base classes take."""
    shared = inspect.signature(RecurrentCell.__init__).parameters
    names: dict[str, None] = {}
    for cls in cell_class(predictor).__mro__:
        if cls is RecurrentCell:
            break
        own = inspect.signature(vars(cls)["__init__"]).parameters.values() if "__init__" in vars(cls) else ()
        names |= dict.fromkeys(p.name for p in own if p.kind in _NAMED and p.name not in shared)
    return list(names)
