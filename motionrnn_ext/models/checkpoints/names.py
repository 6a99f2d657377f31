"""Parameters of the public programs: their names, the order of their gates, and those that predictions never read.

A name is a pattern, in which # stands for the index of a layer or interface and @ for that index less one. If a
program packs its gates in another order, a letter stands for each gate: i, f, g, o as usual, r for E3D-LSTM's recall,
and I, F, G for the gates of its M.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class _Part(NamedTuple):
    """A part of a model: the prefix of its parameters' names in the public program and in this package."""

    official: str
    ours: str
    gates: tuple[str, str] | None = None  # the gates' order along the first axis, there and here


_OUTPUT = _Part("conv_last.", "conv_last.")
_MOTION_RNN = (
    _Part("enc_list.#.", "interfaces.#.encoder."),
    _Part("motion_list.#.", "interfaces.#.cell."),
    _Part("dec_list.#.", "interfaces.#.decoder."),
    _Part("gate_list.#.", "interfaces.#.gate."),
    _Part("conv_first_v.", "conv_first."),
    _OUTPUT,
)
_LSTM = (_Part("cell_list.#.", "cells.#."), *_MOTION_RNN)


def _peephole_lstm(official: str, ours: str) -> tuple[_Part, ...]:
    """Return the parts of a `PeepholeLSTM`."""
    return (
        _Part(f"{official}conv_h_concat.", f"{ours}conv_a.", ("igfo", "ifgo")),
        _Part(f"{official}conv_x_concat.", f"{ours}conv_x.", ("igfo", "ifgo")),
        _Part(f"{official}ct_weight", f"{ours}peephole"),
        _Part(f"{official}oc_weight", f"{ours}output_peephole"),
    )


_PARTS = {
    "convlstm": _LSTM,
    "predrnn": _LSTM,
    "mim": (
        _Part("stlstm_layer.0.", "cells.0."),
        _Part("stlstm_layer.#.conv_x_cc.", "cells.#.conv_x.", ("igfo", "ifgo")),
        _Part("stlstm_layer.#.conv_t_cc.", "cells.#.conv_h."),
        _Part("stlstm_layer.#.conv_s_cc.", "cells.#.conv_m.", ("igfo", "ifgo")),
        _Part("stlstm_layer.#.conv_last.", "cells.#.conv_last."),
        *_peephole_lstm("stlstm_layer.#.", "cells.#.stationary."),
        *_peephole_lstm("stlstm_layer_diff.@.", "cells.#.nonstationary."),
        _OUTPUT,
    ),
    "e3d_lstm": (
        _Part("cell_list.#.conv_x.0.conv3d.", "cells.#.conv_x.0.", ("igroIGF", "IFGirgo")),
        _Part("cell_list.#.conv_x.", "cells.#.conv_x.", ("igroIGF", "IFGirgo")),
        _Part("cell_list.#.conv_h.0.conv3d.", "cells.#.conv_h.0.", ("igro", "irgo")),
        _Part("cell_list.#.conv_h.", "cells.#.conv_h.", ("igro", "irgo")),
        _Part("cell_list.#.conv_gm.0.conv3d.", "cells.#.conv_m.0."),
        _Part("cell_list.#.conv_gm.", "cells.#.conv_m."),
        _Part("cell_list.#.conv_new_cell.0.conv3d.", "cells.#.conv_o_cell.0."),
        _Part("cell_list.#.conv_new_cell.", "cells.#.conv_o_cell."),
        _Part("cell_list.#.conv_new_gm.0.conv3d.", "cells.#.conv_o_memory.0."),
        _Part("cell_list.#.conv_new_gm.", "cells.#.conv_o_memory."),
        _Part("cell_list.#.conv_last.conv3d.", "cells.#.conv_last."),
        _Part("cell_list.#._norm_c_t.", "cells.#.norm."),
        _OUTPUT,
    ),
}
# Parameters that the programs register, and that predictions never read.
_DEAD = {
    "convlstm": r"cell_list\.\d+\.(conv_o|conv_last)\.",
    "predrnn": r"adapter\.weight$",  # PredRNN-V2's loss alone reads it
    "mim": r"stlstm_layer_diff\.\d+\.conv_last\.",
    "e3d_lstm": r"(?!)",
}


# Programs that cannot be loaded, by a part of a name that they alone have.
_FOREIGN = {
    "PredRNN++": r"(^|\.)gradient_highway\.|\.conv_c2m\.",
    "MAU": r"\.conv_t_next\.|(^|\.)srcnn\.",
    "PhyDNet": r"(^|\.)phycell\.",
    "SimVP": r"(^|\.)(enc\.enc|hid\.enc|dec\.readout)\.",
    "action-conditioned PredRNN": r"(^|\.)cell_list\.\d+\.conv_a\.",
    "Conv-TT-LSTM (load_conv_tt_lstm_cell loads a cell of it)": r"(^|\.)layers_\.\d+\.",
}
_KNOWN = "MotionRNN, PredRNN, ConvLSTM (thuml, OpenSTL), MIM, E3D-LSTM (OpenSTL) and this package's own"


def refuse_foreign(names: Iterable[str], where: str) -> None:
    """Raise a ValueError if a name belongs to a program that cannot be loaded; the message lists those that can."""
    for program, part in _FOREIGN.items():
        if key := next((name for name in names if re.search(part, name)), None):
            raise ValueError(
                f"{where} has {key}, which belongs to {program} and cannot be loaded; known are {_KNOWN}"
            )


def recognised(names: Mapping[str, object], where: str = "state dict") -> str:
    """Return the predictor that a public program's names belong to; "convlstm" if they show no other.

    Raises:
        ValueError: a name belongs to another program; the message shows it, and lists the known programs.
    """
    refuse_foreign(names, where)
    if any(name.startswith("stlstm_layer") for name in names):
        return "mim"
    if any(".conv_gm." in name for name in names):
        return "e3d_lstm"
    if any(".conv_m." in name for name in names):
        return "predrnn"
    if not any(name.startswith(("cell_list.", "conv_last.")) for name in names):
        raise ValueError(
            f"{where} has {next(iter(names))}, which belongs to no known program; known are {_KNOWN}"
        )
    return "convlstm"


def without_dead(tensors: Mapping[str, Tensor], predictor: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors that predictions read, and the names of the others."""
    dead = [name for name in tensors if re.match(_DEAD[predictor], name)]
    return {name: tensor for name, tensor in tensors.items() if name not in dead}, dead


def to_ours(tensors: Mapping[str, Tensor], predictor: str) -> dict[str, Tensor]:
    """Return the state dict of a `MotionRNN` from a public program's; unknown names stay. It is differentiable.

    Raises:
        ValueError: the first axis of a tensor cannot be divided into its gates, or two names mean one parameter.
    """
    found = {}
    for name, tensor in tensors.items():
        new, gates = name, None
        for part in _PARTS[predictor]:
            if match := _match(part.official, name):
                new, gates = _with_index(part.ours, match[0]) + match[1], part.gates
                break
        if gates is not None:
            if tensor.dim() == 0 or tensor.shape[0] % len(gates[0]):
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}; its first axis should hold {len(gates[0])} gates"
                )
            parts = dict(zip(gates[0], tensor.chunk(len(gates[0]))))
            tensor = torch.cat([parts[gate] for gate in gates[1]])
        if new == "conv_last.weight" and tensor.dim() == 5:  # E3D-LSTM folds the depth into the channels
            tensor = tensor.flatten(1, 2)
        if new in found:
            raise ValueError(
                f"{name} and {official_name(new, predictor)} are one parameter; it should be there once"
            )
        found[new] = tensor
    return found


def to_official(tensors: Mapping[str, Tensor], predictor: str) -> dict[str, Tensor]:
    """Return a public program's state dict from that of a `MotionRNN`: the inverse of `to_ours`."""
    found = {}
    for name, tensor in tensors.items():
        part = next(part for part in _PARTS[predictor] if _match(part.ours, name))
        if part.gates is not None:
            theirs, ours = part.gates
            parts = dict(zip(ours, tensor.chunk(len(ours))))
            tensor = torch.cat([parts[gate] for gate in theirs])
        # The kernel is 2-D here, with the depth in the channels.
        if name == "conv_last.weight" and predictor == "e3d_lstm":
            window = tensors["cells.0.conv_x.0.weight"].shape[2]
            tensor = tensor[:, :, 0, 0].unflatten(1, (-1, window))[..., None, None]
        found[official_name(name, predictor)] = tensor
    return found


def conv_tt_lstm_to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a `ConvTTLSTMCell` from that of NVlabs' cell, whose gates are (i, f, o, g).

    There `layers_.#` is A_#, a 3-D convolution over the lags, or in `code_opt` a 2-D one over lags * C channels. The
    last of `layers.#` computes the gates from [X, V], and the others are K. The conversion is differentiable.
    """
    order = sum(name.startswith("layers.") and name.endswith(".weight") for name in tensors)
    found = {}
    for name, tensor in tensors.items():
        part, index, kind = name.split(".")
        if part == "layers_":
            if tensor.dim() == 5:  # (R, C, k, k, lags) -> (R, lags * C, k, k)
                tensor = tensor.permute(0, 4, 1, 2, 3).flatten(1, 2)
            found[f"factors.{index}.{kind}"] = tensor
        elif int(index) < order - 1:
            found[f"cores.{index}.{kind}"] = tensor
        else:
            # The size may be wrong; a later check reports that.
            i, f, o, g = torch.atleast_1d(tensor).tensor_split(4)
            tensor = torch.cat([i, f, g, o])
            if kind == "weight":
                rank = len(tensors["layers_.0.weight"])
                tensor, found["conv_v.weight"] = tensor[:, :-rank], tensor[:, -rank:]
            found[f"conv_x.{kind}"] = tensor
    return found


def official_name(name: str, predictor: str = "predrnn") -> str:
    """Return the public program's name of a parameter of `MotionRNN`.

    Args:
        name: the parameter's name in this package, such as "interfaces.0.encoder.weight".
        predictor: the model's predictor.

    Returns:
        The name in the program, such as "enc_list.0.weight", or `name` if the program has no such parameter.
    """
    for part in _PARTS.get(predictor, _LSTM):
        if match := _match(part.ours, name):
            return _with_index(part.official, match[0]) + match[1]
    return name


def _match(pattern: str, name: str) -> tuple[int, str] | None:
    """Return the index (0 if there is none) and the rest of a name that begins with the pattern, or None."""
    # An index has one form: no zero before it, and not the digits of a damaged file.
    index_here = "(0|[1-9][0-9]{0,4})"
    expression = re.escape(pattern).replace(r"\#", index_here).replace("@", index_here)
    match = re.match(expression, name)
    if match is None:
        return None
    index = int(match[1]) + ("@" in pattern) if match.groups() else 0
    return index, name[match.end() :]


def _with_index(pattern: str, index: int) -> str:
    """Return a pattern's name for the index."""
    return pattern.replace("#", str(index)).replace("@", str(index - 1))
