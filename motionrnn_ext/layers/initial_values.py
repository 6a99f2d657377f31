"""Initial values of parameters: each is stated once, in the `reset_parameters` of the module that holds it, and the
constructor calls that.

So a module can be made without numbers (on the device "meta", or by `torch.nn.utils.skip_init`) and get them later, by
its own `reset_parameters`, or by that of every module in it, in any order.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..backends.torch_private import ConvNd


class Resettable(nn.Module):
    """A module made of others, which hold its parameters."""

    optional: tuple[str, ...] = ()  # parts that may be None

    def __setattr__(self, name: str, value: Any) -> None:
        """As of all modules; a TypeError for None in place of a part, where forward would end in one without a name."""
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
        """Give all parameters new initial values, drawn as the constructor draws them: for one seed they are the same.

        Raises:
            TypeError: there are parameters beside those of the parts; a subclass that has some should say here what
                they are at the start. Or one of the parts has parameters that nothing sets. No value changes then.
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
    """An `nn.Conv2d` whose weight starts at 0. The numbers that an `nn.Conv2d` draws are drawn, and dropped: for one
    seed all other parameters of a model are the same with and without `zero_init`."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.weight)


# What these set is called weight and bias. A pruned or parametrised module has those under other names, and they write
# into a weight that is computed anew at the next call; of what a subclass adds they know nothing.
_OF_WEIGHT_AND_BIAS = (
    ZeroConv2d.reset_parameters,
    *(cls.reset_parameters for cls in (ConvNd, nn.Linear, nn.LayerNorm, nn.GroupNorm)),
)


def _check_parts(module: nn.Module) -> None:
    """Raise where a part of somebody else's would keep its values, or after `to_empty` have none, without a word."""
    kept: list[str] = []
    for path, part in list(module.named_modules())[1:]:
        reset = getattr(part, "reset_parameters", None)
        names = [name for name, _ in part.named_parameters(recurse=False)]
        if getattr(reset, "__func__", None) in _OF_WEIGHT_AND_BIAS:
            names = [name for name in names if name not in ("weight", "bias")]
        elif reset is not None:
            continue
        kept += [f"{path}.{name}" for name in names]
    if kept:
        raise TypeError(
            f"no reset_parameters sets {', '.join(kept)}; every module that holds parameters should have one, and "
            "none be pruned or parametrised yet"
        )


def _reset_parts(module: nn.Module) -> None:
    for part in module.children():
        reset = getattr(part, "reset_parameters", None)
        if reset is None:
            _reset_parts(part)  # a list, or a module of someone else's
        else:
            reset()
