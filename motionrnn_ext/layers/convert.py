"""Convert the official program's MotionGRUs, inside a user's model, to `MotionGRUCell`s, and revert them."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from .motion_gru import MotionGRU
from .motion_gru_cell import MotionGRUCell
from .recognition import CONVOLUTIONS, PADDING, convolution, hooks_of_the_user, is_candidate, mismatch
from .warp import OffsetWarp

# Usual names of a wrapper's model, which may be properties.
_USUAL_NAMES = ("model", "module", "network", "net")


@dataclass
class ConversionReport:
    """The result of `convert` or `revert`, by module name; `print` it for a summary.

    Attributes:
        converted: names of all modules that were replaced; a module that the model uses twice has two names.
        skipped: name of each module that looks like a MotionGRU and was left alone, with the reason.
        hooks: names of the modules whose hooks, set by the user, are the reason why a MotionGRU was left alone.
        verb: "converted" or "reverted".
        looked_at: a sentence about what the model holds, if nothing was found.
    """

    converted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    hooks: list[str] = field(default_factory=list)
    verb: str = "converted"
    looked_at: str = ""

    def __str__(self) -> str:
        names = ", ".join(self.converted) or "none"
        lines = [f"{self.verb} {len(self.converted)}: {names}{self.looked_at and f'; {self.looked_at}'}"]
        lines += [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


class ConvertedMotionGRU(MotionGRUCell):
    """A `MotionGRUCell` that holds the convolutions of an official MotionGRU, and the module that they came from.

    `official` and `no_ops` are put into `__dict__` without registering them, so that state-dict keys stay as they are.
    """

    official: nn.Module
    no_ops: dict[str, dict[int, Any]]  # hooks of the official convolutions, which do nothing
    full: set[str]  # names of the convolutions whose hooks are full backward hooks
    names: list[str]  # names of the official forward's arguments

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute, unless it is one that only the official module's forward would read."""
        official = vars(self).get("official")
        if official is not None and hasattr(official, name) and not hasattr(self, name):
            raise AttributeError(
                f"{name} is an attribute of the official {type(official).__name__}, which a converted one does not "
                "read; revert the model, set it, and call convert again"
            )
        super().__setattr__(name, value)

    def forward(self, *args: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step, as `MotionGRUCell` does; arguments may be passed by their official names."""
        args += tuple(named.pop(name) for name in self.names[len(args) :] if name in named)
        return super().forward(*args, **named)


def convert(model: nn.Module) -> ConversionReport:
    """Replace, in place, every official MotionGRU in `model` by a `MotionGRUCell` with the same convolutions.

    A module is converted if it has exactly the submodules, parameters and buffers of the official one, and no hooks of
    the user's, and if a copy of it computes the same: the values and gradients of a few random steps should agree to
    1e-5 in float64, at several sizes. A module that looks like a MotionGRU and fails one of these tests is skipped,
    and the report gives the reason. All modules are compared before any is replaced.

    Parameters, optimisers, state dicts and training mode stay valid. A module that the model uses twice is converted
    once. The official program's own hooks, which do nothing, are removed, and `revert` puts them back.

    Args:
        model: a model that holds official MotionGRUs, at any depth.

    Returns:
        A report of the modules that were converted and skipped.

    Raises:
        TypeError: `model` is no module; if it holds one, the message names that.
        ValueError: `model` is itself a MotionGRU, which cannot be replaced in place.

    Examples:
        >>> print(motionrnn_ext.convert(model))
        converted 3: motion_list.0, motion_list.1, motion_list.2
    """
    _check_module(model)
    found = [(name, m) for name, m in model.named_modules(remove_duplicate=False) if name and is_candidate(m)]
    if is_candidate(model) and not found:
        raise ValueError(
            "model is itself a MotionGRU, which cannot be replaced in place; "
            "assign the result instead: layer = motionrnn_ext.layers.from_official(layer)"
        )
    report = ConversionReport()
    reasons: dict[int, str | None] = {}
    for name, module in found:
        if _is_compiled_alone(name):
            report.skipped[name] = "it is compiled by itself (torch.compile); convert first, compile then"
            continue
        if id(module) not in reasons:
            reasons[id(module)] = mismatch(module, _take_over)
        reason = reasons[id(module)]
        if reason is None:
            report.converted.append(name)
            continue
        report.skipped[name] = reason
        report.hooks += [f"{name}.{part}".rstrip(".") for part in hooks_of_the_user(module)]
    cells: dict[int, ConvertedMotionGRU] = {}
    try:
        for _, module in found:
            if id(module) not in cells and reasons.get(id(module), "skipped") is None:
                cells[id(module)] = _take_over(module)
    except BaseException:
        for cell in cells.values():
            _hand_back(cell, cell.official)
        raise
    for name, module in found:
        if name in report.converted:
            _replace(model, name, cells[id(module)])
    if not found:
        report.looked_at = _nothing_found(model)
    return report


def revert(model: nn.Module) -> ConversionReport:
    """Undo `convert`: put the same official modules back, with the present convolutions, parameters and training mode.

    A copy of a converted model (a pickled one as well) holds copies of its official modules, and reverts to those.

    Args:
        model: a model that `convert` has changed.

    Returns:
        A report whose `converted` lists the modules that were put back, and whose `skipped` names those that are
        compiled by themselves.

    Raises:
        TypeError: `model` is no module; if it holds one, the message names that.
        ValueError: `model` is itself a converted MotionGRU, which cannot be replaced in place, or a converted module
            in it has lost a convolution, or got something that its official module has no place for. Nothing is
            reverted then.
    """
    _check_module(model)
    if _official(model) is not None:
        raise ValueError("model is itself a converted MotionGRU; revert the model that holds it")
    report = ConversionReport(verb="reverted")
    modules = model.named_modules(remove_duplicate=False)
    found = [(name, cell, official) for name, cell in modules if (official := _official(cell)) is not None]
    for name, _, _ in found:
        if _is_compiled_alone(name):
            report.skipped[name] = (
                "it is compiled by itself (torch.compile); put its _orig_mod in its place, then revert"
            )
    found = [each for each in found if each[0] not in report.skipped]
    for name, cell, _ in found:
        parts = dict(cell.named_modules(remove_duplicate=False))
        if lost := [part for part in CONVOLUTIONS if part not in parts]:
            raise ValueError(
                f"{name} has no {', '.join(lost)} any more, which its official module needs; put them back first"
            )
        if new := _new(cell):
            raise ValueError(
                f"{name} has {', '.join(new)}, which its official module cannot take over; undo that first"
            )
    for name, cell, official in found:
        _hand_back(cell, official)
        _replace(model, name, official)
        report.converted.append(name)
    if not (report.converted or report.skipped):
        report.looked_at = f"no converted MotionGRU among the {_n_modules(model)} modules of this model"
    return report


def from_official(module: nn.Module) -> MotionGRUCell:
    """Return a `MotionGRUCell` with the convolutions, and so the Parameter objects, of one official MotionGRU.

    Like the official layer, the cell has no bound on the motion; `cell.max_offset = 1e4` sets this package's default.

    Args:
        module: an official MotionGRU.

    Returns:
        The cell. It shares its parameters with `module`.

    Raises:
        TypeError: `module` is no module.
        ValueError: `module` differs from the official MotionGRU in structure or in what it computes.
    """
    _check_module(module)
    if not is_candidate(module):
        raise ValueError(f"module is a {type(module).__name__}; it should have {', '.join(CONVOLUTIONS)}")
    reason = mismatch(module, _take_over)
    if reason is not None:
        raise ValueError(f"module is not the official MotionGRU: {reason}")
    return _take_over(module)


# ---- The conversion of one module


def _take_over(module: nn.Module) -> ConvertedMotionGRU:
    """Return a cell with the module's convolutions; the module keeps them as well, without their hooks."""
    warp = convolution(module, "warp.conv")
    # The cell's own convolutions need no values, because they are replaced below.
    with torch.device("meta"):
        cell = ConvertedMotionGRU(
            warp.in_channels,
            warp.kernel_size[0],
            max_offset=None,
            gate_kernel_size=convolution(module, "update").kernel_size[0],
            mask_kernel_size=convolution(module, "warp.warp_gate").kernel_size[0],
            out_channels=warp.out_channels,
        )
    official_warp = cast(nn.Module, module.warp)
    for ours, theirs in ((cell, module), (cell.warp, official_warp)):
        ours.training = theirs.training
        # The dicts of hooks are shared: a hook that is registered on either module from now on is on both.
        vars(ours).update({name: value for name, value in vars(theirs).items() if "hook" in name})
    _share(module, cell)
    # Parameters keep the order that they have in the official module.
    for ours, theirs in ((cell, module), (cell.warp, official_warp)):
        ours._modules = {name: ours._modules[name] for name in theirs._modules if name in ours._modules}
    names = list(inspect.signature(module.forward).parameters)
    vars(cell).update(official=module, no_ops={}, full=set(), names=names)
    for name in CONVOLUTIONS:
        conv = convolution(module, name)
        cell.no_ops[name] = dict(conv._backward_hooks)
        if conv._is_full_backward_hook:
            cell.full.add(name)
        conv._backward_hooks.clear()
        conv._is_full_backward_hook = None
    return cell


def _official(module: nn.Module) -> nn.Module | None:
    """Return the official module that a converted cell came from, or None for any other module.

    A cell that was pickled by an older version keeps it under another name.
    """
    return vars(module).get("official" if isinstance(module, ConvertedMotionGRU) else "_official_module")


def _hand_back(cell: nn.Module, official: nn.Module) -> None:
    """Give the cell's convolutions to the official module, with the hooks and the training mode they had there."""
    _share(cell, official)
    no_ops = vars(cell).get("no_ops", {})
    for name in CONVOLUTIONS:
        conv, hooks = convolution(official, name), no_ops.pop(name, None)
        if hooks:
            conv._backward_hooks.update(hooks)
            if conv._is_full_backward_hook is None:
                conv._is_full_backward_hook = name in vars(cell).get("full", ())
    theirs = {name: part for name, part in official.named_modules() if name in ("", "warp", PADDING)}
    for name, part in theirs.items():
        ours = cell.get_submodule("warp" if name else "")
        part.training = ours.training
        # The flag belongs to the hooks in the dict, which both modules share.
        if vars(part)["_backward_hooks"] is vars(ours)["_backward_hooks"]:
            part._is_full_backward_hook = ours._is_full_backward_hook


def _new(cell: nn.Module) -> list[str]:
    """Return what a converted cell has got since that its official module has no place for."""
    known, new = {"", "warp", *CONVOLUTIONS}, []
    warp = cell.get_submodule("warp")
    if not (isinstance(warp, OffsetWarp) and type(warp).forward is OffsetWarp.forward):
        new.append(f"a {type(warp).__name__} as warp")
    for name, part in cell.named_modules(remove_duplicate=False):
        if name.startswith(tuple(f"{conv}." for conv in CONVOLUTIONS)):
            continue  # belongs to a convolution, which is handed over as it is
        if name not in known:
            new.append(f"the module {name}")
        elif name not in CONVOLUTIONS:
            owned = [*part._parameters, *part._buffers, *({"forward"} & set(vars(part)))]
            new += [f"{name}.{own} of its own".lstrip(".") for own in owned]
    wanted = {"alpha": 0.5, "transient": True, "trend": True}
    present = {name: vars(cell).get(name, value) for name, value in wanted.items()}
    return new + [f"{name}={value}" for name, value in present.items() if value != wanted[name]]


def _share(source: nn.Module, target: nn.Module) -> None:
    """Put the convolutions of `source` into `target`."""
    for name in CONVOLUTIONS:
        _replace(target, name, source.get_submodule(name))


def _is_compiled_alone(name: str) -> bool:
    """Return whether the module of this name is in a wrapper of torch.compile, which would go on with it."""
    return name.rpartition(".")[2] == "_orig_mod"


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the submodule `name` of the model is."""
    *path, attribute = name.split(".")
    owner = model
    # Attributes are not used, because a property may hide a submodule of its name.
    for part in path:
        owner = cast(nn.Module, owner._modules[part])
    owner._modules[attribute] = module


# ---- Messages


def _check_module(model: object) -> None:
    """Raise a TypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {_title(model)}; it should be a torch.nn.Module{_instead(model)}")


def _title(model: object) -> str:
    return f"the class {model.__name__}" if isinstance(model, type) else f"of type {type(model).__name__}"


def _instead(model: object) -> str:
    """Return advice on what to pass in place of an object that is no module, or "" if there is none."""
    if isinstance(model, type):
        return ", an instance of it" if issubclass(model, nn.Module) else ""
    if isinstance(getattr(model, "__self__", None), nn.Module):
        return ": the one whose method this is"
    if isinstance(model, Mapping) and any(isinstance(value, Tensor) for value in model.values()):
        return ": load these tensors into one with load_state_dict, and pass that"
    if isinstance(model, (Mapping, list, tuple, set)):
        return ": the one that holds these"
    held = _modules_of(model, _USUAL_NAMES) or [
        f"{name}.{inner}" for name, part in _attributes(model).items() for inner in _modules_of(part)
    ]
    return f": pass {' or '.join(f'model.{name}' for name in held)}" if held else ""


def _modules_of(owner: object, properties: tuple[str, ...] = ()) -> list[str]:
    """Return the names of the attributes, and of those of `properties`, that are modules."""
    names = dict.fromkeys([*_attributes(owner), *properties])
    return [name for name in names if isinstance(_attribute(owner, name), nn.Module)]


def _attributes(owner: object) -> dict[str, object]:
    """Return the attributes of an instance; those whose names begin with _ come last."""
    found = {} if isinstance(owner, (type, ModuleType)) else dict(getattr(owner, "__dict__", {}))
    return {name: found[name] for name in sorted(found, key=lambda name: name.startswith("_"))}


def _parts(held: object) -> Iterable[object]:
    """Return the entries of a plain list, tuple or dict."""
    return held.values() if isinstance(held, Mapping) else held if isinstance(held, (list, tuple)) else ()


def _holds_candidate(part: object) -> bool:
    return isinstance(part, nn.Module) and any(map(is_candidate, part.modules()))


def _attribute(owner: object, name: str) -> object:
    try:
        return getattr(owner, name, None)
    except Exception:  # raised by a property
        return None


def _n_modules(model: nn.Module) -> int:
    return len(list(model.modules()))


def _nothing_found(model: nn.Module) -> str:
    """Return a sentence about what a model without an official MotionGRU holds."""
    ours = [name for name, m in model.named_modules() if isinstance(m, (MotionGRU, MotionGRUCell))]
    if ours:
        return f"its MotionGRUs are this package's already: {', '.join(name or 'itself' for name in ours)}"
    unregistered = [
        f"{name}.{attribute}".lstrip(".")
        for name, module in model.named_modules()
        for attribute, held in _attributes(module).items()
        if not attribute.startswith("_") and any(map(_holds_candidate, _parts(held)))
    ]
    if unregistered:
        return (
            f"there are MotionGRUs in a plain list or dict, where PyTorch does not find them: "
            f"{', '.join(unregistered)} should be an nn.ModuleList or nn.ModuleDict"
        )
    kinds = Counter(type(m).__name__ for m in model.modules())
    seen = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(8)) + (", ..." if len(kinds) > 8 else "")
    return (
        f"no module with the official MotionGRU's {', '.join(CONVOLUTIONS)} "
        f"among the {_n_modules(model)} of this model ({seen})"
    )
