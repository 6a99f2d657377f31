"""Convert layers of other programs, inside a user's model, to this package's, and revert them.

- Official MotionGRUs become `MotionGRUCell`s: recognition.py, converted_motion_gru.py.
- Recurrent cells of other programs run as one node a step: converted_cell.py.
- 3x3 and 5x5 convolutions of a model that holds recurrent cells share their weights between the steps of its forward:
  sharing.py, forward_rollout.py.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import nn

from ..name import PACKAGE
from .convert_messages import check_module, n_modules, nothing_found
from .converted_cell import ConvertedCell, cell_mismatch, is_cell
from .converted_motion_gru import (
    ConvertedMotionGRU,
    hand_back,
    new_of,
    official_of,
    replace,
    take_over,
)
from .forward_rollout import Steps, remove_steps, steps_of
from .initial_values import Resettable
from .motion_gru_cell import MotionGRUCell
from .recognition import CONVOLUTIONS, hooks_of_the_user, is_candidate, mismatch
from .sharing import can_share, start_sharing, stop_sharing

# The number of convolutions whose names are printed.
_NAMED = 8


@dataclass
class ConversionReport:
    """The result of `convert` or `revert`, by module name; `print` it for a summary.

    Attributes:
        converted: names of all modules that were replaced; a module that the model uses twice has two names.
        skipped: name of each module that looks like a MotionGRU or a recurrent cell and was left alone, with the
            reason.
        hooks: names of the modules whose hooks, set by the user, are the reason why a module was left alone.
        sharing: names of the convolutions that now share their weights between the steps of a forward, or, reverted,
            no longer do.
        verb: "converted" or "reverted".
        looked_at: a sentence about what the model holds, if nothing was found.
    """

    converted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    hooks: list[str] = field(default_factory=list)
    sharing: list[str] = field(default_factory=list)
    verb: str = "converted"
    looked_at: str = ""

    def __str__(self) -> str:
        names = ", ".join(self.converted) or "none"
        lines = [f"{self.verb} {len(self.converted)}: {names}{self.looked_at and f'; {self.looked_at}'}"]
        lines += [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        if self.sharing:
            n, no_longer = len(self.sharing), "" if self.verb == "converted" else "no longer "
            lines.append(
                f"{no_longer}sharing the weights of {n} convolution{'s' * (n > 1)} between the steps of a forward: "
                f"{', '.join(self.sharing[:_NAMED])}{', ...' if n > _NAMED else ''}"
            )
        return "\n".join(lines)


def convert(model: nn.Module) -> ConversionReport:
    """Replace, in place, the official MotionGRUs and known recurrent cells in `model`, whose convolutions stay.

    A module is converted if it has exactly the submodules, parameters and buffers of a known one, and no hooks of the
    user's, and if a copy of it computes the same: the values and gradients of a few random steps should agree to 1e-5
    in float64, at several sizes. Known are the official MotionGRU, OpenSTL's ConvLSTMCell, and the
    SpatioTemporalLSTMCell of MotionRNN's program, predrnn-pytorch and OpenSTL. A module that looks like one of them
    and fails one of these tests is skipped, and the report gives the reason. All modules are compared before any is
    replaced.

    In a model that holds recurrent cells, also unknown ones (`conv_x` and `conv_h`, or `conv_x_concat` and
    `conv_h_concat`), the 3x3 and 5x5 `nn.Conv2d` outside of converted modules share their weights between the calls of
    one forward of the model, where that is faster: see `motionrnn_ext.layers.forward_rollout`. A converted cell runs
    the official forward wherever this package's step would be slower.

    Parameters, optimisers, state dicts and training mode stay valid. A module that the model uses twice is converted
    once. The official program's own hooks, which do nothing, are removed, and `revert` puts them back.

    Args:
        model: a model that holds such modules, at any depth.

    Returns:
        A report of the modules that were converted and skipped.

    Raises:
        TypeError: `model` is no module; if it holds one, the message names that.
        ValueError: `model` is itself a MotionGRU or a recurrent cell, which cannot be replaced in place.

    Examples:
        >>> print(motionrnn_ext.convert(model))
        converted 3: motion_list.0, motion_list.1, motion_list.2
    """
    check_module(model)
    modules = list(model.named_modules(remove_duplicate=False))
    found = [(name, m) for name, m in modules if name and (is_candidate(m) or is_cell(m))]
    if is_candidate(model) and not found:
        raise ValueError(
            "model is itself a MotionGRU, which cannot be replaced in place; "
            "assign the result instead: layer = motionrnn_ext.layers.from_official(layer)"
        )
    if is_cell(model) and not found:
        raise ValueError(
            "model is itself a recurrent cell, which cannot be replaced in place; pass the model that calls it"
        )
    report = ConversionReport()
    reasons: dict[int, str | None] = {}
    compared: set[Hashable] = set()
    for name, module in found:
        if _is_compiled_alone(name):
            report.skipped[name] = "it is compiled by itself (torch.compile); convert first, compile then"
            continue
        if id(module) not in reasons:
            reasons[id(module)] = (
                mismatch(module, take_over) if is_candidate(module) else cell_mismatch(module, compared)
            )
        reason = reasons[id(module)]
        if reason is None:
            report.converted.append(name)
            continue
        report.skipped[name] = reason
        report.hooks += [f"{name}.{part}".rstrip(".") for part in hooks_of_the_user(module)]
    made: dict[int, nn.Module] = {}
    try:
        for _, module in found:
            if id(module) not in made and reasons.get(id(module), "skipped") is None:
                made[id(module)] = take_over(module) if is_candidate(module) else ConvertedCell(module)
    except BaseException:
        for cell in made.values():
            if isinstance(cell, ConvertedMotionGRU):
                hand_back(cell)
        raise
    for name, module in found:
        if name in report.converted:
            replace(model, name, made[id(module)])
    cells = [name for name, module in modules if is_cell(module) or isinstance(module, ConvertedCell)]
    if cells:
        report.sharing = _share_convolutions(model)
        _open_rollouts(model, cells)
    if not found:
        report.looked_at = nothing_found(model)
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
        ValueError: `model` is itself a converted module, which cannot be replaced in place, or a converted MotionGRU
            in it has lost a convolution, or got something that its official module has no place for. Nothing is
            reverted then.
    """
    check_module(model)
    if official_of(model) is not None or isinstance(model, ConvertedCell):
        what = "recurrent cell" if isinstance(model, ConvertedCell) else "MotionGRU"
        raise ValueError(f"model is itself a converted {what}; revert the model that holds it")
    report = ConversionReport(verb="reverted")
    modules = list(model.named_modules(remove_duplicate=False))
    found = [(name, m) for name, m in modules if official_of(m) is not None or isinstance(m, ConvertedCell)]
    for name, _ in found:
        if _is_compiled_alone(name):
            report.skipped[name] = (
                "it is compiled by itself (torch.compile); put its _orig_mod in its place, then revert"
            )
    found = [each for each in found if each[0] not in report.skipped]
    for name, cell in found:
        if not isinstance(cell, ConvertedCell):
            _check_complete(name, cell)
    for name, cell in found:
        replace(model, name, cell.hand_back() if isinstance(cell, ConvertedCell) else hand_back(cell))
        report.converted.append(name)
    for name, module in modules:
        if stop_sharing(module):
            report.sharing.append(name)
        remove_steps(module)
    if not (report.converted or report.skipped or report.sharing):
        report.looked_at = f"no converted module among the {n_modules(model)} of this model"
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
    check_module(module)
    if not is_candidate(module):
        raise ValueError(f"module is a {type(module).__name__}; it should have {', '.join(CONVOLUTIONS)}")
    reason = mismatch(module, take_over)
    if reason is not None:
        raise ValueError(f"module is not the official MotionGRU: {reason}")
    return take_over(module)


def _check_complete(name: str, cell: nn.Module) -> None:
    """Raise a ValueError unless a converted MotionGRU has what its official module needs, and nothing more."""
    parts = dict(cell.named_modules(remove_duplicate=False))
    if lost := [part for part in CONVOLUTIONS if part not in parts]:
        raise ValueError(
            f"{name} has no {', '.join(lost)} any more, which its official module needs; put them back first"
        )
    if new := new_of(cell):
        raise ValueError(
            f"{name} has {', '.join(new)}, which its official module cannot take over; undo that first"
        )


def _is_compiled_alone(name: str) -> bool:
    """Return whether the module of this name is in a wrapper of torch.compile, which would go on with it."""
    return name.rpartition(".")[2] == "_orig_mod"


# ---- The convolutions of a model that holds recurrent cells


def _share_convolutions(model: nn.Module) -> list[str]:
    """Make the convolutions outside of converted modules share their weights, and return their names."""
    names: list[str] = []

    def visit(module: nn.Module, name: str) -> None:
        if can_share(module):
            start_sharing(module)
            names.append(name)
        # Layers of this package read their convolutions. Those of a MotionGRU that was left alone stay as they are.
        of_ours = isinstance(module, Resettable) or type(module).__module__.startswith(f"{PACKAGE}.")
        if of_ours or is_candidate(module):
            return
        for part, child in module._modules.items():
            if child is not None:
                visit(child, f"{name}.{part}".lstrip("."))

    visit(model, "")
    return names


def _open_rollouts(model: nn.Module, cells: list[str]) -> None:
    """Let every forward of a model that calls one of these cells be a rollout; models may be inside of others."""
    paths = {name.rsplit(".", depth)[0] for name in cells for depth in range(1, name.count(".") + 1)}
    for name in sorted(paths | {""}):
        owner = model.get_submodule(name)
        # PyTorch's containers and wrappers call what they hold once, or never.
        of_torch = type(owner).__module__.startswith("torch.")
        if not of_torch and not steps_of(owner):
            Steps().register(owner)
