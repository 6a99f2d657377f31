"""Read the arguments of a MotionRNN off the names and shapes in its state dict, and assume those that none shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...layers.cells import CELLS, cell_class, cell_options
from ..motion_rnn import MotionRNN
from ..variants import OPTIONS, variant_options
from .reading import some

# A function that returns the name which messages use for a tensor: that of the program that wrote it.
Shown = Callable[[str], str]

# The tensor whose last axis is the option.
_KERNELS = {
    "encoder_kernel_size": "interfaces.0.encoder.weight",
    "gate_kernel_size": "interfaces.0.cell.update.weight",
    "mask_kernel_size": "interfaces.0.cell.warp.warp_gate.weight",
    "blend_kernel_size": "interfaces.0.gate.weight",
    "kernel_size": "interfaces.0.cell.warp.conv.weight",
}
# The convolutions that read X and H in the package's own cells; their names follow "cells.#.".
_GATES = {
    "convlstm": ("conv_x.0.weight", "conv_h.0.weight"),
    "predrnn": ("conv_x.0.weight", "conv_h.0.weight"),
    "mim": ("conv_x.0.weight", "conv_h.0.weight"),
    "e3d_lstm": ("conv_x.0.weight", "conv_h.0.weight"),
    "conv_tt_lstm": ("conv_x.weight", "factors.0.weight"),
}
# A part of a parameter's name by which a predictor is recognised; the first match counts.
_HAS = (
    ("mim", ".stationary."),
    ("e3d_lstm", ".conv_o_cell."),
    ("conv_tt_lstm", ".factors."),
    ("predrnn", ".conv_m."),
    ("convlstm", ".conv_h.0."),
)


class ReadArguments(NamedTuple):
    """The arguments of a MotionRNN, as its tensors show them.

    Attributes:
        arguments: all arguments that are known, those that are assumed included.
        assumed: the arguments that are assumed, because no tensor shows them.
    """

    arguments: dict[str, Any]
    assumed: dict[str, Any]


def read_own(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> ReadArguments:
    """Return the arguments of a model whose state dict has this package's names; `given` are the caller's arguments.

    Raises:
        ValueError: a tensor is missing or has another number of axes, or the names belong to no known predictor.
    """
    predictor, variant = given.get("predictor"), given.get("variant")
    if predictor is None:
        predictor = own_predictor(state, given)
    cell_class(predictor)  # an unknown name raises its error
    arguments, assumed = architecture(state, predictor, given.get("in_channels"), given.get("patch_size"))
    first, motion = "conv_first.weight" in state, any(name.startswith("interfaces.") for name in state)
    arguments["variant"] = ("official" if first else "paper") if variant is None else variant
    arguments["highway"] = given.get("highway", first or motion)
    if arguments["highway"]:
        arguments["highway_first"] = first
    if not first and n_layers(state) > 1:
        assumed["highway"] = motion
    options = {"init_state", "residual"}
    if motion:
        assumed |= {"transient": True, "trend": True}
        options = set(OPTIONS) - _KERNELS.keys() - {"highway_first", "zero_init"}
    if predictor in ("mim", "e3d_lstm"):
        assumed["compat"] = None
        if predictor == "e3d_lstm":
            assumed["cell_options"] = {**arguments["cell_options"], "history": None}
    elif predictor not in _GATES and cell_options(predictor):
        assumed["cell_options"] = {}
    preset = asdict(variant_options(arguments["variant"], arguments["filter_size"]))
    if "interfaces.0.cell.alpha" in state:  # learned
        options -= {"alpha"}
    assumed |= {name: preset[name] for name in sorted(options)}
    assumed = {name: value for name, value in assumed.items() if name not in given}
    return ReadArguments({**arguments, **assumed}, assumed)


def own_predictor(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> str:
    """Return the predictor that has these parameters: one of the package, or a registered one whose model they fit."""
    for predictor, part in _HAS:
        if any(re.match(r"cells\.\d+" + re.escape(part), name) for name in state):
            return predictor
    for predictor in CELLS.keys() - _GATES.keys():
        try:
            arguments, _ = read_own(state, {**given, "predictor": predictor})
            with torch.device("meta"):
                model = MotionRNN(**{**arguments, **given})
        except (TypeError, ValueError):
            continue
        if not misfits(model, state, str):
            return predictor
    key = next(name for name in state if name.startswith("cells."))
    raise ValueError(
        f"{key} belongs to no known predictor; known: {', '.join(CELLS)}; register one of your own first"
    )


def architecture(
    state: Mapping[str, Tensor],
    predictor: str,
    in_channels: int | None,
    patch_size: int | None,
    shown: Shown = str,
) -> ReadArguments:
    """Return the arguments that names and shapes show, whichever program wrote them.

    The tensors show P*P*C. C and P are assumed if the caller gives neither.
    """
    layers = range(n_layers(state))
    norm = _norm(state, predictor)
    per_position = _per_position(state, predictor) or norm
    gates = [f"cells.{level}.{name}" for level in layers for name in _GATES.get(predictor, ())]
    _check_readable(state, predictor, [*gates, "conv_last.weight"], per_position, shown)
    folded = state["conv_last.weight"].shape[0]
    in_channels, patch_size, certain = frame_layout(folded, in_channels, patch_size)
    arguments: dict[str, Any] = {
        "predictor": predictor,
        "in_channels": in_channels,
        "hidden_channels": _widths(state, predictor),
        "patch_size": patch_size,
        "filter_size": _filter_size(state, predictor),
        "layer_norm": norm is not None,
        "motion_gru": any(name.startswith("interfaces.") for name in state),
        **{option: state[name].shape[-1] for option, name in _KERNELS.items() if _has_axes(state, name)},
    }
    if per_position is not None:
        arguments["image_size"] = tuple(size * patch_size for size in state[per_position].shape[-2:])
    if predictor == "e3d_lstm":
        arguments["cell_options"] = {"window": state[gates[0]].shape[2]}
    if predictor == "conv_tt_lstm":
        order = sum(re.fullmatch(r"cells\.0\.factors\.\d+\.weight", name) is not None for name in state)
        rank, lagged = state[gates[1]].shape[:2]
        lags = max(lagged // arguments["hidden_channels"][0], 1)
        arguments["cell_options"] = {"order": order, "steps": order - 1 + lags, "rank": rank}
    return ReadArguments(arguments, {} if certain else {"in_channels": in_channels, "patch_size": patch_size})


def n_layers(state: Iterable[str]) -> int:
    """Return the number of cells, at least 1; indices are counted, as one may be any number in a damaged file."""
    return len({match[1] for match in (re.match(r"cells\.(\d+)\.", name) for name in state) if match}) or 1


def frame_layout(folded: int, in_channels: int | None, patch_size: int | None) -> tuple[int, int, bool]:
    """Return C and P from `folded`, P*P*C, and whether they are certain.

    If neither is given, C is 1 or 3, whichever makes P a whole number (never both do).

    Raises:
        ValueError: no C and P, with those that are given, make P*P*C.
    """
    if patch_size is not None:
        candidates = [(in_channels or folded // max(patch_size, 1) ** 2, patch_size)]
    else:
        candidates = [(c, round((folded / c) ** 0.5)) for c in ([in_channels] if in_channels else [1, 3])]
    for c, p in candidates:
        if c * p * p == folded:
            return c, p, p == 1 or in_channels is not None or patch_size is not None
    raise ValueError(
        f"frames fold to {folded} channels in this checkpoint, which in_channels={in_channels} and "
        f"patch_size={patch_size} do not give (patch_size**2 * in_channels)"
    )


def misfits(model: nn.Module, state: Mapping[str, Tensor], shown: Shown) -> list[str]:
    """Return how a state dict differs from the model's: missing and unexpected names, and other shapes."""
    expected = model.state_dict()
    problems = []
    for kind, names in (
        ("missing", expected.keys() - state.keys()),
        ("unexpected", state.keys() - expected.keys()),
    ):
        if names:
            problems.append(f"{kind} {some(sorted(map(shown, names), key=_natural))}")
    return problems + [
        f"{shown(name)} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]


def _widths(state: Mapping[str, Tensor], predictor: str) -> tuple[int, ...]:
    """Return the width of every layer."""
    layers = range(n_layers(state))
    if predictor == "conv_tt_lstm":
        return tuple(state[f"cells.{level}.conv_x.weight"].shape[0] // 4 for level in layers)
    if predictor in _GATES:  # conv_h reads H
        return tuple(state[f"cells.{level}.conv_h.0.weight"].shape[1] for level in layers)
    last = state["conv_last.weight"].shape[1] // cell_class(predictor).depth
    encoders = [state.get(f"interfaces.{level}.encoder.weight") for level in layers[:-1]]
    return (
        *(last if encoder is None or encoder.dim() < 2 else encoder.shape[1] for encoder in encoders),
        last,
    )


def _filter_size(state: Mapping[str, Tensor], predictor: str) -> int:
    """Return the size of the cells' kernels; for a user's predictor, whose names are not known, the largest one."""
    if predictor in _GATES:
        return state[f"cells.0.{_GATES[predictor][0]}"].shape[-1]
    kernels = [t.shape[-1] for name, t in state.items() if name.startswith("cells.0.") and t.dim() > 3]
    return max(kernels, default=1)


def _norm(state: Mapping[str, Tensor], predictor: str) -> str | None:
    """Return the name of a layer norm's weight, (C, h, w) or (C, W, h, w), or None if cells have none."""
    if predictor in _GATES:
        return next((name for name in state if re.fullmatch(r"cells\.\d+\.conv_\w+\.1\.weight", name)), None)
    norms = (name for name in state if re.fullmatch(r"cells\.\d+\.\w+\.1\.weight", name))
    return next((name for name in norms if state[name].dim() == 3), None)


def _per_position(state: Mapping[str, Tensor], predictor: str) -> str | None:
    """Return the name of a tensor (..., h, w) that the predictor has with and without layer norm, or None."""
    if predictor == "e3d_lstm":
        return "cells.0.norm.weight"
    return "cells.1.stationary.peephole" if predictor == "mim" and n_layers(state) > 1 else None


def _has_axes(state: Mapping[str, Tensor], name: str) -> bool:
    return name in state and state[name].dim() > 0


def _check_readable(
    state: Mapping[str, Tensor],
    predictor: str,
    convolutions: list[str],
    per_position: str | None,
    shown: Shown,
) -> None:
    """Raise a ValueError unless the tensors that show the architecture are there and have enough axes."""
    wanted = [*convolutions, *([] if per_position is None else [per_position])]
    if absent := [shown(name) for name in wanted if name not in state]:
        raise ValueError(f"no checkpoint of MotionRNN or of a predictor it knows: missing {some(absent)}")
    for name in wanted:
        axes = (
            3 if name == per_position else 5 if predictor == "e3d_lstm" and name in convolutions[:-1] else 4
        )
        if state[name].dim() < axes or 0 in state[name].shape:
            shape = tuple(state[name].shape)
            raise ValueError(f"{shown(name)} has shape {shape}; it should have {axes} axes")


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key that puts layer 2 before layer 10."""
    return [(part.isdigit(), len(part) if part.isdigit() else 0, part) for part in name.split(".")]
