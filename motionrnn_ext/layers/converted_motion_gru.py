"""The MotionGRU cell that takes the place of an official MotionGRU."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from .forward_rollout import joined_rollout
from .motion_gru_cell import MotionGRUCell
from .recognition import CONVOLUTIONS, PADDING, convolution
from .warp import OffsetWarp


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
        active = joined_rollout(self, args[0] if args else None)
        if active is not None and len(args) == len(self.names):
            named.setdefault("packed", active.share((self, "packed"), self.pack))
        return super().forward(*args, **named)


def take_over(module: nn.Module) -> ConvertedMotionGRU:
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


def official_of(module: nn.Module) -> nn.Module | None:
    """Return the official module that a converted cell came from, or None for any other module.

    A cell that was pickled by an older version keeps it under another name.
    """
    return vars(module).get("official" if isinstance(module, ConvertedMotionGRU) else "_official_module")


def hand_back(cell: nn.Module) -> nn.Module:
    """Return the official module, with the cell's convolutions and the hooks and training mode they had there."""
    official = official_of(cell)
    assert official is not None
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
    return official


def new_of(cell: nn.Module) -> list[str]:
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
    wanted = {"alpha": 0.5, "trend_gate": None, "transient": True, "trend": True}
    present = {name: vars(cell).get(name, value) for name, value in wanted.items()}
    return new + [f"{name}={value}" for name, value in present.items() if value != wanted[name]]


def _share(source: nn.Module, target: nn.Module) -> None:
    """Put the convolutions of `source` into `target`."""
    for name in CONVOLUTIONS:
        replace(target, name, source.get_submodule(name))


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the submodule `name` of the model is."""
    *path, attribute = name.split(".")
    owner = model
    # Attributes are not used, because a property may hide a submodule of its name.
    for part in path:
        owner = cast(nn.Module, owner._modules[part])
    owner._modules[attribute] = module
