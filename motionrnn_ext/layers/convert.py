"""Swap the MotionGRUs of the official program, inside a user's model, for this package's, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn

from .motion_gru import MotionGRUCell

_CONVOLUTIONS = ("update", "reset", "output", "warp.conv", "warp.warp_gate")
_ORIGINAL = "_official_module"


@dataclass
class ConversionReport:
    """What `convert` or `revert` did, by module name."""

    converted: list[str] = field(default_factory=list)  # all names swapped; a shared module has several
    skipped: dict[str, str] = field(default_factory=dict)  # named like a MotionGRU: why it was left alone
    hooks: list[str] = field(default_factory=list)  # modules whose hooks no longer run, until `revert`

    def __str__(self) -> str:
        lines = [f"converted {len(self.converted)}: {', '.join(self.converted) or 'none'}"]
        lines += [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        if self.hooks:
            lines.append(f"hooks that no longer run: {', '.join(self.hooks)}")
        return "\n".join(lines)


def convert(model: nn.Module) -> ConversionReport:
    """Replace, in place, every official MotionGRU in `model` by a `MotionGRUCell` with the same Parameter
    objects.

    They are recognised by structure: convolutions `update`, `reset`, `output`, `warp.conv` and
    `warp.warp_gate` of matching sizes. Optimisers, state dicts and training mode carry on as they were; an
    instance used twice is swapped once. Hooks on a swapped module no longer run, which the report says; the
    official program's own have no effect anyway.

    Raises:
        ValueError: `model` is itself a MotionGRU, which cannot be replaced in place.
    """
    if _looks_official(model):
        raise ValueError(
            "model is itself a MotionGRU, which cannot be swapped in place; "
            "assign the result instead: layer = motionrnn_ext.layers.from_official(layer)"
        )
    report, cells = ConversionReport(), dict[int, MotionGRUCell]()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not _looks_official(module):
            continue
        reason = _mismatch(module)
        if reason is not None:
            report.skipped[name] = reason
            continue
        if id(module) not in cells:
            cells[id(module)] = from_official(module)
            report.hooks += [
                f"{name}.{inner}".rstrip(".") for inner, m in module.named_modules() if _has_hooks(m)
            ]
        _replace(model, name, cells[id(module)])
        report.converted.append(name)
    return report


def revert(model: nn.Module) -> ConversionReport:
    """Undo `convert`: the official modules come back, with the parameters and the training mode of now.

    Raises:
        ValueError: `model` is itself a converted MotionGRU, which cannot be replaced in place.
    """
    if _ORIGINAL in model.__dict__:
        raise ValueError("model is itself a converted MotionGRU; revert the model that holds it")
    report = ConversionReport()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        original = module.__dict__.get(_ORIGINAL)
        if original is not None:
            _share_parameters(module, original)
            _replace(model, name, original.train(module.training))
            report.converted.append(name)
    return report


def from_official(module: nn.Module) -> MotionGRUCell:
    """A `MotionGRUCell` with the Parameter objects of one official MotionGRU.

    Its motion has no bound, as that of the official layer; `cell.max_offset = 1e4` gives it this package's.

    Raises:
        ValueError: the module has not the structure of one.
    """
    if not _looks_official(module):
        raise ValueError(f"module is a {type(module).__name__}; it should have {', '.join(_CONVOLUTIONS)}")
    reason = _mismatch(module)
    if reason is not None:
        raise ValueError(f"module is not the official MotionGRU: {reason}")
    warp = _convolution(module, "warp.conv")
    with torch.device("meta"):  # its own parameters are about to be replaced
        cell = MotionGRUCell(
            warp.in_channels,
            warp.kernel_size[0],
            max_offset=None,
            gate_kernel_size=_convolution(module, "update").kernel_size[0],
            mask_kernel_size=_convolution(module, "warp.warp_gate").kernel_size[0],
            out_channels=warp.out_channels,
        )
    _share_parameters(module, cell)
    cell.__dict__[_ORIGINAL] = module  # past nn.Module's registration: state-dict keys stay as they are
    return cell.train(module.training)


def _convolution(module: nn.Module, name: str) -> nn.Conv2d:
    return cast(nn.Conv2d, module.get_submodule(name))


def _looks_official(module: nn.Module) -> bool:
    if isinstance(module, MotionGRUCell):
        return False
    names = dict(module.named_modules(remove_duplicate=False))
    return all(name in names for name in _CONVOLUTIONS)


def _mismatch(module: nn.Module) -> str | None:
    """Why a module with the right names is not the official MotionGRU; None if it is."""
    for name in _CONVOLUTIONS:
        if not isinstance(module.get_submodule(name), nn.Conv2d):
            return f"{name} is a {type(module.get_submodule(name)).__name__}, not a Conv2d"
    warp = _convolution(module, "warp.conv")
    k = warp.kernel_size[0]
    plain = (k, k), (k, k), (0, 0), (1, 1), 1
    if k % 2 == 0 or _geometry(warp) != plain or warp.bias is not None:
        return f"warp.conv is not an odd k x k convolution of stride k without bias: {warp}"
    motion, gate_kernel = 2 * k * k, _convolution(module, "update").kernel_size[0]
    for name in ("update", "reset", "output", "warp.warp_gate"):
        conv, mask = _convolution(module, name), name == "warp.warp_gate"
        sizes = (warp.in_channels, k * k) if mask else (warp.in_channels + motion, motion)
        g = conv.kernel_size[0] if mask else gate_kernel
        same = (g, g), (1, 1), (g // 2, g // 2), (1, 1), 1
        fits = g % 2 == 1 and _geometry(conv) == same and (conv.in_channels, conv.out_channels) == sizes
        if not fits or conv.bias is None or conv.padding_mode != "zeros":
            return f"{name} is not a same-size convolution with bias from {sizes[0]} to {sizes[1]}: {conv}"
    return None


def _geometry(conv: nn.Conv2d) -> tuple[object, ...]:
    return conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups


def _share_parameters(source: nn.Module, target: nn.Module) -> None:
    for name, parameter in source.named_parameters(remove_duplicate=False):
        owner, _, attribute = name.rpartition(".")
        setattr(target.get_submodule(owner), attribute, parameter)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, module)


def _has_hooks(module: nn.Module) -> bool:
    return any(
        (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    )
