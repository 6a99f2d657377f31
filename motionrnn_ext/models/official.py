"""Checkpoints of the public programs: MotionRNN-PredRNN (thuml/MotionRNN), PredRNN and ConvLSTM
(predrnn-pytorch, OpenSTL).

Their gates are packed in this package's order already, (i, f, g, o) and (i, f, g, i', f', g', o), so loading
renames parameters and changes no number; `official_name` is the inverse.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .motion_rnn import MotionRNN

# official prefix, prefix here; # stands for the index of the layer or interface
_PREFIXES = (
    ("cell_list.#.", "cells.#."),
    ("enc_list.#.", "interfaces.#.encoder."),
    ("motion_list.#.", "interfaces.#.cell."),
    ("dec_list.#.", "interfaces.#.decoder."),
    ("gate_list.#.", "interfaces.#.gate."),
    ("conv_first_v.", "conv_first."),
    ("conv_last.", "conv_last."),
)


def official_name(name: str) -> str:
    """The official program's name of a parameter of `MotionRNN`."""
    return _rename(name, [(ours, official) for official, ours in _PREFIXES])


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
        source: a file written by torch.save (read with weights_only=True) or a dict: the state dict itself,
        or
            one that holds it as "net_param" or "state_dict". A common prefix "module." or "model." is
            dropped.
        in_channels, patch_size: of the frames. A checkpoint holds P*P*C alone; give one of them unless frames
            are grey (C = 1) or RGB (C = 3).
        map_location: where a file's tensors go.
        overrides: arguments of `MotionRNN` that no tensor shows, such as init_state="xavier" to start as the
            official program does (zeros otherwise) or trend=False.

    Predictor, widths, kernel sizes, layer norm and image size are read off the tensors, which keep their
    dtype. Parameters that predicting never reads (conv_o and conv_last in OpenSTL's ConvLSTM cells, the
    adapter of PredRNN-V2's loss) are left out, with a warning that names them.

    Raises:
        ValueError: unreadable or truncated file; a missing, unexpected or misshapen tensor, by name.
    """
    tensors = _read(source, map_location)
    live, dead = _drop_dead(tensors)
    if dead:
        warnings.warn(
            f"load_checkpoint: left out {len(dead)} tensors that prediction never reads: {_some(dead)}",
            stacklevel=2,
        )
    with torch.device("meta"):
        model = MotionRNN(**{**_architecture(live, in_channels, patch_size), **overrides})
    state = {_rename(name, _PREFIXES): tensor for name, tensor in live.items()}
    _check(model, state)
    model.load_state_dict(state, assign=True)
    return model


def _rename(name: str, prefixes: Any) -> str:
    for old, new in prefixes:
        match = re.match(re.escape(old).replace(r"\#", r"(\d+)"), name)
        if match:
            return new.replace("#", match.group(1) if match.groups() else "") + name[match.end() :]
    return name


def _read(
    source: str | os.PathLike[str] | Mapping[str, Any], map_location: str | torch.device
) -> dict[str, Tensor]:
    if isinstance(source, Mapping):
        content, where = source, "state dict"
    else:
        where = f"checkpoint {os.fspath(source)!r}"
        try:
            content = torch.load(source, map_location=map_location, weights_only=True)
        except OSError:
            raise
        except Exception as error:  # a damaged pickle can raise anything, struct.error included
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{where} is truncated or no file of weights: {reason}") from None
    for wrapper in ("net_param", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where} holds no state dict but a {type(content).__name__}")
    for prefix in ("module.", "model."):
        if all(name.startswith(prefix) for name in content):
            content = {name[len(prefix) :]: tensor for name, tensor in content.items()}
    other = [name for name, tensor in content.items() if not isinstance(tensor, Tensor)]
    if other:
        raise ValueError(f"{where} has entries that are not tensors: {_some(other)}")
    # Copies, because the model is going to own and train them.
    return {name: tensor.detach().clone() for name, tensor in content.items()}


def _drop_dead(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    dead = [name for name in tensors if name == "adapter.weight"]
    if not any(".conv_m." in name for name in tensors):
        dead += [name for name in tensors if re.match(r"cell_list\.\d+\.(conv_o|conv_last)\.", name)]
    return {name: tensor for name, tensor in tensors.items() if name not in dead}, dead


def _architecture(
    tensors: dict[str, Tensor], in_channels: int | None, patch_size: int | None
) -> dict[str, Any]:
    """The arguments of MotionRNN that names and shapes tell."""
    levels = [int(match[1]) for match in (re.match(r"cell_list\.(\d+)\.", name) for name in tensors) if match]
    first = [f"cell_list.{level}.conv_x.0.weight" for level in range(max(levels, default=0) + 1)]
    absent = [name for name in (*first, "conv_last.weight") if name not in tensors]
    if absent:
        raise ValueError(f"no checkpoint of MotionRNN, PredRNN or ConvLSTM: missing {_some(absent)}")
    predictor, gates = ("predrnn", 7) if any(".conv_m." in name for name in tensors) else ("convlstm", 4)
    in_channels, patch_size = _frame_layout(tensors["conv_last.weight"].shape[0], in_channels, patch_size)
    norm = tensors.get("cell_list.0.conv_x.1.weight")  # (gates*C, h, w)
    motion = any(re.match(r"(motion|enc|dec|gate)_list\.|conv_first_v\.", name) for name in tensors)
    sizes = {
        "filter_size": first[0],
        "encoder_kernel_size": "enc_list.0.weight",
        "gate_kernel_size": "motion_list.0.update.weight",
        "mask_kernel_size": "motion_list.0.warp.warp_gate.weight",
        "blend_kernel_size": "gate_list.0.weight",
        "kernel_size": "motion_list.0.warp.conv.weight",
    }
    return {
        "predictor": predictor,
        "in_channels": in_channels,
        "hidden_channels": tuple(tensors[name].shape[0] // gates for name in first),
        "patch_size": patch_size,
        "variant": "official",
        "layer_norm": norm is not None,
        "image_size": None if norm is None else (norm.shape[1] * patch_size, norm.shape[2] * patch_size),
        "motion_gru": motion,
        "highway": motion,
        **{option: tensors[name].shape[-1] for option, name in sizes.items() if name in tensors},
    }


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


def _check(model: MotionRNN, state: dict[str, Tensor]) -> None:
    expected = model.state_dict()
    problems = []
    for kind, names in (
        ("missing", expected.keys() - state.keys()),
        ("unexpected", state.keys() - expected.keys()),
    ):
        if names:
            problems.append(f"{kind} {_some(sorted((official_name(n) for n in names), key=_natural))}")
    problems += [
        f"{official_name(name)} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
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
