"""Initial values of parameters.

Each is stated once, in the `reset_parameters` of the module that holds the parameter, and the constructor calls that.
A module can so be made without numbers (on the device "meta", or by `torch.nn.utils.skip_init`) and get them later, by
its own `reset_parameters`, or by that of every module in it, in any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from ..backends.torch_private import ConvNd


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

    def reset_parameters(self) -> None:
        """Give all parameters new initial values, drawn as the constructor draws them: the same for the same seed.

        A subclass with parameters beside those of its parts should override this method, set them, and call
        `super().reset_parameters()`.

        Raises:
            TypeError: the module has such parameters and does not override this method, or a part has parameters that
                no `reset_parameters` sets. No value changes then.
        """
        own = [name for name, parameter in self._parameters.items() if parameter is not None]
        if own and type(self).reset_parameters is Resettable.reset_parameters:
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


# The `reset_parameters` of these classes set the parameters named weight and bias, and no others: neither those that a
# subclass adds, nor the weight of a pruned or parametrised module, which has another name. There they write into a
# tensor that is computed anew at the next call.
_SET_WEIGHT_AND_BIAS = (
    ZeroConv2d.reset_parameters,
    *(cls.reset_parameters for cls in (ConvNd, nn.Linear, nn.LayerNorm, nn.GroupNorm)),
)


def _check_parts(module: nn.Module) -> None:
    """Raise a TypeError if a part has parameters that no `reset_parameters` sets.

    Such a part would silently keep its values, or have none after `to_empty`.
    """
    kept: list[str] = []
    for path, part in module.named_modules():
        reset = getattr(part, "reset_parameters", None)
        names = [name for name, _ in part.named_parameters(recurse=False)]
        if _sets_weight_and_bias(reset):
            names = [name for name in names if name not in ("weight", "bias")]
        elif reset is not None:
            names = [name for name in names if _has_computed(part, name)]
        kept += [f"{path}.{name}".lstrip(".") for name in names]
    if kept:
        raise TypeError(
            f"no reset_parameters sets {', '.join(kept)}; every module that holds parameters should have one, and "
            "none be pruned or parametrised yet"
        )


def _sets_weight_and_bias(reset: Any) -> bool:
    return getattr(reset, "__func__", None) in _SET_WEIGHT_AND_BIAS


def _has_computed(module: nn.Module, name: str) -> bool:
    """Return whether a hook computes a tensor from that parameter, as that of pruning computes X from X_orig."""
    return isinstance(vars(module).get(name.rpartition("_")[0]), Tensor)


def _reset_parts(module: nn.Module) -> None:
    for part in module.children():
        reset = getattr(part, "reset_parameters", None)
        if reset is not None:
            reset()
        # An nn.ModuleList, a user's module, or a convolution with parts that a user added, which its own reset leaves.
        if reset is None or _sets_weight_and_bias(reset):
            _reset_parts(part)
