"""Recurrent cells of other programs: how they are recognised, and what takes their place.

    ConvLSTM    OpenSTL's ConvLSTMCell: (x, h, c) -> (h, c)
    ST-LSTM     SpatioTemporalLSTMCell of predrnn-pytorch and OpenSTL: (x, h, c, m) -> (h, c, m)
                the same with the Motion Highway, of MotionRNN's program: (x, h, c, m, y) -> (h, c, m, y)

A cell with these parts that computes something else is none of them, such as that of PredRNN v2, which returns its
decoupling terms as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..backends.convolution import gains
from ..name import PACKAGE
from .cells import ConvLSTMCell, LSTMState, RecurrentCell, SpatioTemporalLSTMCell
from .comparison import Call, difference
from .forward_rollout import joined_rollout
from .module_state import is_same
from .nodes import conv_lstm, st_lstm
from .recognition import hooks_reason, listed, parts_reason, script_reason, tensors_reason
from .rollout import dtype_of_convolutions
from .states import under_autocast


class Kind(NamedTuple):
    """A kind of cells: what calls of it take and return, its convolutions, and the cell of this package."""

    title: str
    states: tuple[str, ...]  # the arguments beside x, which are the results as well
    channels: dict[str, tuple[int, int]]  # by convolution; multiples of C, and 0 for those of x
    ours: type[RecurrentCell]


_CONV_LSTM = {"conv_x": (0, 4), "conv_h": (1, 4), "conv_o": (2, 1), "conv_last": (2, 1)}
_ST_LSTM = {"conv_x": (0, 7), "conv_h": (1, 4), "conv_m": (1, 3), "conv_o": (2, 1), "conv_last": (2, 1)}
_KINDS = (
    Kind("ConvLSTM", ("h", "c"), _CONV_LSTM, ConvLSTMCell),
    Kind("ST-LSTM", ("h", "c", "m"), _ST_LSTM, SpatioTemporalLSTMCell),
    Kind("ST-LSTM with Motion Highway", ("h", "c", "m", "y"), _ST_LSTM, SpatioTemporalLSTMCell),
)
# The attributes that every module has.
_OF_TORCH = frozenset(vars(nn.Module()))
# Sizes (B, H, W) that a cell is compared at. A cell moves nothing, and its convolutions are wide: small maps do.
_SIZES = ((1, 1, 6), (3, 8, 8), (1, 12, 16))
# Each set is that of the convolutions of some cell, by which it is known for one.
_MARKS = ({"conv_x", "conv_h"}, {"conv_x_concat", "conv_h_concat"})


class ConvertedCell(nn.Module):
    """A recurrent cell in the place of one of another program, whose parts, parameters and hooks it has.

    In a `ForwardRollout` a step is one node of this package. Everywhere else the other program's forward runs.

    `official`, `kind`, `ours`, `names` and `settings` are put into `__dict__` without registering them, so that
    state-dict keys stay as they are. The dicts of parts are those of `official`, which therefore has whatever is done
    to the parts of this cell.
    """

    official: nn.Module
    kind: Kind
    ours: RecurrentCell  # the cell of this package that computes the same, with the same parts
    names: list[str]  # names of the official forward's arguments
    settings: dict[str, Any]  # the official cell's own attributes, as they were when it was compared

    def __init__(self, official: nn.Module) -> None:
        super().__init__()
        kind = kind_of(official)
        assert kind is not None
        shared = {
            name: value
            for name, value in vars(official).items()
            if name in ("_parameters", "_buffers", "_modules", "training") or "hook" in name
        }
        vars(self).update(
            shared,
            official=official,
            kind=kind,
            ours=_ours(kind, official),
            names=list(inspect.signature(official.forward).parameters),
            settings=_settings(official),
        )

    def __getattr__(self, name: str) -> Any:
        """Return a part, or an attribute of the official cell."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "official" not in vars(self):
                raise
            return getattr(self.official, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, unless it is one that only the official cell's forward would read."""
        if "official" in vars(self) and name in self.settings:
            raise AttributeError(
                f"{name} is an attribute of the official {type(self.official).__name__}, which a converted one does "
                "not read; revert the model, set it, and call convert again"
            )
        super().__setattr__(name, value)

    def forward(self, *args: Any, **named: Any) -> Any:
        """Take one step, with the arguments and results of the official cell."""
        maps = [*args, *(named[name] for name in self.names[len(args) :] if name in named)]
        active = joined_rollout(self, maps[0] if maps else None)
        if active is not None and len(maps) == len(args) + len(named):
            stepped = self._step(active, maps)
            if stepped is not None:
                return stepped
        return self._official()(*args, **named)

    def _step(self, active: Any, maps: list[Any]) -> tuple[Tensor, ...] | None:
        """Return the results of one step by a node, or None where the official forward has to run."""
        if len(maps) != len(self.names) or not all(isinstance(t, Tensor) for t in maps):
            return None
        x, hidden, c, *rest = maps
        dtype = dtype_of_convolutions(x)
        if not active.joins(self, dtype, lambda: self._gains(x, dtype)) or not self._is_as_compared():
            return None
        mixed = under_autocast(x)
        # Half precision beside float32 is left to the official forward, which has its own rule or error.
        if any(t.dtype != (torch.float32 if mixed else x.dtype) for t in (c, *rest[:1])):
            return None
        if not rest:
            found = conv_lstm.step(active, self.ours, x, hidden, c, None)
            # H' is sigmoid(o) * tanh(C').
            return found and (found[0].to(c.dtype), found[1])
        highway = rest[1] if len(rest) > 1 else None
        stepped = st_lstm.step(active, self.ours, x, hidden, c, rest[0], highway)
        if stepped is None or highway is None:
            return stepped
        new_hidden = stepped[0].to(torch.promote_types(stepped[0].dtype, highway.dtype))
        return new_hidden, *stepped[1:], new_hidden

    def _gains(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Return whether a node is faster: where the convolutions in it are, as the node itself takes longer."""
        c, k = self.ours.hidden_channels, self.ours.filter_size
        return x.dim() == 4 and gains((4 * c, self.ours.in_channels + c, k, k), x, dtype)

    def _is_as_compared(self) -> bool:
        """Return whether the official cell has the attributes and the forward that it was compared with."""
        now, then = _settings(self.official), self.settings
        return now.keys() == then.keys() and all(is_same(now[name], value) for name, value in then.items())

    def _official(self) -> Callable[..., Any]:
        """Return the official forward. A replica of DataParallel has parts of its own, and is given them."""
        if not vars(self).get("_is_replica"):
            self.official.training = self.training
            return self.official.forward
        replica = type(self.official).__new__(type(self.official))
        vars(replica).update(vars(self.official))
        vars(replica).update({name: vars(self)[name] for name in ("_parameters", "_buffers", "_modules")})
        return replica.forward

    def hand_back(self) -> nn.Module:
        """Return the official cell, in the training mode of this one."""
        self.official.training = self.training
        self.official._is_full_backward_hook = self._is_full_backward_hook
        return self.official


class Specification(nn.Module):
    """A module that computes what a converted cell should, by the composed forward of this package's cell."""

    def __init__(self, official: nn.Module) -> None:
        super().__init__()
        kind = kind_of(official)
        assert kind is not None
        self._modules = official._modules
        vars(self).update(ours=_ours(kind, official), with_highway=len(kind.states) > 3)

    def forward(self, x: Tensor, hidden: Tensor, c: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        ours: Any = vars(self)["ours"]
        found, state, memory = ours(x, LSTMState(hidden, c), *rest)
        results = (found, state.cell) if memory is None else (found, state.cell, memory)
        return (*results, found) if vars(self)["with_highway"] else results


def is_cell(module: nn.Module) -> bool:
    """Return whether a user's module looks like a recurrent cell, by the names of its convolutions."""
    if isinstance(module, (ConvertedCell, RecurrentCell)) or type(module).__module__.startswith(
        f"{PACKAGE}."
    ):
        return False
    return any(mark <= set(module._modules.keys()) for mark in _MARKS)


def kind_of(module: nn.Module) -> Kind | None:
    """Return the kind of cells whose convolutions and number of arguments `module` has, or None."""
    n_arguments = len(inspect.signature(module.forward).parameters)
    for kind in _KINDS:
        if set(module._modules) == set(kind.channels) and n_arguments == 1 + len(kind.states):
            return kind
    return None


def cell_mismatch(module: nn.Module, compared: set[Hashable]) -> str | None:
    """Return why a module is not exactly a cell of a kind that is known, or None if it is. It does not change.

    `compared` holds what tells cells apart beside their weights; a cell like one of these is compared less.
    """
    if reason := script_reason(module):
        return reason
    kind = kind_of(module)
    if kind is None:
        found = (
            f"its forward takes {inspect.signature(module.forward)}, its parts are {listed(module._modules)}"
        )
        return f"it is no {' or '.join(kind.title for kind in _KINDS[:2])} that is known here: {found}"
    if reason := _structure(kind, module) or hooks_reason(module):
        return reason
    like = _without_weights(module)
    reason = difference(module, Specification, _call(kind, module), own_weights_alone=like in compared)
    if reason is None and like is not None:
        compared.add(like)
    return reason


def _without_weights(module: nn.Module) -> Hashable:
    """Return what tells cells of a structure apart beside their weights, or None if that cannot be compared."""
    settings = _settings(module)
    plain = (bool, int, float, str, type(None), FunctionType)
    if not all(isinstance(value, plain) for value in settings.values()):
        return None
    shapes = tuple((name, p.shape, p.dtype, p.device) for name, p in module.named_parameters())
    return type(module), module.training, tuple(settings.items()), shapes


def _structure(kind: Kind, module: nn.Module) -> str | None:
    """Return how the parts of a module differ from those of its kind, or None."""
    parts, convolutions = dict(module.named_children()), {}
    for name in kind.channels:
        part = parts[name]
        if type(part) is nn.Sequential and len(part) > 1:
            return f"{name} has {', '.join(type(each).__name__ for each in part)}, not a Conv2d alone"
        convolutions[f"{name}.0" if type(part) is nn.Sequential and len(part) else name] = name
    containers = {name for name in kind.channels if name not in convolutions}
    if reason := parts_reason(module, {"", *containers, *convolutions}, convolutions):
        return reason
    if reason := _arguments(kind, module) or tensors_reason(module):
        return reason
    return _sizes(kind, module, convolutions)


def _arguments(kind: Kind, module: nn.Module) -> str | None:
    """Return how the arguments of forward differ from those of the kind, or None."""
    signature = inspect.signature(module.forward)
    arguments = [(argument.kind, argument.default) for argument in signature.parameters.values()]
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    if arguments != [plain] * (1 + len(kind.states)):
        return f"its forward takes {signature}, not (x, {', '.join(kind.states)})"
    return None


def _sizes(kind: Kind, module: nn.Module, convolutions: dict[str, str]) -> str | None:
    """Return how the sizes of the convolutions differ from those of the kind, or None."""
    convs = {title: module.get_submodule(name) for name, title in convolutions.items()}
    of_x: Any = convs["conv_x"]
    c = of_x.out_channels // kind.channels["conv_x"][1]
    for title, conv in convs.items():
        assert isinstance(conv, nn.Conv2d)
        ins, outs = kind.channels[title]
        k = 1 if title == "conv_last" else of_x.kernel_size[0]
        sizes = (c * ins if ins else of_x.in_channels), c * outs
        plain = (k, k), (1, 1), (k // 2, k // 2), (1, 1), 1, "zeros", None
        found = (
            conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode, conv.bias
        )  # fmt: skip
        if k % 2 == 0 or found != plain or (conv.in_channels, conv.out_channels) != sizes:
            size = f"{k}x{k}" if k % 2 else "odd"
            return f"{title} is not a same-size {size} convolution without bias from {sizes[0]} to {sizes[1]}: {conv}"
        shape = (conv.out_channels, conv.in_channels, *conv.kernel_size)
        if tuple(conv.weight.shape) != shape:
            return f"{title}.weight has shape {tuple(conv.weight.shape)}; {conv} has {shape}"
    return None


def _call(kind: Kind, module: nn.Module) -> Call:
    """Return how a cell is called."""
    ours = _ours(kind, module)
    maps = {"x": ours.in_channels} | dict.fromkeys(kind.states, ours.hidden_channels)
    return Call({name: (channels, 1.0) for name, channels in maps.items()}, kind.states, "its states", _SIZES)


def _ours(kind: Kind, module: nn.Module) -> RecurrentCell:
    """Return this package's cell with the parts of a module of that kind; it holds them in the same dict."""
    of_x: Any = next(m for m in module._modules["conv_x"].modules() if isinstance(m, nn.Conv2d))  # type: ignore[union-attr]
    channels = of_x.out_channels // kind.channels["conv_x"][1]
    with torch.device("meta"):
        ours = kind.ours(of_x.in_channels, channels, of_x.kernel_size[0])
    ours._modules = module._modules
    return ours


def _settings(official: nn.Module) -> dict[str, Any]:
    """Return what the forward of a cell may read beside its parts, and that forward."""
    own = {name: value for name, value in vars(official).items() if name not in _OF_TORCH}
    return own | {"forward": type(official).forward}
