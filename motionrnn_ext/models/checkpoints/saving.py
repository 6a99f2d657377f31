"""Write a model of this package as a checkpoint of a public program."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ... import backends
from ...files import write_atomically
from ..motion_rnn import MotionRNN
from ..variants import variant_options
from .architecture import misfits
from .description import present_arguments
from .names import to_official
from .own_code import own_code
from .reparametrised import plain_weights

# The key under which each program looks for its state dict, and the prefix of its names.
_CONTAINERS = {
    "convlstm": ("state_dict", "model."),
    "predrnn": ("net_param", ""),
    "mim": ("state_dict", "model."),
    "e3d_lstm": ("state_dict", "model."),
}
# A bound on the motion that changes no prediction, in pixels.
_FAR = 1e4
# Options that the program does not read off the weights.
_NOT_OF_WEIGHTS = ("zero_init", "init_state", "max_offset")


def save_official(model: MotionRNN, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint that the public program loads with strict=True, and that `load_checkpoint` reads as well.

    MotionRNN and PredRNN are written as thuml's programs write theirs, ConvLSTM, MIM and E3D-LSTM as OpenSTL does, with
    their names, order of gates and the dict around them. Parameters that a program has and never reads (conv_o and
    conv_last in OpenSTL's ConvLSTM cells, conv_last in its MIM-N) are written as zeros, and pruning masks are applied.
    Tensors keep their dtype, and are on the CPU. MotionRNN's program starts every sequence from random states, so its
    predictions vary from call to call.

    Args:
        model: the model, on any device.
        path: the file to write. If writing fails or is cut short, an older file of that name stays as it is.

    Raises:
        TypeError: model is no `MotionRNN`.
        ValueError: no program has this model (the message names every option that differs, or how far predictions are
            from those of its arguments and weights alone), or the model has other parameters than its arguments make,
            or parameters that are sharded or without values, or it cannot be copied.
        OSError: the file cannot be written, or path is a folder.

    Examples:
        >>> save_official(model, "for_openstl.pt")
    """
    if not isinstance(model, MotionRNN):
        raise TypeError(f"model is a {type(model).__name__}; it should be a MotionRNN{_instead(model)}")
    if os.path.isdir(path):
        raise IsADirectoryError(f"path {os.fspath(path)!r} is a folder; it should be a file")
    if differences := list(_differences(model)):
        raise ValueError(f"no public program has this model: {'; '.join(differences)}")
    container, prefix = _CONTAINERS[model.predictor]
    weights, _ = plain_weights(model.state_dict(), "model")
    with torch.device("meta"):
        if problems := misfits(MotionRNN(**model.arguments), weights, str):
            raise ValueError(f"model has other parameters than it was made with: {'; '.join(problems[:4])}")
    if empty := [name for name, tensor in weights.items() if tensor.is_meta]:
        raise ValueError(f"model has parameters on the device meta, without values: {empty[0]}")
    if sharded := [name for name, tensor in weights.items() if hasattr(tensor, "full_tensor")]:
        raise ValueError(
            f"model has sharded parameters, such as {sharded[0]}; save a MotionRNN(**model.arguments) that holds its "
            "full state dict"
        )
    weights = {name: tensor.detach().cpu() for name, tensor in weights.items()}
    if gap := _computes_something_else(model, weights):
        raise ValueError(f"no public program has this model: {gap}")
    found = to_official(weights, model.predictor) | _never_read(model, weights)
    found = {
        f"{prefix}{name}": tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in found.items()
    }
    with write_atomically(path, parents=False) as part, open(part, "wb") as file:
        torch.save({container: found}, file)


def _instead(model: object) -> str:
    """Return advice on which part of a wrapper is the MotionRNN, or ""."""
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    held = [name for name, module in modules if isinstance(module, MotionRNN)]
    return f": pass model.{held[0]}" if held else ""


def _differences(model: MotionRNN) -> Iterator[str]:
    """Yield every point in which the public program of this predictor differs from the model."""
    if model.predictor not in _CONTAINERS:
        yield f"predictor is {model.predictor!r}; it should be one of {', '.join(_CONTAINERS)}"
        return
    try:
        has: Mapping[str, Any] = present_arguments(model)
    except TypeError as error:
        yield str(error)
        return
    yield from (f"it has code of its own, {phrase}" for phrase in own_code(model))
    wanted: dict[str, Any] = {}
    if model.predictor == "predrnn" and (has["motion_gru"] or has["highway"]):
        options = asdict(variant_options("official", has["filter_size"]))
        wanted = {name: value for name, value in options.items() if name not in _NOT_OF_WEIGHTS}
        wanted |= {"motion_gru": True, "highway": True, "transient": True, "trend": True}
        if len(model.cells) < 2:
            yield f"hidden_channels is {has['hidden_channels']}; MotionRNN's program wants two layers or more"
        if (bound := has["max_offset"]) is not None and bound < _FAR:
            yield f"max_offset is {bound}; it should be None, or {_FAR:g} or more, where no map reaches"
    else:
        wanted = {"motion_gru": False, "highway": False, "residual": False}
    if model.predictor in ("mim", "e3d_lstm"):
        wanted["compat"] = "openstl"
    if model.predictor == "e3d_lstm":
        wanted["filter_size"] = 5
        if (window := model.conv_last.in_channels // has["hidden_channels"][-1]) != 2:
            yield f"window is {window}; it should be 2"
        if (history := has["cell_options"].get("history")) is not None:
            yield f"history is {history}; it should be None"
    for name, value in wanted.items():
        if isinstance(has[name], Tensor) or has[name] != value:
            is_now = "learned" if isinstance(has[name], Tensor) else repr(has[name])
            yield f"{name} is {is_now}; it should be {value!r}"


def _computes_something_else(model: MotionRNN, weights: Mapping[str, Tensor]) -> str | None:
    """Return how predictions of the model differ from those of its arguments and weights alone, or None if they agree.

    They do if it has hooks, other submodules, or a forward of its own. Copies of both predict a few random frames, in
    float64 on the CPU.
    """
    # Pruning leaves computed tensors, which cannot be copied; they are computed again in forward.
    computed = [
        t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf
    ]
    try:
        theirs = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})
    except Exception as error:
        raise ValueError(
            f"model cannot be copied, to compare it with its weights alone: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    with torch.device("meta"):
        ours = MotionRNN(**present_arguments(model))
    ours.load_state_dict({name: tensor.double() for name, tensor in weights.items()}, assign=True)
    height, width = model.image_size or (8 * model.patch_size, 12 * model.patch_size)
    frames = torch.rand(
        (1, 3, model.in_channels, height, width), generator=_generator(), dtype=torch.float64, device="cpu"
    )
    found = []
    quiet = warnings.catch_warnings()
    with quiet, backends.backend("auto"), torch.autocast("cpu", enabled=False), torch.no_grad():
        warnings.simplefilter("ignore")
        for each in (ours, theirs):
            each.double().cpu().eval().reset()
            try:
                found.append(each(frames, 2, generator=_generator()))
            except Exception as error:
                # An image_size of an odd number of patches suits no MotionGRU, and such a model predicts nothing.
                if each is ours:
                    return None
                return f"it cannot be compared, its forward raised {type(error).__name__}: {str(error)[:200]}"
    expected, predicted = found
    if not isinstance(predicted, Tensor) or predicted.shape != expected.shape:
        return f"its forward returns something else than predictions of shape {tuple(expected.shape)}"
    if torch.allclose(predicted, expected, rtol=1e-6, atol=1e-6, equal_nan=True):
        return None
    gap = float((predicted - expected).abs().max())
    return (
        f"its predictions differ by {gap:.2g} from those of MotionRNN(**model.arguments) with its weights, for which a "
        "hook, another submodule or a forward of its own is the reason"
    )


def _generator() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(0)


def _never_read(model: MotionRNN, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return zeros for the program's parameters that no prediction reads."""
    found = {}
    for level, width in enumerate(model.hidden_channels):
        like = weights[f"cells.{level}.conv_x.0.weight"]
        if model.predictor == "convlstm":
            cell = f"cell_list.{level}."
            found[f"{cell}conv_last.weight"] = like.new_zeros(width, 2 * width, 1, 1)
            found[f"{cell}conv_o.0.weight"] = like.new_zeros(width, 2 * width, *like.shape[2:])
            if model.image_size:  # there is a layer norm, over (C, h, w)
                shape = (width, *weights[f"cells.{level}.conv_x.1.weight"].shape[1:])
                found |= {f"{cell}conv_o.1.{kind}": like.new_zeros(shape) for kind in ("weight", "bias")}
        elif model.predictor == "mim" and level:
            found[f"stlstm_layer_diff.{level - 1}.conv_last.weight"] = like.new_zeros(width, 2 * width, 1, 1)
    return found
