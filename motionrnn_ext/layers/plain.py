"""Decide whether the parameters of a submodule may be read instead of calling it.

The fused paths read the parameters of convolutions that they never call. That is right only for a plain module: one
whose call runs the forward of its PyTorch class and nothing else. A module with hooks of its own (pruning, the old
weight_norm and spectral_norm, captured activations), with another geometry, or of a class with a forward of its own
(adapters, quantised modules, wrappers) is called, as the official program calls it, which is slower. A parametrised
convolution (`torch.nn.utils.parametrize`) is plain, because reading its weight computes it.

Hooks on all modules (`torch.nn.modules.module.register_module_forward_hook`) do not count: profilers and counters of
FLOPs install them to watch what runs without them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .states import under_autocast

_FRESH = (nn.Conv2d, nn.Conv3d, nn.LayerNorm)


def is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Return whether calling `module` runs the forward of `cls` and nothing else."""
    kind, own = type(module), module.__dict__
    return (
        isinstance(module, cls)
        and kind.forward is cls.forward
        and kind.__call__ is nn.Module.__call__
        and getattr(kind, "_conv_forward", None) is getattr(cls, "_conv_forward", None)
        and "forward" not in own
        and "_conv_forward" not in own
        and not (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
        )
    )


def is_plain_conv(module: nn.Module, in_channels: int, out_channels: int, stride: int = 1) -> bool:
    """Return whether `module` is a plain convolution of these sizes, square and odd, without groups or dilation.

    With stride 1 it should pad with zeros to the same size and have a bias. With another stride it should read patches
    side by side, without padding, and have no bias.
    """
    # mypy learns the class from isinstance alone.
    if not (is_plain(module, nn.Conv2d) and isinstance(module, nn.Conv2d)):
        return False
    rows, columns = module.kernel_size
    padding = (rows // 2, columns // 2) if stride == 1 else (0, 0)
    return (
        (module.in_channels, module.out_channels, module.groups) == (in_channels, out_channels, 1)
        and rows == columns
        and rows % 2 == 1
        and (module.stride, module.padding, module.dilation) == ((stride, stride), padding, (1, 1))
        and module.padding_mode == "zeros"
        and has_bias(module) == (stride == 1)
    )


def has_bias(conv: nn.Module) -> bool:
    """Return whether `conv` has a bias, without computing a parametrised one."""
    return conv._parameters.get("bias", 0) is not None


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
