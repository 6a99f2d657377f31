"""Initial values of parameters.

Each is stated once, in the `reset_parameters` of the module that holds the parameter, and the constructor calls that.
A module can so be made without numbers (on the device "meta", or by `torch.nn.utils.skip_init`) and get them later, by
its own `reset_parameters`, or by that of every module in it, in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.types import Device

from ..backends.torch_private import ConvNd

Reset = TypeVar("Reset", bound=Callable[..., None])


def sets(*names: str) -> Callable[[Reset], Reset]:
    """Note that a `reset_parameters` sets the parameters of its module that have these names, and no others.

    It sets neither those that a subclass adds, nor the weight of a pruned or parametrised module, which has another
    name: what it writes into the weight is computed anew at the next call. This is a decorator.
    """

    def note(reset: Reset) -> Reset:
        reset.sets = names  # type: ignore[attr-defined]
        return reset

    return note


# The `reset_parameters` of these classes set the parameters named weight and bias, and no others, see `sets`.
_SET_WEIGHT_AND_BIAS = tuple(
    cls.reset_parameters
    for cls in (
        ConvNd,
        nn.Linear,
        nn.LayerNorm,
        nn.GroupNorm,
        nn.BatchNorm2d,
        nn.RMSNorm,
        nn.PReLU,
        nn.Embedding,
    )
)


class Resettable(nn.Module):
    """A module that is made of other modules, which hold its parameters."""

    optional: tuple[str, ...] = ()  # names of the parts that may be None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, as in every module, but refuse None in place of a part, which forward could not call.

        Raises:
            TypeError: the value is None, and the attribute is a part that is not in `optional`.
        """
        if (
            value is None
            and name not in self.optional
            and self.__dict__.get("_modules", {}).get(name) is not None
        ):
            raise TypeError(
                f"{type(self).__name__}.{name} is None; it should be a module, since it is called: to leave a part "
                "out, put one in its place that returns what the next part takes"
            )
        super().__setattr__(name, value)

    @sets()
    def reset_parameters(self) -> None:
        """Give all parameters new initial values, drawn as the constructor draws them: the same for the same seed.

        A subclass with parameters beside those of its parts should override this method, set them, and call
        `super().reset_parameters()`.

        Raises:
            TypeError: the module or a part has parameters that no `reset_parameters` sets: those of such a subclass, or
                the weight of a pruned or parametrised module. No value changes then.
        """
        if own := _kept(self):
            raise TypeError(
                f"{type(self).__name__} has parameters of its own ({', '.join(own)}); it should have a "
                "reset_parameters that sets them, and calls super().reset_parameters()"
            )
        _check_parts(self)
        _reset_parts(self)


class ZeroConv2d(nn.Conv2d):
    """An `nn.Conv2d` whose weight starts at 0.

    It draws the numbers that an `nn.Conv2d` draws, and drops them. For one seed all other parameters of a model are so
    the same with and without `zero_init`.
    """

    @sets("weight", "bias")
    def reset_parameters(self) -> None:
        """Give the bias a new initial value, and set the weight to 0."""
        super().reset_parameters()
        nn.init.zeros_(self.weight)


def same_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    zero: bool = False,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Conv2d:
    """Return a convolution that keeps the size of the map; with `zero` its weight starts at 0."""
    conv, padding = ZeroConv2d if zero else nn.Conv2d, kernel_size // 2
    return conv(in_channels, out_channels, kernel_size, padding=padding, device=device, dtype=dtype)


_LISTS = (nn.ParameterList, nn.ParameterDict)


def _check_parts(module: nn.Module) -> None:
    """Raise a TypeError if a part has parameters that no `reset_parameters` sets.

    Such a part would silently keep its values, or have none after `to_empty`.
    """
    parts = list(module.named_modules())[1:]
    if kept := [f"{path}.{name}" for path, part in parts for name in _kept(part)]:
        raise TypeError(
            f"no reset_parameters sets {', '.join(kept)}; every module that holds parameters should have one, and "
            "none be pruned or parametrised yet"
        )


def _kept(module: nn.Module) -> list[str]:
    """Return the names of a module's own parameters that its `reset_parameters`, if it has one, is known not to set.

    Those in a list or dict of parameters, which can have no such method, belong to the module that holds it.
    """
    if isinstance(module, _LISTS):
        return []
    names = [name for name, _ in module.named_parameters(recurse=False)]
    for holder, part in module.named_children():
        if isinstance(part, _LISTS):
            names += [f"{holder}.{name}" for name, _ in part.named_parameters()]
    reset = getattr(module, "reset_parameters", None)
    if reset is None:
        return names
    function = getattr(reset, "__func__", None)
    known = ("weight", "bias") if function in _SET_WEIGHT_AND_BIAS else getattr(function, "sets", names)
    return [name for name in names if name not in known]


def _reset_parts(module: nn.Module) -> None:
    for part in module.children():
        reset = getattr(part, "reset_parameters", None)
        if reset is not None:
            reset()
        # An nn.ModuleList, a user's module, or a convolution with parts that a user added, which its own reset leaves.
        if reset is None or getattr(reset, "__func__", None) in _SET_WEIGHT_AND_BIAS:
            _reset_parts(part)
