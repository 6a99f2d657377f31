"""Checkpoints of the public programs: MotionRNN-PredRNN (thuml/MotionRNN), PredRNN and ConvLSTM (predrnn-pytorch,
OpenSTL), MIM and E3D-LSTM (OpenSTL), and the cell of Conv-TT-LSTM (NVlabs).

Loading renames parameters and, where gates are packed in another order, permutes channels; no number changes.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.cells import ConvTTLSTMCell
from ..untrusted import load_tensors
from .motion_rnn import MotionRNN
from .official_names import (
    conv_tt_lstm_to_ours,
    official_name,
    recognised,
    to_ours,
    without_dead,
)


def load_checkpoint(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    in_channels: int | None = None,
    patch_size: int | None = None,
    map_location: str | torch.device = "cpu",
    **overrides: Any,
) -> MotionRNN:
    """A MotionRNN, or bare predictor, with the weights of a public checkpoint.

    Args:
        source: a file written by torch.save (read with weights_only=True) or a dict: the state dict itself, or
            one that holds it as "net_param" or "state_dict". Common prefixes "module." and "model." are dropped.
        in_channels, patch_size: of the frames. A checkpoint holds P*P*C alone; give one of them unless frames
            are grey (C = 1) or RGB (C = 3).
        map_location: where a file's tensors go.
        overrides: arguments of `MotionRNN` that no tensor shows, such as init_state="xavier" to start as the
            official program does (zeros otherwise) or trend=False. OpenSTL's E3D-LSTM gets
            compat="openstl": its weights were trained so, and predict nothing in the paper's form.

    Predictor, widths, kernel sizes, layer norm and image size are read off the tensors, which keep their
    dtype. Parameters that predicting never reads (conv_o and conv_last in OpenSTL's ConvLSTM cells, conv_last in
    its MIM-N, the adapter of PredRNN-V2's loss) are left out, with a warning that names them.

    Raises:
        OSError: no such file. ValueError: a truncated file, or one that holds more than tensors, of which no code is
            run; a missing, unexpected or misshapen tensor, by name.
    """
    for name in overrides.keys() & {"device", "dtype"}:
        raise TypeError(f"unknown option {name!r}; known: map_location, and .to() of the model afterwards")
    tensors = _read(source, map_location)
    predictor = recognised(tensors)
    live, dead = without_dead(tensors, predictor)
    if dead:
        warnings.warn(
            f"load_checkpoint: left out {len(dead)} tensors that prediction never reads: {_some(dead)}",
            stacklevel=2,
        )
    state = to_ours(live, predictor)
    with torch.device("meta"):
        model = MotionRNN(**{**_architecture(state, predictor, in_channels, patch_size), **overrides})
    _check(model, state, partial(official_name, predictor=predictor))
    model.load_state_dict(state, assign=True)
    return model


def load_conv_tt_lstm_cell(
    source: str | os.PathLike[str] | Mapping[str, Any], *, map_location: str | torch.device = "cpu"
) -> ConvTTLSTMCell:
    """The cell of NVlabs' Conv-TT-LSTM, of `code` or `code_opt`, with bias.

    Args:
        source: as in `load_checkpoint`, with the cell's own names: "layers.#.*", "layers_.#.*". Channels, kernel
            size, order, steps and rank are read off the tensors.

    Raises:
        OSError, ValueError: as `load_checkpoint`.
    """
    tensors = _read(source, map_location)
    order = sum(re.fullmatch(r"layers_\.\d+\.weight", name) is not None for name in tensors)
    names = [f"{part}.{level}" for part in ("layers_", "layers") for level in range(max(order, 1))]
    wanted = [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in wanted]
    if problems:
        raise ValueError(f"no cell of Conv-TT-LSTM: {_some(problems)}")
    factor, gates = tensors["layers_.0.weight"], tensors[f"layers.{order - 1}.weight"]
    hidden = gates.shape[0] // 4 if gates.dim() == 4 else 0
    lags = (
        factor.shape[4]
        if factor.dim() == 5
        else factor.shape[1] // max(hidden, 1)
        if factor.dim() == 4
        else 0
    )
    if hidden < 1 or lags < 1 or gates.shape[1] <= factor.shape[0]:
        shapes = f"layers_.0.weight has shape {tuple(factor.shape)}, {names[-1]}.weight {tuple(gates.shape)}"
        raise ValueError(
            f"{shapes}; they should be (R, C, k, k, lags) or (R, lags*C, k, k), and (4C, C_in + R, k, k)"
        )
    rank, kernel = factor.shape[0], gates.shape[2]
    with torch.device("meta"):
        options: dict[str, Any] = {"order": order, "steps": order - 1 + lags, "rank": rank}
        cell = ConvTTLSTMCell(gates.shape[1] - rank, hidden, kernel, **options)
    state = conv_tt_lstm_to_ours(tensors)

    def official(name: str) -> str:
        part, *rest = name.split(".")
        here = {"factors": "layers_", "cores": "layers"}.get(part)
        return f"layers.{order - 1}.{rest[0]}" if here is None else ".".join([here, *rest])

    _check(cell, state, official)
    cell.load_state_dict(state, assign=True)
    return cell


def _read(
    source: str | os.PathLike[str] | Mapping[str, Any], map_location: str | torch.device
) -> dict[str, Tensor]:
    if isinstance(source, Mapping):
        content, where = source, "state dict"
    else:
        content, where = _load(source, map_location), f"checkpoint {os.fspath(source)!r}"
    while isinstance(content, Mapping):
        wrapped = [w for w in ("net_param", "state_dict") if isinstance(content.get(w), Mapping)]
        if not wrapped:
            break
        content = content[wrapped[0]]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where} holds no state dict but a {type(content).__name__}")
    other = [
        str(n) for n, tensor in content.items() if not (isinstance(n, str) and isinstance(tensor, Tensor))
    ]
    if other:
        raise ValueError(f"{where} has entries that are not tensors: {_some(other)}")
    while prefix := next((p for p in ("module.", "model.") if all(n.startswith(p) for n in content)), None):
        content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    dtypes = {tensor.dtype for tensor in content.values()}
    if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
        found = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"{where} has tensors of {found}; they should be of one floating-point dtype")
    # Copies, because the model is going to own and train them.
    return {name: tensor.detach().clone() for name, tensor in content.items()}


def _load(path: str | os.PathLike[str], map_location: str | torch.device) -> Any:
    torch.empty(0, device=map_location)  # an error of the device is not the file's
    with open(path, "rb") as file:
        try:
            return load_tensors(file, map_location)
        except Exception as error:
            asked = re.search(r"GLOBAL (\S+)", str(error))
    where = f"checkpoint {os.fspath(path)!r}"
    if asked:
        raise ValueError(
            f"{where} is no file of weights alone: it asks for {asked[1]}, and such a file could run code"
        )
    raise ValueError(f"{where} is truncated or no file of weights")


def _architecture(
    state: dict[str, Tensor], predictor: str, in_channels: int | None, patch_size: int | None
) -> dict[str, Any]:
    """The arguments of MotionRNN that names and shapes tell."""
    levels = [int(match[1]) for match in (re.match(r"cells\.(\d+)\.", name) for name in state) if match]
    n_layers = max(levels, default=0) + 1
    gates = [f"cells.{level}.conv_{c}.0.weight" for level in range(n_layers) for c in "xh"]
    layer_norm = any(re.fullmatch(r"cells\.\d+\.conv_\w+\.1\.weight", name) for name in state)
    per_position = "cells.0.conv_x.1.weight" if layer_norm else None  # (..., h, w)
    if predictor == "e3d_lstm" or (predictor == "mim" and n_layers > 1):
        per_position = "cells.0.norm.weight" if predictor == "e3d_lstm" else "cells.1.stationary.peephole"
    _check_readable(state, predictor, [*gates, "conv_last.weight"], per_position)
    in_channels, patch_size = _frame_layout(state["conv_last.weight"].shape[0], in_channels, patch_size)
    image_size = None
    if per_position is not None:
        image_size = tuple(size * patch_size for size in state[per_position].shape[-2:])
    motion = any(name.startswith(("interfaces.", "conv_first.")) for name in state)
    own: dict[str, Any] = {}
    if predictor == "e3d_lstm":
        own = {"compat": "openstl", "cell_options": {"window": state[gates[0]].shape[2]}}
    sizes = {
        "filter_size": gates[0],
        "encoder_kernel_size": "interfaces.0.encoder.weight",
        "gate_kernel_size": "interfaces.0.cell.update.weight",
        "mask_kernel_size": "interfaces.0.cell.warp.warp_gate.weight",
        "blend_kernel_size": "interfaces.0.gate.weight",
        "kernel_size": "interfaces.0.cell.warp.conv.weight",
    }
    return {
        "predictor": predictor,
        "in_channels": in_channels,
        "hidden_channels": tuple(state[name].shape[1] for name in gates[1::2]),  # conv_h reads H
        "patch_size": patch_size,
        "variant": "official",
        "layer_norm": layer_norm,
        "image_size": image_size,
        "motion_gru": motion,
        "highway": motion,
        **own,
        **{option: state[name].shape[-1] for option, name in sizes.items() if name in state},
    }


def _check_readable(
    state: dict[str, Tensor], predictor: str, convolutions: list[str], per_position: str | None
) -> None:
    """Whether the tensors that tell the architecture are there, and have the axes that tell it."""
    wanted = [*convolutions, *([] if per_position is None else [per_position])]
    absent = [official_name(name, predictor) for name in wanted if name not in state]
    if absent:
        raise ValueError(f"no checkpoint of MotionRNN or of a predictor it knows: missing {_some(absent)}")
    for name in wanted:
        axes = (
            3 if name == per_position else 5 if predictor == "e3d_lstm" and name in convolutions[:-1] else 4
        )
        if state[name].dim() < axes or 0 in state[name].shape:
            shape = tuple(state[name].shape)
            raise ValueError(
                f"{official_name(name, predictor)} has shape {shape}; it should have {axes} axes"
            )


def _frame_layout(folded: int, in_channels: int | None, patch_size: int | None) -> tuple[int, int]:
    """C and P from P*P*C; with neither given, C = 1 or C = 3 if one of them makes P whole (never both do)."""
    if patch_size is not None:
        channels = in_channels or folded // patch_size**2
        candidates = [(channels, patch_size)]
    else:
        candidates = [(c, round((folded / c) ** 0.5)) for c in ([in_channels] if in_channels else [1, 3])]
    for c, p in candidates:
        if c * p * p == folded:
            return c, p
    raise ValueError(
        f"frames fold to {folded} channels in this checkpoint, which in_channels={in_channels} and "
        f"patch_size={patch_size} do not give (patch_size**2 * in_channels)"
    )


def _check(model: nn.Module, state: dict[str, Tensor], official: Callable[[str], str]) -> None:
    expected = model.state_dict()
    problems = []
    for kind, names in (
        ("missing", expected.keys() - state.keys()),
        ("unexpected", state.keys() - expected.keys()),
    ):
        if names:
            problems.append(f"{kind} {_some(sorted(map(official, names), key=_natural))}")
    problems += [
        f"{official(name)} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"checkpoint does not fit: {'; '.join(problems[:4])}")


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts layer 2 before layer 10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def _some(names: list[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
