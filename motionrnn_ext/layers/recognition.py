"""Recognise the official program's MotionGRU by its structure, its hooks, and what it computes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType
from typing import cast

import torch
from torch import nn

from .comparison import Call, difference
from .motion_gru import MotionGRU
from .motion_gru_cell import MotionGRUCell

CONVOLUTIONS = ("update", "reset", "output", "warp.conv", "warp.warp_gate")
_STRUCTURE = {"", "warp", *CONVOLUTIONS}
# The official Warp pads in a module without parameters; a Warp that computes the same may lack it.
PADDING = "warp.zero_padding"
# Methods of nn.Module that a layer may define, because they only make it or describe it, or are compared by running.
_FREE = {"__init__", "__repr__", "__dir__", "extra_repr", "_get_name", "forward"}
_METHODS = {
    name
    for name, value in vars(nn.Module).items()
    if callable(value) and name not in _FREE | set(vars(object))
}


def is_candidate(module: nn.Module) -> bool:
    """Return whether a user's module looks like a MotionGRU, by the name of its class or of its submodules."""
    if isinstance(module, (MotionGRU, MotionGRUCell)):
        return False
    names = set(module._modules.keys())
    return type(module).__name__ == "MotionGRU" or {"update", "reset", "output", "warp"} <= names


def mismatch(module: nn.Module, build: Callable[[nn.Module], MotionGRUCell]) -> str | None:
    """Return why a module is not exactly the official MotionGRU, or None if it is one. The module does not change.

    Its structure is compared first, then what it computes, see `motionrnn_ext.layers.comparison`.
    """
    return (
        script_reason(module)
        or _structure(module)
        or _sizes(module)
        or hooks_reason(module)
        or difference(module, build, _call(module))
    )


def _call(module: nn.Module) -> Call:
    """Return how a MotionGRU is called: offsets are some pixels."""
    channels, motion = (
        convolution(module, "warp.conv").in_channels,
        convolution(module, "update").out_channels,
    )
    inputs = {"x": (channels, 1.0), "offset": (motion, 2.0), "trend": (motion, 1.0)}
    return Call(inputs, ("out", "offset", "trend"), "the motion")


def script_reason(module: nn.Module) -> str | None:
    """Return that a module is a ScriptModule, or None."""
    return (
        "it is a ScriptModule; convert the model before torch.jit"
        if isinstance(module, torch.jit.ScriptModule)
        else None
    )


def convolution(module: nn.Module, name: str) -> nn.Conv2d:
    """Return the submodule `name`, which is a convolution."""
    return cast(nn.Conv2d, module.get_submodule(name))


# ---- Structure


def _structure(module: nn.Module) -> str | None:
    """Return how the submodules, parameters, buffers or arguments differ from the official ones, or None."""
    parts = dict(module.named_modules(remove_duplicate=False))
    if missing := [name for name in CONVOLUTIONS if name not in parts]:
        return f"it has no {', '.join(missing)}"
    if PADDING in parts and type(parts[PADDING]) is not nn.ZeroPad2d:
        return f"{PADDING} is a {type(parts[PADDING]).__name__}, not a ZeroPad2d"
    if reason := parts_reason(module, _STRUCTURE | {PADDING}, CONVOLUTIONS):
        return reason
    signature = inspect.signature(module.forward)
    arguments = [(argument.kind, argument.default) for argument in signature.parameters.values()]
    if arguments != [(inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty)] * 3:
        return f"its forward takes {signature}, not (x, offset, trend)"
    return tensors_reason(module)


def parts_reason(module: nn.Module, structure: set[str], convolutions: Iterable[str]) -> str | None:
    """Return how the parts of a user's module differ from those wanted, or None.

    Args:
        module: the module.
        structure: the names of all parts that it may have; its own is "".
        convolutions: the names of the parts that are convolutions, which alone have parameters.
    """
    parts = dict(module.named_modules(remove_duplicate=False))
    convolutions = set(convolutions)
    for name, part in parts.items():
        if name not in convolutions:
            continue
        if nn.utils.parametrize.is_parametrized(part):
            return f"{name} is parametrised (torch.nn.utils.parametrize)"
        if type(part) is not nn.Conv2d:
            kind = (
                type(part).__name__ if type(part).__name__ != "Conv2d" else f"{type(part).__module__}.Conv2d"
            )
            return f"{name} is a {kind}, not a Conv2d"
    if extra := [name for name in parts if name not in structure]:
        return f"it has more submodules: {', '.join(extra)}"
    for name, part in parts.items():
        title, wanted = name or "the module", {"weight", "bias"} if name in convolutions else set()
        if set(part._parameters) != wanted:
            why = " (pruned, sharded, or under the old weight_norm or spectral_norm?)" if wanted else ""
            return f"{title} has the parameters {listed(part._parameters)}, not {listed(wanted)}{why}"
        if part._buffers:
            return f"{title} has the buffers {listed(part._buffers)}, not none"
        if replaced := sorted((_METHODS | {"forward"}) & set(vars(part))):
            return f"{', '.join(replaced)} of {title} is replaced on the instance"
        if own := sorted(name for name in _METHODS if _is_overridden(type(part), name)):
            return f"{type(part).__name__} overrides {', '.join(own)} of nn.Module"
    return None


def _is_overridden(kind: type[nn.Module], name: str) -> bool:
    """Return whether a class has a method of its own in place of the one that PyTorch's modules have."""
    base = next(owner for owner in kind.__mro__ if owner.__module__.startswith("torch.nn.modules."))
    return getattr(kind, name) is not getattr(base, name)


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def tensors_reason(module: nn.Module) -> str | None:
    """Return why the parameters cannot be taken over, or None."""
    kinds = set()
    for name, parameter in module.named_parameters():
        if type(parameter) is not nn.Parameter:
            return f"{name} is a {type(parameter).__name__}, not a plain Parameter"
        if parameter.is_meta:
            return "its parameters are on the meta device, without numbers to compare; convert it when it has some"
        if not parameter.is_floating_point():
            return f"{name} has dtype {parameter.dtype}, which is not floating point"
        kinds.add((parameter.dtype, parameter.device))
    if len(kinds) > 1:
        found = ", ".join(f"{dtype} on {device}" for dtype, device in sorted(kinds, key=str))
        return f"its parameters are of several kinds: {found}"
    return None


def _sizes(module: nn.Module) -> str | None:
    """Return how the sizes of the convolutions differ from the official ones, or None."""
    warp = convolution(module, "warp.conv")
    k = warp.kernel_size[0]
    plain = (k, k), (k, k), (0, 0), (1, 1), 1
    if k % 2 == 0 or _geometry(warp) != plain or warp.bias is not None:
        return f"warp.conv is not an odd k x k convolution of stride k without bias: {warp}"
    motion, gate_kernel = 2 * k * k, convolution(module, "update").kernel_size[0]
    for name in ("update", "reset", "output", "warp.warp_gate"):
        conv, mask = convolution(module, name), name == "warp.warp_gate"
        sizes = (warp.in_channels, k * k) if mask else (warp.in_channels + motion, motion)
        g = conv.kernel_size[0] if mask else gate_kernel
        same = (g, g), (1, 1), (g // 2, g // 2), (1, 1), 1
        fits = g % 2 == 1 and _geometry(conv) == same and (conv.in_channels, conv.out_channels) == sizes
        if not fits or conv.bias is None or conv.padding_mode != "zeros":
            return f"{name} is not a same-size convolution with bias from {sizes[0]} to {sizes[1]}: {conv}"
    for name in CONVOLUTIONS:
        conv = convolution(module, name)
        shape = (conv.out_channels, conv.in_channels, *conv.kernel_size)
        if tuple(conv.weight.shape) != shape:
            return f"{name}.weight has shape {tuple(conv.weight.shape)}; {conv} has {shape}"
    return None


def _geometry(conv: nn.Conv2d) -> tuple[object, ...]:
    return conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups


# ---- Hooks


def hooks_of_the_user(module: nn.Module) -> dict[str, list[str]]:
    """Return the hooks of every part, by kind and name, without those of the official classes, which do nothing."""
    classes = {type(module), type(dict(module.named_children()).get("warp"))}
    found = {
        name: [
            f"{kind} {_hook_name(hook)}" for kind, hook in _all_hooks(part) if not _is_no_op(hook, classes)
        ]
        for name, part in module.named_modules()
    }
    return {name: hooks for name, hooks in found.items() if hooks}


def hooks_reason(module: nn.Module) -> str | None:
    """Return which hooks of the user's would no longer run, or None."""
    if not (found := hooks_of_the_user(module)):
        return None
    titles = [f"{hook} of {name or 'the module'}" for name, hooks in found.items() for hook in hooks]
    return f"it has hooks that would no longer run: {', '.join(titles)}"


def _all_hooks(part: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield every hook of a module with its kind, such as "forward pre hook"."""
    for kind, hooks in vars(part).items():
        if kind.endswith("_hooks"):
            yield from (
                (kind.strip("_").removesuffix("s").replace("_", " "), hook) for hook in hooks.values()
            )


def _hook_name(hook: object) -> str:
    return repr(getattr(hook, "__qualname__", type(hook).__name__))


def _is_no_op(hook: object, classes: set[type]) -> bool:
    """Return whether a hook is the official classes' own `_set_lr`, which should scale gradients and returns nothing.

    Such a hook is defined in the class, calls only harmless builtins and holds no object. Had it been edited to return
    or to change gradients, the comparison would show that. To do anything else, it would have to call or to hold
    something.
    """
    function = getattr(hook, "__func__", hook)
    name = getattr(function, "__name__", "")
    is_theirs = any(getattr(owner, name, None) is function for owner in classes)
    if not (is_theirs and isinstance(function, FunctionType)):
        return False
    harmless = {"range", "len", "tuple", "list", "zip", "enumerate"}
    keeps = function.__closure__ or function.__defaults__ or function.__kwdefaults__
    return not keeps and _names_used(function.__code__) <= harmless


def _names_used(code: CodeType) -> set[str]:
    """Return the globals and attributes that a function reads or writes, in its comprehensions as well."""
    inner = [_names_used(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)
