"""Decide whether the parameters of a submodule may be read instead of calling it.

The fused paths read the parameters of convolutions that they never call. That is right only for a plain module: one
whose call runs the forward of its PyTorch class and nothing else, on ordinary tensors. A module with hooks of its own
(pruning, the old weight_norm and spectral_norm, captured activations), with another geometry, of a class with a forward
of its own (adapters, quantised modules, wrappers), or with parameters of a tensor subclass, which may compute a
convolution in a way of its own, is called, as the official program calls it, which is slower. A parametrised
convolution (`torch.nn.utils.parametrize`) is plain, because reading its weight computes it.

Hooks on all modules (`torch.nn.modules.module.register_module_forward_hook`) do not count: profilers and counters of
FLOPs install them to watch what runs without them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..backends.torch_private import is_traced, runs_forward
from .states import under_autocast

Class = TypeVar("Class", bound=type[nn.Module])
_FRESH = (nn.Conv2d, nn.Conv3d, nn.LayerNorm)
# The functions as they were when the package was imported: a class in which one was replaced since is not plain.
_FORWARD: dict[type[nn.Module], Callable[..., Any]] = {
    cls: cls.forward for cls in (*_FRESH, nn.ConvTranspose2d, nn.Sequential)
}
_CONV_FORWARD: dict[type[nn.Module], Callable[..., Any]] = {
    cls: cls._conv_forward for cls in (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
}


def may_be_plain(cls: Class) -> Class:
    """Make the forward of a class known to `is_plain`.

    This is a class decorator.
    """
    _FORWARD[cls] = cls.forward
    return cls


def is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Return whether calling `module` runs the forward that `cls` was defined with and nothing else."""
    kind = type(module)
    return (
        isinstance(module, cls)
        and kind.forward is _FORWARD[cls]
        and getattr(kind, "_conv_forward", None) is _CONV_FORWARD.get(cls)
        and is_as_its_class(module)
    )


def is_as_its_class(module: nn.Module) -> bool:
    """Return whether calling `module` runs the forward of its own class and nothing else, on ordinary tensors."""
    own = module.__dict__
    return (
        runs_forward(module)
        and "forward" not in own
        and "_conv_forward" not in own
        and not has_hooks(module)
        and all(map(_is_ordinary, (*own["_parameters"].values(), *own["_buffers"].values())))
    )


def has_hooks(module: nn.Module) -> bool:
    """Return whether `module` has hooks of its own, which run when it is called or in its backward."""
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )


def has_hooks_inside(module: nn.Module) -> bool:
    """Return whether a part of `module` has hooks of its own, which may change any weights while `module` runs."""
    return any(has_hooks(part) for part in module.modules() if part is not module)


def _is_ordinary(tensor: Tensor | None) -> bool:
    """Return whether a parameter or buffer is no tensor of a user's class; tracing has classes of its own."""
    return tensor is None or type(tensor) in (Tensor, nn.Parameter) or is_traced(tensor)


def is_plain_conv(
    module: nn.Module, in_channels: int, out_channels: int, stride: int = 1, bias: bool | None = None
) -> bool:
    """Return whether `module` is a plain convolution of these sizes, square and odd, without groups or dilation.

    With stride 1 it should pad with zeros to the same size. With another stride it should read patches side by side,
    without padding. It should have a bias, or none, as `bias` says; by default it has one with stride 1 alone.
    """
    # mypy learns the class from isinstance alone.
    if not (is_plain(module, nn.Conv2d) and isinstance(module, nn.Conv2d)):
        return False
    size = module.kernel_size
    rows, columns = size if isinstance(size, tuple) else (size, size)
    padding = (rows // 2, columns // 2) if stride == 1 else (0, 0)
    return (
        (module.in_channels, module.out_channels, module.groups) == (in_channels, out_channels, 1)
        and rows == columns
        and rows % 2 == 1
        and (module.stride, module.padding, module.dilation) == ((stride, stride), padding, (1, 1))
        and module.padding_mode == "zeros"
        and has_bias(module) == (stride == 1 if bias is None else bias)
    )


def has_bias(conv: nn.Module) -> bool:
    """Return whether `conv` has a bias, without computing a parametrised one."""
    return parametrize.is_parametrized(conv, "bias") or conv.bias is not None


def keeps_parameters(conv: nn.Module) -> bool:
    """Return whether weight and bias are plain parameters, which reading does not compute."""
    return "weight" in conv._parameters and "bias" in conv._parameters


def is_fresh(module: nn.Module) -> bool:
    """Return whether `module` returns new memory that nothing else reads, so that sums may be taken in it."""
    if is_plain(module, nn.Sequential):
        parts = list(module.children())
        return bool(parts) and all(map(is_fresh, parts))
    return any(is_plain(module, cls) for cls in _FRESH)


def call(module: nn.Module, name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return module(x), converted to the dtype of x unless autocast is on.

    Raises:
        ValueError: the module returns something else than a tensor of that shape.
    """
    out = module(x)
    check_returned(name, out, shape)
    return out if out.dtype == x.dtype or under_autocast(x) else out.to(x.dtype)


def check_entries(name: str, out: object, *entries: str) -> None:
    """Raise a TypeError unless `out`, returned by the module `name`, has these entries."""
    if not has_entries(out, len(entries)):
        raise TypeError(f"{name} returns {number_or_type(out)}; it should return ({', '.join(entries)})")


def has_entries(value: object, number: int) -> bool:
    """Return whether `value` is a tuple or list of so many entries."""
    return isinstance(value, (tuple, list)) and len(value) == number


def number_or_type(value: object) -> str:
    """Return the number of entries of a tuple or list, or the type of anything else, for a message."""
    return f"{len(value)} entries" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"


def check_returned(name: str, out: object, shape: tuple[int | None, ...]) -> None:
    """Raise a ValueError unless `out`, returned by the module `name`, is a tensor of that shape.

    None in `shape` stands for any size. While compiling nothing is compared, because that would fix symbolic sizes.
    """
    if isinstance(out, Tensor):
        if torch.compiler.is_compiling() or (
            out.dim() == len(shape) and all(wanted in (None, size) for size, wanted in zip(out.shape, shape))
        ):
            return
        found = f"shape {tuple(out.shape)}"
    else:
        found = f"a {type(out).__name__}"
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    raise ValueError(f"{name} returns {found}; it should return a tensor of shape ({sizes})")
